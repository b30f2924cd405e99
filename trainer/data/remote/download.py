"""One file over the network, whole and right or not there: continued where it broke off, checked, then renamed.

What has come stays beside the target as `.<name>.part`, so that whoever comes next goes on from there. No torch.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Event
from typing import Protocol

from trainer.data.remote.faults import Abandoned, Cut, NotReachable
from trainer.data.remote.reply import Reply
from trainer.data.set_index import Shard
from trainer.errors import DataError

TRIES = 5
"""So often in a row an answer may bring nothing before we give up."""
PAUSE_S = 1.0
"""Before the second try; each further one waits twice as long."""


class From(Protocol):
    """The file from a byte on."""

    def __call__(self, *, start: int) -> AbstractContextManager[Reply]:
        """An answer that begins with this byte, or with the first one."""
        ...


Advance = Callable[[int], None]
"""Says that so many more bytes are here; fewer than none if some had to be thrown away."""


def part_of(target: Path) -> Path:
    """Where the bytes of an unfinished file are."""
    return target.with_name(f".{target.name}.part")


def kept_bytes(target: Path) -> int:
    """How many bytes of an unfinished file are here."""
    try:
        return part_of(target).stat().st_size
    except FileNotFoundError:
        return 0


def download(
    source: From,
    shard: Shard,
    target: Path,
    advance: Advance,
    given_up: Event,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """Bring one shard to `target`. Raises DataError that says what is kept; Abandoned once `given_up` is set."""
    part = part_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for is_last in (False, True):
            began_here = kept_bytes(target) == 0
            _complete(source, shard, part, advance, given_up, pause)
            if sha256_of(part) == shard.sha256:
                break
            part.unlink()
            advance(-shard.size_bytes)
            if is_last or began_here:  # a part that was left by somebody else deserves a second chance
                raise DataError(
                    f"{shard.path} came with another content than the index says (SHA-256), and was removed: the set "
                    "at its address is damaged or was changed in the middle; publish it again"
                )
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise _cannot_write(error, target) from error


def sha256_of(path: Path) -> str:
    """SHA-256 in hex of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _complete(
    source: From, shard: Shard, part: Path, advance: Advance, given_up: Event, pause: Callable[[float], object]
) -> None:
    """Go on until the part has all bytes; a try that brought some does not count as a failure."""
    failures = 0
    while (before := _size(part)) < shard.size_bytes:
        try:
            with source(start=before) as reply:
                _append(reply, shard, part, before, advance, given_up)
            problem: DataError = Cut(f"the answer with {shard.path} ended early")
        except (Cut, NotReachable) as error:
            problem = error
        failures = 0 if _size(part) > before else failures + 1
        if failures >= TRIES:
            raise NotReachable(
                f"{problem}; {_size(part):,} of {shard.size_bytes:,} bytes of {shard.path} are kept, and so is every "
                "whole shard: start again to go on from there"
            ) from problem
        if failures:
            pause(PAUSE_S * 2 ** (failures - 1))


def _append(reply: Reply, shard: Shard, part: Path, before: int, advance: Advance, given_up: Event) -> None:
    """Write what comes behind what is here, or over it if the server begins anew."""
    start = reply.start
    if start not in (0, before):
        raise DataError(f"{shard.path}: the server sent another part of the file than it was asked for")
    if start != before:
        advance(-before)
    with part.open("r+b" if before else "wb") as file:
        file.seek(start)
        file.truncate()
        there = start
        for piece in reply.pieces:
            if given_up.is_set():
                raise Abandoned(f"{shard.path} was left unfinished")
            there += len(piece)
            if there > shard.size_bytes:
                raise DataError(f"{shard.path} has more than the {shard.size_bytes:,} bytes that the index says")
            file.write(piece)
            advance(len(piece))


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _cannot_write(error: OSError, target: Path) -> DataError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(
            f"the disk is full: {target} could not be written; what has come is kept: free some space, or let "
            "XDG_CACHE_HOME name a folder on a larger disk, and start again"
        )
    return DataError(f"{target} cannot be written: {error.strerror or error}")
