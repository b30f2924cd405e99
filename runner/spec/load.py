"""Arm files and their bases from disk: the only place that reads them."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.errors import SpecError, Where
from runner.spec.yaml12 import MAX_BYTES, Document, parse

MAX_CHAIN = 20


@dataclass(frozen=True, slots=True)
class Chain:
    """An arm file and what it extends: `documents` and their absolute `paths`, outermost base first, the arm last."""

    documents: tuple[Document, ...]
    paths: tuple[str, ...]


def load_document(file: str) -> Document:
    """One file of keys. Raises SpecError as below."""
    return parse(_read(file, None), file)


def load_chains(files: Sequence[str | Path]) -> tuple[Chain, ...]:
    """The chain of each arm file; a file that is named twice is read once.

    Raises SpecError for a file that is missing, no regular file, unreadable or no strict YAML, and for an `extends`
    that leads nowhere or back to itself.
    """
    unique: dict[str, str] = {}
    for file in files:
        unique.setdefault(_real(str(file), Where(str(file))), str(file))
    return tuple(_chain(file) for file in unique.values())


def _chain(file: str) -> Chain:
    documents: list[Document] = []
    paths: list[str] = []
    origin: Where | None = None
    seen: set[str] = set()
    while True:
        path = os.path.abspath(file)
        real = _real(path, origin or Where(file))
        if real in seen:
            assert origin is not None
            circle = " -> ".join([*(os.path.basename(each) for each in paths), os.path.basename(path)])
            raise SpecError(origin, f"goes round in a circle: {circle}", allowed="a file that does not extend this one")
        if len(paths) == MAX_CHAIN:
            raise SpecError(origin or Where(file), f"is a chain of more than {MAX_CHAIN} files", allowed="fewer bases")
        documents.append(parse(_read(file, origin), file))
        paths.append(path)
        seen.add(real)
        base = documents[-1].values.get("extends")
        if base is None:
            return Chain(tuple(reversed(documents)), tuple(reversed(paths)))
        origin = Where(file, documents[-1].lines[("extends",)], "extends")
        if not isinstance(base, str) or not base:
            raise SpecError(origin, f"{base!r:.60} is not allowed", allowed="a path relative to this file")
        file = os.path.normpath(os.path.join(os.path.dirname(file), base))


def _real(file: str, where: Where) -> str:
    """The path without links, by which one file is recognised under several names."""
    if "\0" in file:
        raise SpecError(where, "is no path: it holds a NUL character", allowed="the path of a file")
    return os.path.realpath(file)


def _read(file: str, origin: Where | None) -> bytes:
    """Bytes of a regular file. `origin` is the `extends` that named it, None for the command line."""
    where = origin or Where(file)
    subject = f"{file} " if origin else ""
    look = f"ls {shlex.quote(os.path.dirname(file) or '.')}"
    try:
        kind = os.stat(file).st_mode
        if stat.S_ISDIR(kind):
            inside = shlex.quote(os.path.join(file, ""))
            raise SpecError(
                where, f"{subject}is a directory", allowed="files", next_command=f"runner check {inside}*.yaml"
            )
        if not stat.S_ISREG(kind):
            raise SpecError(where, f"{subject}is not a regular file", allowed="YAML files", next_command=look)
        with open(file, "rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SpecError(where, f"{subject}does not exist", next_command=look) from None
    except OSError as error:
        raise SpecError(where, f"{subject}cannot be read: {error.strerror}", next_command=look) from None
