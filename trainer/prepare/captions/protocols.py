"""The two protocols: how a server's models are listed, what a question looks like, what its answer says. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from trainer.prepare.captions.prompt import PROMPT

End = Literal["stop", "limit", "refused"]
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Question:
    """One image for one model. `jpeg_base64` is the crop; `most_tokens` is where the answer is cut off."""

    model: str
    jpeg_base64: str
    temperature: float
    seed: int
    most_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said; `end` is why it ended there: by itself, at the token limit, or because it may not go on."""

    text: str
    end: End = "stop"


class Dialect(Protocol):
    """How one kind of server is spoken to."""

    name: str
    models_path: str
    question_path: str

    def models(self, body: Mapping[str, Any]) -> dict[str, str] | None:
        """Digest ('' if unknown) by name of model; None if this is no such list."""
        ...

    def listed_as(self, model: str) -> tuple[str, ...]:
        """The names under which a model may be in the list."""
        ...

    def body(self, question: Question) -> dict[str, Any]:
        """What is posted."""
        ...

    def answer(self, body: Mapping[str, Any]) -> Answer | None:
        """What was answered; None if this is no answer of such a server."""
        ...


class Ollama:
    """Ollama's own interface, which says which weights a name stands for."""

    name = "ollama"
    models_path = "/api/tags"
    question_path = "/api/generate"

    def models(self, body: Mapping[str, Any]) -> dict[str, str] | None:
        """None, too, where models have no digest: other servers imitate this list and nothing behind it."""
        found: dict[str, str] = {}
        for model in _entries(body, "models"):
            digest = _DIGEST.fullmatch(str(model.get("digest")))
            if digest is None or not isinstance(model.get("name"), str):
                return None
            found[model["name"]] = digest[1]
        return found or None

    def listed_as(self, model: str) -> tuple[str, ...]:
        """A name without a tag means the tag `latest`."""
        return (model, f"{model}:latest")

    def body(self, question: Question) -> dict[str, Any]:
        """Without thinking aloud, which would use up the tokens of the answer."""
        options = {
            "temperature": question.temperature,
            "seed": question.seed,
            "num_predict": question.most_tokens,
        }
        return {
            "model": question.model,
            "prompt": PROMPT,
            "images": [question.jpeg_base64],
            "stream": False,
            "think": False,
            "options": options,
        }

    def answer(self, body: Mapping[str, Any]) -> Answer | None:
        """`done_reason` is length where the answer was cut off."""
        text = body.get("response")
        if not isinstance(text, str) or body.get("done") is not True:
            return None
        return Answer(text, "limit" if body.get("done_reason") == "length" else "stop")


class OpenAiCompatible:
    """The chat interface that vLLM, llama.cpp, LM Studio and others have in common."""

    name = "openai"
    models_path = "/v1/models"
    question_path = "/v1/chat/completions"
    _ends: Mapping[str, End] = {"length": "limit", "content_filter": "refused"}

    def models(self, body: Mapping[str, Any]) -> dict[str, str] | None:
        """Such a server does not say which weights a name stands for."""
        if not isinstance(body.get("data"), list) and body.get("object") != "list":
            return None
        return {model["id"]: "" for model in _entries(body, "data") if isinstance(model.get("id"), str)}

    def listed_as(self, model: str) -> tuple[str, ...]:
        """The name itself."""
        return (model,)

    def body(self, question: Question) -> dict[str, Any]:
        """One message of a text and an image."""
        url = f"data:image/jpeg;base64,{question.jpeg_base64}"
        content = [{"type": "text", "text": PROMPT}, {"type": "image_url", "image_url": {"url": url}}]
        return {
            "model": question.model,
            "messages": [{"role": "user", "content": content}],
            "stream": False,
            "temperature": question.temperature,
            "seed": question.seed,
            "max_tokens": question.most_tokens,
        }

    def answer(self, body: Mapping[str, Any]) -> Answer | None:
        """`finish_reason` is length where the answer was cut off; a model may also refuse in a field of its own."""
        choices = _entries(body, "choices")
        message = choices[0].get("message") if choices else None
        if not isinstance(message, Mapping):
            return None
        if isinstance(message.get("refusal"), str) and message["refusal"]:
            return Answer(message["refusal"], "refused")
        text = message.get("content")
        # A model that was cut off while it thought has no content at all.
        end: End = self._ends.get(str(choices[0].get("finish_reason")), "stop")
        if not isinstance(text, str):
            return None if text is not None or end == "stop" else Answer("", end)
        return Answer(text, end)


DIALECTS: tuple[Dialect, ...] = (Ollama(), OpenAiCompatible())
"""In the order in which a server is asked: Ollama speaks both, and its own says more."""


def _entries(body: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The objects of a list in a body; none if it is no list."""
    found = body.get(name)
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []
