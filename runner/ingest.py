"""New bytes of a metrics file become records, exactly once.

The caller stores the returned position in the same transaction as the points, so that a crash between two reads
neither loses nor doubles one. Reads local files only; bytes of a remote file are mirrored here first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from runner.metric_formats import MAX_LINE_BYTES, Format, Record

CHUNK_BYTES = 4 * 1024 * 1024

Stamp = Callable[[str], tuple[int, int, int] | None]
Read = Callable[[str, int, int], bytes | None]


@dataclass(frozen=True, slots=True)
class Position:
    """How far one file was read. `skipping` is true inside a line that is too long to be a record."""

    path: str
    inode: int = 0
    offset: int = 0
    skipping: bool = False
    state: Mapping[str, Any] | None = None
    lines: int = 0
    rejected: int = 0
    example: str = ""
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """Records found behind a position, and the position behind them. `restarted` says why reading began at 0 again."""

    records: tuple[Record, ...]
    position: Position
    restarted: str = ""
    more: bool = False


def take(position: Position, stamp: Stamp, read: Read, parse: Format) -> Taken | None:
    """Read at most one chunk behind `position`; None when there is no file or nothing new in it.

    A file that shrank or was replaced is read from 0 again; the key of a point makes the repeats harmless.
    """
    found = stamp(position.path)
    if found is None:
        return None
    inode, size, _modified_ns = found
    restarted = _why_restart(position, inode, size)
    if restarted:
        position = replace(position, offset=0, skipping=False, state=None, restarts=position.restarts + 1)
    position = replace(position, inode=inode)
    if size <= position.offset and not restarted:
        return None
    data = read(position.path, position.offset, CHUNK_BYTES) or b""
    taken = _parse_chunk(position, data, parse)
    return replace(taken, restarted=restarted, more=taken.position.offset < size and len(data) == CHUNK_BYTES)


def _why_restart(position: Position, inode: int, size: int) -> str:
    if position.inode == 0:
        return ""
    if inode != position.inode:
        return "the file was replaced"
    if size < position.offset:
        return f"the file shrank from {position.offset} to {size} bytes"
    return ""


def _parse_chunk(position: Position, data: bytes, parse: Format) -> Taken:
    skipped = 0
    if position.skipping:
        end = _line_end(data)
        if end < 0:
            return Taken((), replace(position, offset=position.offset + len(data)))
        skipped = end + 1
    parsed = parse(data[skipped:], position.state or {})
    consumed = skipped + parsed.consumed
    rest = len(data) - consumed
    too_long = not parsed.framed and rest > MAX_LINE_BYTES and _line_end(data[consumed:]) < 0
    rejected = list(parsed.rejected)
    if too_long:
        rejected.append(f"a line of more than {MAX_LINE_BYTES} bytes")
        consumed = len(data)
    return Taken(
        parsed.records,
        replace(
            position,
            offset=position.offset + consumed,
            skipping=too_long,
            state=parsed.state,
            lines=position.lines + parsed.lines + int(too_long),
            rejected=position.rejected + len(rejected),
            example=position.example or (rejected[0][:300] if rejected else ""),
        ),
    )


def _line_end(data: bytes) -> int:
    ends = [at for at in (data.find(b"\n"), data.find(b"\r")) if at >= 0]
    return min(ends, default=-1)
