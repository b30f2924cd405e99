"""Captions from the .txt file beside each photograph: portrait.jpg has portrait.txt. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from trainer.prepare.captions.text import FILE, broken_characters, has_words, one_paragraph
from trainer.prepare.passes import Encode, Failed, Inputs, Made
from trainer.prepare.recipe import Recipe

MOST_CHARACTERS = 10_000
"""A longer text is no caption: the text encoder sees about the first 2,000 characters."""
_MOST_BYTES = 4 * MOST_CHARACTERS + 3  # the longest UTF-8 of that many characters, and a byte order mark
SIDECAR = "sidecar"


class SidecarPass:
    """Reads what a person, or another program, wrote. An edited file makes the caption anew."""

    artefact = "caption"
    files: tuple[str, ...] = (FILE,)
    needs: tuple[str, ...] = ()
    batch = 64
    each_alone: Literal[True] = True

    @property
    def recipe(self) -> Recipe:
        """No model: the text is what it is."""
        return Recipe(options={"from": SIDECAR})

    def beside(self, source: Path) -> Mapping[str, str]:
        """SHA-256 of the text file, '' if there is none."""
        content = _content(sidecar_of(source))
        return {SIDECAR: "" if isinstance(content, Failed) else hashlib.sha256(content).hexdigest()}

    @contextmanager
    def open(self) -> Iterator[Encode]:
        """There is nothing to load."""
        yield _read_all


def sidecar_of(source: Path) -> Path:
    """The text file that belongs to a photograph."""
    return source.with_suffix(".txt")


def _read_all(batch: Sequence[Inputs]) -> list[Made | Failed]:
    return [read_sidecar(sidecar_of(inputs.source)) for inputs in batch]


def read_sidecar(path: Path) -> Made | Failed:
    """The caption in a text file: UTF-8 with or without a byte order mark, its white space collapsed."""
    content = _content(path)
    if isinstance(content, Failed):
        return content
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Failed(f"{path.name} is no UTF-8: byte {error.start:,} is {content[error.start]:#04x}; save it as UTF-8")
    problem = broken_characters(text)
    caption = one_paragraph(text)
    if problem:
        return Failed(f"{path.name} holds {problem}; save it as plain text in UTF-8")
    if not has_words(caption):
        return Failed(f"{path.name} holds no words")
    if len(caption) > MOST_CHARACTERS:
        return _too_long(path)
    return Made({FILE: caption}, {"characters": len(caption)})


def _content(path: Path) -> bytes | Failed:
    try:
        if not path.exists():
            return Failed(f"there is no {path.name} beside the photograph; write one, or name a --caption-url")
        if not path.is_file():
            return Failed(f"{path.name} is no plain file")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        return Failed(f"{path.name} cannot be read: {error.strerror or error}")
    return content if len(content) <= _MOST_BYTES else _too_long(path)


def _too_long(path: Path) -> Failed:
    return Failed(f"{path.name} is longer than {MOST_CHARACTERS:,} characters: no caption is")
