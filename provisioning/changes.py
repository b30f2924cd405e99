"""What has changed in a folder since somebody last looked: new bytes of files that grew, files that were replaced.

Runs on a host, as a part of its agent. It keeps nothing: what the other side has is said with every question. Links,
devices and pipes are never opened; they are named. What begins with a dot or ends in .part is being written.
"""

from __future__ import annotations

import base64
import os
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

DEEPEST = 8
MOST_FILES = 10_000
"""In one folder; more are not looked at, and that is said."""

SMALL_BYTES = 2**18

LARGE_BYTES = 2**26
"""A new file that holds more is left for the time when nothing works in the folder any more, unless it lies in the
folder of an attempt: what is made at once, such as a cache, would keep the connection for itself."""

ATTEMPT, LAST = "attempt-", "exit.json"

UNFINISHED = (".part", ".tmp")

HEAD_BYTES = 4096
"""Numbers of files are given away again, so a file that grew is one that still begins as it did."""

Known = Mapping[str, Sequence[int]]
"""What the other side has of each file: (inode, bytes, modification time in ns, CRC-32 of the first HEAD_BYTES)."""


def changes(folder: str, known: Known, skipped: Sequence[str], budget_bytes: int) -> dict[str, Any]:
    """The files below `folder` whose bytes the other side lacks, with at most so many bytes of them.

    `skipped` are endings of paths that are not wanted. `files`: path -> (inode, size, modification time in ns, offset,
    bytes in base64); `is_whole` is false when the budget cut something off; `odd` names what is neither file nor
    folder. A small file that is new comes whole or not at all, for it may be one that is replaced at once and read as
    such. The file that lacks least comes first, so that a heartbeat waits for no log; how an attempt ended comes after
    all else, for whoever reads it takes what is there then for everything.
    """
    ended = _ended(folder)  # before all else: what these attempts wrote is all there by now
    odd: list[str] = []
    lacking: list[_Lacking] = []
    for count, (path, found) in enumerate(_below(folder, "", 0, odd)):
        if count >= MOST_FILES:
            odd.append(f"more than {MOST_FILES} files")
            break
        is_end = path.startswith(ATTEMPT) and path.endswith(f"/{LAST}")
        if path.endswith((*UNFINISHED, *skipped)) or (is_end and path not in ended):
            continue
        offset = _have(known.get(path), os.path.join(folder, path), found)
        if offset is None or (offset == 0 and found.st_size > LARGE_BYTES and not path.startswith(ATTEMPT)):
            continue
        lacking.append(_Lacking(is_end, found.st_size - offset, path, offset, found))
    return {**_pieces(folder, sorted(lacking, key=lambda one: one[:3]), budget_bytes), "odd": odd[:100]}


class _Lacking(NamedTuple):
    """A file of which the other side lacks something."""

    is_last: bool
    lack: int
    path: str
    offset: int
    found: os.stat_result


def _ended(folder: str) -> frozenset[str]:
    """The exit records of attempts that are in a run folder."""
    try:
        names = [f"{name}/{LAST}" for name in os.listdir(folder) if name.startswith(ATTEMPT)]
    except OSError:
        return frozenset()
    return frozenset(name for name in names if os.path.lexists(os.path.join(folder, name)))


def _pieces(folder: str, lacking: Sequence[_Lacking], left: int) -> dict[str, Any]:
    """The next bytes of these files, at most `left` of them, and whether that is all."""
    files: dict[str, list[Any]] = {}
    is_whole = True
    for is_last, _, path, offset, found in lacking:
        if left <= 0 or (offset == 0 and left < found.st_size <= SMALL_BYTES) or (is_last and not is_whole):
            is_whole = False
            continue
        data = _bytes(os.path.join(folder, path), found.st_ino, offset, min(left, found.st_size - offset))
        if data is None:
            continue  # replaced or gone since; the next question shows it
        left -= len(data)
        is_whole = is_whole and offset + len(data) >= found.st_size
        encoded = base64.b64encode(data).decode()
        files[path] = [found.st_ino, found.st_size, found.st_mtime_ns, offset, encoded]
    return {"files": files, "is_whole": is_whole}


def _have(known: Sequence[int] | None, path: str, found: os.stat_result) -> int | None:
    """From which byte on to read: 0 for a new or replaced file, None when nothing is lacking."""
    if known is None:
        return 0
    inode, size, modified_ns, head = known
    if inode != found.st_ino or size > found.st_size:
        return 0
    if (size, modified_ns) == (found.st_size, found.st_mtime_ns):
        return None
    begin = _bytes(path, inode, 0, min(size, HEAD_BYTES))
    if begin is None or zlib.crc32(begin) != head:
        return 0
    return size  # no new bytes where it was only touched: that is told too, for a heartbeat is nothing else


def _bytes(path: str, inode: int, offset: int, count: int) -> bytes | None:
    """Bytes of exactly this file; None when another stands there by now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.fstat(descriptor).st_ino != inode:
            return None
        return os.pread(descriptor, count, offset)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _below(folder: str, path: str, depth: int, odd: list[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Regular files below a folder, by name, those of a folder before its folders; folders that vanish are empty."""
    try:
        with os.scandir(os.path.join(folder, path)) as found:
            entries = sorted((one for one in found if not one.name.startswith(".")), key=lambda entry: entry.name)
    except OSError:
        return
    inner = []
    for entry in entries:
        name = f"{path}/{entry.name}" if path else entry.name
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            yield name, status
        elif stat.S_ISDIR(status.st_mode) and depth < DEEPEST:
            inner.append(name)
        else:
            odd.append(name)
    for name in inner:
        yield from _below(folder, name, depth + 1, odd)
