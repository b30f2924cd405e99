"""What lies in a folder of a host, what its files hash to, and pieces of them: each answer is bounded.

Runs on a host, as a part of its agent. A large file is hashed block by block, because one question must not take as
long as the file is large, and an agent keeps nothing between two questions. Links are never followed, only named.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar

PAGE_FILES = 2000
MOST_FILES = 100_000
"""Of a folder that holds more, one file beyond this number is told, so that the other side knows."""

MOST_ODD = 100
DEEPEST = 12
_READ = 2**20

Found = TypeVar("Found")


def files(folder: str, after: str) -> dict[str, Any]:
    """Regular files below a folder as (path, bytes), by path, the first ones that follow `after`. `odd` names, with
    the first page, what is neither file nor folder or lies too deep; `is_all` says that no more follow."""
    odd: list[str] = []
    follows = sorted(one for one in islice(_below(folder, "", 0, odd), MOST_FILES + 1) if one[0] > after)
    is_all = len(follows) <= PAGE_FILES
    return {"files": follows[:PAGE_FILES], "odd": [] if after else odd[:MOST_ODD], "is_all": is_all}


def digests(folder: str, blocks: Sequence[Sequence[Any]]) -> list[list[Any] | None]:
    """For each block (path, offset, bytes): inode, size and modification time in ns of the file, and SHA-256 of the
    block; None for what is no regular file that can be read."""
    return [_of(folder, _hashed, *block) for block in blocks]


def pieces(folder: str, wanted: Sequence[Sequence[Any]]) -> list[str | None]:
    """For each piece (path, offset, bytes): its bytes in base64, fewer where the file ends; None as for `digests`."""
    return [_of(folder, _encoded, *piece) for piece in wanted]


def _below(folder: str, path: str, depth: int, odd: list[str]) -> Iterator[tuple[str, int]]:
    try:
        with os.scandir(os.path.join(folder, path)) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        odd.extend([path] if path else [])
        return
    for entry in entries:
        name = f"{path}/{entry.name}" if path else entry.name
        if entry.is_file(follow_symlinks=False):
            with suppress(FileNotFoundError):  # gone meanwhile
                yield name, entry.stat(follow_symlinks=False).st_size
        elif entry.is_dir(follow_symlinks=False) and depth < DEEPEST:
            yield from _below(folder, name, depth + 1, odd)
        else:
            odd.append(name)


def _of(folder: str, look: Callable[[int, int, int], Found], path: str, offset: int, count: int) -> Found | None:
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(os.path.join(folder, path), flags)
    except OSError:
        return None
    try:
        return look(descriptor, offset, count) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _hashed(descriptor: int, offset: int, count: int) -> list[Any]:
    status, block = os.fstat(descriptor), hashlib.sha256()
    while count > 0 and (data := os.pread(descriptor, min(_READ, count), offset)):
        block.update(data)
        offset, count = offset + len(data), count - len(data)
    return [status.st_ino, status.st_size, status.st_mtime_ns, block.hexdigest()]


def _encoded(descriptor: int, offset: int, count: int) -> str:
    return base64.b64encode(os.pread(descriptor, count, offset)).decode()
