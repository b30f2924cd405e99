"""Text features: the last hidden states of a T5 encoder, trimmed to the tokens that a caption has.

Shapes: B captions, T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from trainer.data.shapes import SHARD_TOKENS
from trainer.errors import DataError
from trainer.prepare.options import Options
from trainer.prepare.passes import Encode, Failed, Inputs, Made, Pass
from trainer.prepare.pretrained import Kind, Source, locate, read_json
from trainer.prepare.recipe import Recipe
from trainer.prepare.resident import choose_device, import_transformers, load_model, precision_on, resident
from trainer.prepare.tiny.t5 import LABEL, tiny_t5

BATCH = 32
KIND = Kind(
    option="--t5",
    model_type="t5",
    files=("tokenizer.json",),
    extra_files=("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "spiece.model"),
)
_PROBE = "A photograph of a person who looks into the camera."


@dataclass(frozen=True)
class T5Pass:
    """The artefact t5: t5h.npy float16 (T, D), t5m.npy uint8 (T,) of ones, T at most 512, `</s>` included.

    Runs of white space in a caption count as one space, as training reads them too. A caption that is longer is cut at
    its end; the facts are `tokens` (T) and `truncated` (how many more there were). An empty one fails. Computed in
    float32 on a CPU and in bfloat16 on a GPU that has it, which is a part of the recipe: the two differ visibly.
    """

    named: str
    is_tiny: bool
    asked_device: str
    batch: int

    artefact = "t5"
    files = ("t5h.npy", "t5m.npy")
    needs = ("caption",)

    @cached_property
    def recipe(self) -> Recipe:
        """Model, revision, most tokens and precision."""
        return Recipe(
            model=self._source.name,
            revision=self._source.revision,
            options={"most_tokens": SHARD_TOKENS, "precision": str(self._precision).removeprefix("torch.")},
            label=LABEL if self.is_tiny else "",
        )

    def open(self) -> AbstractContextManager[Encode]:
        """Load the tokenizer and the encoder half of the model."""
        return resident(self._load, self._device)

    @cached_property
    def _source(self) -> Source:
        return tiny_t5(KIND) if self.is_tiny else locate(self.named, KIND)

    @cached_property
    def _device(self) -> torch.device:
        return choose_device(self.asked_device)

    @property
    def _precision(self) -> torch.dtype:
        return precision_on(self._device)

    def _load(self) -> Encode:
        model = load_model("T5EncoderModel", self._source, KIND, self._precision, self._device)
        return TextEncoder(load_tokenizer(self._source), model)


def t5_pass(options: Options) -> Pass:
    """The pass for these options: `t5`, `tiny`, `device` and `batch` count."""
    return T5Pass(options.t5, options.tiny, options.device, options.batch or BATCH)


class TextEncoder:
    """A tokenizer and an encoder: captions of any length at once, padded to the longest of them."""

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self._tokenizer = tokenizer
        self._model = model

    def __call__(self, inputs: Sequence[Inputs]) -> list[Made | Failed]:
        """What was made of each caption, in their order."""
        captions = [" ".join((one.caption or "").split()) for one in inputs]
        made = self._encoded([caption for caption in captions if caption])
        return [next(made) if caption else Failed("its caption is empty") for caption in captions]

    @torch.inference_mode()
    def _encoded(self, captions: list[str]) -> Iterator[Made]:
        if not captions:
            return iter(())
        whole = self._tokenizer(captions, verbose=False)["input_ids"]
        cut = self._tokenizer(captions, truncation=True, max_length=SHARD_TOKENS, padding=True, return_tensors="pt")
        tokens_BT, mask_BT = (cut[name].to(self._model.device) for name in ("input_ids", "attention_mask"))
        hidden_BTD = self._model(input_ids=tokens_BT, attention_mask=mask_BT).last_hidden_state
        half_BTD = hidden_BTD.to(torch.float16).cpu().numpy()  # what half precision cannot hold becomes infinite
        lengths = mask_BT.sum(dim=1).tolist()
        return iter(
            [
                Made(
                    files={"t5h.npy": hidden_TD[:length].copy(), "t5m.npy": np.ones(length, np.uint8)},
                    facts={"tokens": length, "truncated": len(ids) - length},
                )
                for hidden_TD, length, ids in zip(half_BTD, lengths, whole, strict=True)
            ]
        )


def load_tokenizer(source: Source) -> Any:
    """The tokenizer of a model, padding and cutting at the end. Raises DataError if it is broken or another model's."""
    transformers = import_transformers()
    if "model" not in read_json(source.folder / "tokenizer.json"):
        raise DataError(f"{KIND.option}: {source.folder / 'tokenizer.json'} holds no tokenizer")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source.folder, local_files_only=True, padding_side="right", truncation_side="right"
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{KIND.option}: the tokenizer in {source.folder} cannot be loaded: {error}") from error
    probe = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    if tokenizer.pad_token_id is None or not probe or tokenizer.unk_token_id in probe:
        raise DataError(
            f"{KIND.option}: the tokenizer in {source.folder} does not know plain words or cannot pad: it is not that "
            "of a T5"
        )
    most = source.config.get("vocab_size", 0)
    if len(tokenizer) > most:
        raise DataError(
            f"{KIND.option}: {source.folder} has a tokenizer of {len(tokenizer)} tokens for a model of {most}: they "
            "do not belong together"
        )
    return tokenizer
