"""A T5 encoder of one random layer with the output width of T5-large, and a tokenizer that knows few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.prepare.pretrained import Kind, Source
from trainer.prepare.resident import import_transformers
from trainer.prepare.tiny.building import SEED, stand_in

NAME, VERSION = "tiny-t5", 1
LABEL = f"random stand-in (seed {SEED}): says nothing about T5"
WIDTH = 1024
_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"
_SPACE = "▁"
_WORDS = (
    "a an the of in on at with and or to from is are was has one two her his their who that this near under over "
    "person woman man child girl boy face hair eye eyes mouth nose hand hands head skin smile beard glasses hat shirt "
    "dress coat jacket scarf cat dog horse bird tree flower grass leaf sky cloud sun sea water river mountain road "
    "street house wall window door room table chair cup plate book lamp car boat rocket star stone brick sand snow "
    "red green blue yellow orange brown black white grey dark light bright soft warm cold old young small large long "
    "short left right front behind portrait photograph picture image camera background foreground view close wide "
    "looks looking stands standing sits sitting wears wearing holds holding shows showing"
)
_WORD_SCORE, _CHARACTER_SCORE = -6.0, -9.0  # log probabilities: a word costs less than its characters


def tiny_t5(kind: Kind) -> Source:
    """Its files, built if they are not there. Raises DataError if the cache cannot be written."""
    return stand_in(NAME, VERSION, kind, _build)


def _build(folder: Path) -> None:
    transformers = import_transformers()
    pieces = _pieces()
    config = transformers.T5Config(
        vocab_size=len(pieces), d_model=WIDTH, d_kv=16, d_ff=16, num_layers=1, num_heads=1, dropout_rate=0.0
    )
    transformers.T5EncoderModel(config).save_pretrained(folder)
    _tokenizer(transformers, pieces).save_pretrained(folder)


def _pieces() -> list[tuple[str, float]]:
    """The vocabulary with its scores: special tokens, all bytes, then words and characters.

    It is written down, not trained, so that it is the same whatever the version of the library. Because every byte is
    a piece, no two texts have the same tokens and none is unknown.
    """
    special = [(token, 0.0) for token in (_PAD, _END, _UNKNOWN)]
    every_byte = [(f"<0x{value:02X}>", _CHARACTER_SCORE) for value in range(256)]
    characters = [(character, _CHARACTER_SCORE) for character in (_SPACE, *"abcdefghijklmnopqrstuvwxyz.,")]
    return [*special, *every_byte, *characters, *((_SPACE + word, _WORD_SCORE) for word in _WORDS.split())]


def _tokenizer(transformers: Any, pieces: list[tuple[str, float]]) -> Any:
    """As T5's own, which has no pieces for bytes: spaces are part of the words behind them, `</s>` ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    tokens = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    tokens.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokens.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(replacement=_SPACE)])
    tokens.post_processor = processors.TemplateProcessing(single=f"$A {_END}", special_tokens=[(_END, 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token=_PAD, eos_token=_END, unk_token=_UNKNOWN
    )
