"""A caption server on loopback: Ollama's or the OpenAI-compatible protocol, strict about what it is asked.

What it does with a question is decided by a list of reactions, one for each in the order of their arrival, and by
`normally` behind them. Nothing here waits longer than until the server is closed.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Event, Lock, Thread
from typing import Any, Literal

from PIL import Image

DIGEST = "ab" * 32
MODEL = "looker:7b"
CAPTION = (
    "A woman of about forty with shoulder-length dark hair stands in front of a plain grey wall and looks at the "
    "camera. Soft light falls from the left onto her pale skin, her mouth is closed, and she wears a green woollen "
    "pullover. The head is turned slightly to the right, the frame ends below the shoulders."
)

Kind = Literal["ollama", "openai"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as the server understood it."""

    seed: int
    temperature: float
    most_tokens: int
    prompt: str
    size: tuple[int, int]
    colour: tuple[int, int, int]
    authorization: str | None


@dataclass(frozen=True, slots=True)
class Reaction:
    """What comes back: a caption, or some trouble.

    `how`: answer; hang (no byte until the server closes); drop (the connection closes at once); drip (a byte now and
    then, for ever); short (fewer bytes than promised).
    """

    text: str = CAPTION
    end: str = "stop"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    how: Literal["answer", "hang", "drop", "drip", "short"] = "answer"


def refusing(status: int, **headers: str) -> Reaction:
    """An error with a status, in a form that both protocols may use."""
    raw = json.dumps({"error": f"trouble number {status}"}).encode()
    return Reaction(status=status, raw=raw, headers={name.replace("_", "-"): value for name, value in headers.items()})


class BadRequest(Exception):
    """What a strict server does not take."""


class FakeCaptionServer(ThreadingHTTPServer):
    """Listens on a free port; `asked` holds the questions, `seen` the paths of all requests."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, kind: Kind, models: dict[str, str] | None = None, key: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kind, self.key = kind, key
        self.models = {MODEL: DIGEST, "other:1b": "cd" * 32} if models is None else models
        self.reactions: list[Reaction] = []
        self.normally: Callable[[Asked], Reaction] = lambda asked: Reaction()
        self.asked: list[Asked] = []
        self.seen: list[str] = []
        self.malformed: list[str] = []
        self.lists_models: Reaction | None = None
        self.at_once = 1
        self.closing = Event()
        self._lock = Lock()
        self._inside = 0
        self._arrived = Condition(self._lock)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to print."""

    def react(self, asked: Asked) -> Reaction:
        """The next reaction, once `at_once` questions are here together (or the server closes)."""
        with self._arrived:
            self.asked.append(asked)
            self._inside += 1
            self._arrived.notify_all()
            self._arrived.wait_for(lambda: self._inside >= self.at_once or self.closing.is_set(), timeout=10.0)
            return self.reactions.pop(0) if self.reactions else self.normally(asked)


@contextmanager
def caption_server(
    kind: Kind = "ollama", models: dict[str, str] | None = None, key: str | None = None
) -> Iterator[FakeCaptionServer]:
    """A server for a while. At the end it must have been asked nothing malformed."""
    server = FakeCaptionServer(kind, models, key)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        stop(server)
        thread.join(10.0)
    assert server.malformed == []


def stop(server: FakeCaptionServer) -> None:
    """Close it: from now on nothing listens there."""
    with server._arrived:
        server.closing.set()
        server._arrived.notify_all()
    server.shutdown()
    server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeCaptionServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        if self._is_locked():
            return self._send(refusing(401))
        listed = {"ollama": "/api/tags", "openai": "/v1/models"}[self.server.kind]
        if self.path != listed:
            return self._send(refusing(404))
        if self.server.lists_models is not None:
            return self._send(self.server.lists_models)
        models = self.server.models
        if self.server.kind == "ollama":
            body: dict[str, Any] = {"models": [{"name": name, "digest": digest} for name, digest in models.items()]}
        else:
            body = {"object": "list", "data": [{"id": name, "object": "model"} for name in models]}
        self._send(Reaction(raw=json.dumps(body).encode()))

    def do_POST(self) -> None:
        self.server.seen.append(self.path)
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self._is_locked():
            return self._send(refusing(401))
        try:
            asked = self._understood(content)
        except (BadRequest, KeyError, TypeError, ValueError, OSError) as error:
            self.server.malformed.append(repr(error))
            return self._send(refusing(400))
        reaction = self.server.react(asked)
        self._send(reaction if reaction.raw is not None else self._answer(reaction))

    def _is_locked(self) -> bool:
        return self.server.key is not None and self.headers["Authorization"] != f"Bearer {self.server.key}"

    def _understood(self, content: bytes) -> Asked:
        path = {"ollama": "/api/generate", "openai": "/v1/chat/completions"}[self.server.kind]
        if self.path != path or self.headers["Content-Type"] != "application/json":
            raise BadRequest(f"{self.path}, {self.headers['Content-Type']}")
        body = json.loads(content)
        if body["model"] not in self.server.models or body["stream"] is not False:
            raise BadRequest("an unknown model, or a stream")
        return self._ollama(body) if self.server.kind == "ollama" else self._openai(body)

    def _ollama(self, body: dict[str, Any]) -> Asked:
        _exactly(body, {"model", "prompt", "images", "stream", "think", "options"})
        _exactly(body["options"], {"temperature", "seed", "num_predict"})
        (picture,) = body["images"]
        options = body["options"]
        return self._asked(options["seed"], options["temperature"], options["num_predict"], body["prompt"], picture)

    def _openai(self, body: dict[str, Any]) -> Asked:
        _exactly(body, {"model", "messages", "stream", "temperature", "seed", "max_tokens"})
        (message,) = body["messages"]
        text, image = message["content"]
        _exactly(message, {"role", "content"})
        if (message["role"], text["type"], image["type"]) != ("user", "text", "image_url"):
            raise BadRequest(f"parts of a message: {message['role']}, {text['type']}, {image['type']}")
        kind, _, picture = image["image_url"]["url"].partition(",")
        if kind != "data:image/jpeg;base64":
            raise BadRequest(f"a picture of the kind {kind}")
        return self._asked(body["seed"], body["temperature"], body["max_tokens"], text["text"], picture)

    def _asked(self, seed: int, temperature: float, most_tokens: int, prompt: str, picture: str) -> Asked:
        if type(seed) is not int or not 0 <= seed < 2**31 or type(most_tokens) is not int or most_tokens < 1:
            raise BadRequest(f"seed {seed}, most tokens {most_tokens}")
        if not 0.0 <= temperature <= 2.0 or not prompt.strip():
            raise BadRequest(f"temperature {temperature}, or no prompt")
        try:
            image = Image.open(io.BytesIO(base64.b64decode(picture, validate=True)))
            image.load()
        except binascii.Error as error:
            raise BadRequest("no base64") from error
        if image.format != "JPEG" or image.mode != "RGB":
            raise BadRequest(f"a picture in {image.format}, {image.mode}")
        colour = image.getpixel((image.width // 2, image.height // 2))
        return Asked(seed, temperature, most_tokens, prompt, image.size, colour, self.headers["Authorization"])

    def _answer(self, reaction: Reaction) -> Reaction:
        if self.server.kind == "ollama":
            body: dict[str, Any] = {"response": reaction.text, "done": True, "done_reason": reaction.end}
        else:
            message = {"role": "assistant", "content": reaction.text}
            body = {"choices": [{"index": 0, "message": message, "finish_reason": reaction.end}]}
        return Reaction(raw=json.dumps(body).encode(), how=reaction.how, headers=reaction.headers)

    def _send(self, reaction: Reaction) -> None:
        self.close_connection = True
        if reaction.how == "drop":
            return
        if reaction.how == "hang":
            self.server.closing.wait()
            return
        content = reaction.raw or b""
        self.send_response(reaction.status)
        for name, value in reaction.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) + (reaction.how in ("short", "drip"))))
        self.send_header("Connection", "close")
        self.end_headers()
        if reaction.how == "drip":
            for at in range(len(content)):
                self.wfile.write(content[at : at + 1])
                if self.server.closing.wait(0.02):
                    return
            self.server.closing.wait()
            return
        self.wfile.write(content)


def _exactly(body: dict[str, Any], names: set[str]) -> None:
    if set(body) != names:
        raise BadRequest(f"fields {sorted(body)}, not {sorted(names)}")
