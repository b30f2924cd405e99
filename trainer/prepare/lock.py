"""One process at a time on one output. No torch."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import DataError
from trainer.prepare.manifest import Part
from trainer.prepare.records import UNFINISHED

_SET, _PART = ".lock", ".lock-{number}-of-{of}"


@contextmanager
def only_here(data: Path, part: Part = Part()) -> Iterator[None]:  # noqa: B008 - a frozen value
    """Hold a set, or one part of it, which others may do beside us; the lock ends with the process.

    Raises DataError if somebody else holds it, and if the folder cannot be made.
    """
    try:
        data.mkdir(parents=True, exist_ok=True)
        is_whole = part.of == 1
        with _held(data / _SET, fcntl.LOCK_EX if is_whole else fcntl.LOCK_SH, data):
            if is_whole:
                yield
                return
            with _held(data / _PART.format(number=part.number, of=part.of), fcntl.LOCK_EX, data):
                yield
    except OSError as error:
        raise DataError(f"{error.filename or data} cannot be used: {error.strerror or error}") from error


@contextmanager
def _held(path: Path, how: int, data: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"another process prepares {data} at this moment: wait for it, or divide the work with --shard N/M"
            ) from None
        yield
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> int:
    """Remove what processes that were killed left half-written below a folder that nobody else holds; their number."""
    left = [path for path in folder.rglob(f".*{UNFINISHED}") if path.is_file()]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)
