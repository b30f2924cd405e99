"""The bytes of one file, and what tells whether it has changed since they were read."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from trainer.prepare.ingest.unusable import Unusable

MOST_BYTES = 1 << 30
"""A larger file is not read: several are in memory at once."""


class Stamp(NamedTuple):
    """Size in bytes and time of the last change: whoever has the same has not changed."""

    size: int
    mtime_ns: int


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file. Raises Unusable if it is not there, no file, too large, or must not be looked at."""
    try:
        return _stamp(os.stat(path))
    except OSError as error:
        raise _cannot_read(error) from error


def read_content(path: Path) -> tuple[bytes, Stamp]:
    """The content of a file and its stamp. Raises Unusable if it cannot be read or somebody writes to it meanwhile."""
    stamp_of(path)  # a pipe would not even open
    try:
        with path.open("rb") as file:
            before = _stamp(os.fstat(file.fileno()))
            content = file.read()
            after = _stamp(os.fstat(file.fileno()))
    except OSError as error:
        raise _cannot_read(error) from error
    if before != after or len(content) != before.size:
        raise Unusable("it was written to while it was read")
    return content, before


def id_of(content: bytes) -> str:
    """The first 16 hex digits of SHA-256 of the bytes of a file."""
    return hashlib.sha256(content).hexdigest()[:16]


def _stamp(status: os.stat_result) -> Stamp:
    if not stat.S_ISREG(status.st_mode):
        raise Unusable("it is no regular file")
    if status.st_size > MOST_BYTES:
        raise Unusable(f"it has {status.st_size / 2**20:,.0f} MiB; files up to {MOST_BYTES >> 20:,} MiB are read")
    return Stamp(status.st_size, status.st_mtime_ns)


def _cannot_read(error: OSError) -> Unusable:
    return Unusable(f"it cannot be read: {error.strerror or error}")
