"""New bytes of a metrics file become records, exactly once.

The caller stores the returned position in the same transaction as the points, so that a crash between two reads
neither loses nor doubles one. Reads local files only; bytes of a remote file are mirrored here first.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from runner.metric_formats import MAX_LINE_BYTES, Block, Format, Parsed, Record

CHUNK_BYTES = 4 * 1024 * 1024
HEAD_BYTES = 256

FileStamp = tuple[int, int, int]
"""(inode, size in bytes, modification time in ns)."""

Stamp = Callable[[str], FileStamp | None]
Read = Callable[[str, int, int], bytes | None]


@dataclass(frozen=True, slots=True)
class Position:
    """How far one file was read. `skipping` is true inside a line that is too long to be a record.

    `head` stands for the first bytes of the file, which tell one that was written anew ('' when none was read).
    """

    path: str
    inode: int = 0
    offset: int = 0
    skipping: bool = False
    state: Mapping[str, Any] | None = None
    lines: int = 0
    rejected: int = 0
    example: str = ""
    restarts: int = 0
    head: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """Records found behind a position (as in Parsed), and the position behind them. `restarted` says why reading began
    at 0 again, `more` that a whole chunk was read and the file goes on, `stamp` what the file looked like before, and
    `size_bytes` how much was read."""

    records: tuple[Record, ...]
    position: Position
    restarted: str = ""
    more: bool = False
    stamp: FileStamp | None = None
    blocks: tuple[Block, ...] = ()
    size_bytes: int = 0

    def each(self) -> Iterator[Record]:
        """Every record, one by one, for whoever must look at each of them."""
        for steps, times, columns in self.blocks:
            for index, step in enumerate(steps):
                yield Record(step, {name: column[index] for name, column in columns.items()}, times[index])
        yield from self.records


@contextmanager
def collector_paused() -> Iterator[None]:
    """Let nobody look for cycles meanwhile: a chunk becomes a hundred thousand objects that have none, and looking
    through them again and again would take a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class End(StrEnum):
    """How whoever wrote a file has ended: by itself, or killed, so that its last line may be cut short."""

    COMPLETE = "complete"
    CUT = "cut"


class Tails:
    """Where metrics files were read to and what they looked like then, so that one that did not change costs a look.

    What it remembers is what is stored; whoever could not store what was taken must `forget`.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], dict[str, tuple[Position, FileStamp | None]]] = {}

    def take(
        self,
        run: str,
        attempt: int,
        path: str,
        stored: Callable[[], Position],
        stamp: Stamp,
        read: Read,
        parse: Format,
        end: End | None = None,
    ) -> Taken | None:
        """What is new in a file of an attempt, at most one chunk; None when there is nothing. `stored` is asked for
        the position of a file that was not read before, `end` says how its writer ended, None while that lives."""
        known = self._known.setdefault((run, attempt), {})
        found = stamp(path)
        if found is None:
            return None
        if path not in known:
            known[path] = (stored(), None)
        position, seen = known[path]
        if found == seen and (end is None or position.offset >= found[1]):
            return None
        taken = take(position, lambda _path: found, read, parse, end)
        if taken is None or (taken.position == position and not taken.restarted):
            known[path] = (position, found)
            return None
        return taken

    def keep(self, run: str, attempt: int, taken: Taken, stored: Position) -> None:
        """Remember a position that was stored; a file of which more is to be read counts as changed."""
        self._known.setdefault((run, attempt), {})[stored.path] = (stored, None if taken.more else taken.stamp)

    def forget(self, run: str, attempt: int) -> None:
        """Ask for the stored positions of an attempt the next time."""
        self._known.pop((run, attempt), None)


def take(position: Position, stamp: Stamp, read: Read, parse: Format, end: End | None = None) -> Taken | None:
    """Read at most one chunk behind `position`; None when there is no file or nothing new in it.

    A file that shrank, was replaced or begins otherwise than before is read from 0 again; the key of a point makes the
    repeats harmless. A last line without its end waits until the writer has ended (`end`); then it counts when it must
    be whole, and is rejected, not passed over, when it may have been cut.
    """
    found = stamp(position.path)
    if found is None:
        return None
    inode, size, _modified_ns = found
    restarted = _why_restart(position, inode, size) or _why_anew(position, read)
    if restarted:
        position = replace(position, offset=0, skipping=False, state=None, restarts=position.restarts + 1, head="")
    position = replace(position, inode=inode)
    if size <= position.offset and not restarted:
        return None
    data = read(position.path, position.offset, CHUNK_BYTES) or b""
    with collector_paused():
        taken = _parse_chunk(position, data, parse, size, end)
    if position.offset == 0:
        taken = replace(taken, position=replace(taken.position, head=_head(data[: taken.position.offset])))
    more = taken.position.offset < size and len(data) == CHUNK_BYTES
    return replace(taken, restarted=restarted, more=more, stamp=found, size_bytes=len(data))


def _why_restart(position: Position, inode: int, size: int) -> str:
    if position.inode == 0:
        return ""
    if inode != position.inode:
        return "the file was replaced"
    if size < position.offset:
        return f"the file shrank from {position.offset} to {size} bytes"
    return ""


def _why_anew(position: Position, read: Read) -> str:
    if not position.head:
        return ""
    length = int(position.head.partition(":")[0])
    same = _head(read(position.path, 0, length) or b"") == position.head
    return "" if same else "the file was written anew"


def _head(data: bytes) -> str:
    first = data[:HEAD_BYTES]
    return f"{len(first)}:{hashlib.blake2b(first, digest_size=8).hexdigest()}" if first else ""


def _parse_chunk(position: Position, data: bytes, parse: Format, size: int, end: End | None) -> Taken:
    skipped = 0
    if position.skipping:
        line_end = _line_end(data)
        if line_end < 0:
            return Taken((), replace(position, offset=position.offset + len(data)))
        skipped = line_end + 1
    parsed = parse(data[skipped:], position.state or {})
    consumed = skipped + parsed.consumed
    left = size - position.offset - consumed
    # A whole chunk without a record's end: the line ends that are in it are none of this format.
    is_endless = _line_end(data[consumed:]) < 0 or (consumed == 0 and len(data) == CHUNK_BYTES)
    too_long = not parsed.framed and len(data) - consumed > MAX_LINE_BYTES and is_endless
    complaint = ""
    if too_long:
        complaint = f"a line of more than {MAX_LINE_BYTES} bytes"
        consumed = len(data)
    elif CHUNK_BYTES < parsed.needs <= left:
        complaint = f"a record of {parsed.needs} bytes (limit {CHUNK_BYTES})"
        consumed += parsed.needs
    elif end is not None and parsed.needs > max(left, CHUNK_BYTES):
        complaint = f"cut off at its end: a record of {parsed.needs} bytes"
        consumed += left
    elif end is not None and consumed < len(data) and position.offset + len(data) >= size:
        parsed, complaint = _with_rest(parsed, data[consumed:], parse, end)
        consumed = len(data)
    rejected = [*parsed.rejected, complaint] if complaint else parsed.rejected
    return Taken(
        parsed.records,
        replace(
            position,
            offset=position.offset + consumed,
            skipping=too_long,
            state=parsed.state,
            lines=position.lines + parsed.lines + bool(complaint),
            rejected=position.rejected + len(rejected),
            example=position.example or (rejected[0][:300] if rejected else ""),
        ),
        blocks=parsed.blocks,
    )


def _with_rest(parsed: Parsed, rest: bytes, parse: Format, end: End) -> tuple[Parsed, str]:
    """What was parsed with the last line, which has no end; and a complaint where that cannot be believed."""
    if parsed.framed:
        return parsed, f"cut off at its end: {rest[:60]!r}"
    last = parse(rest + b"\n", parsed.state or {})
    if parsed.strict or (not parsed.closed and end is End.CUT):
        is_metric = last.records or last.blocks or last.rejected  # half a progress bar is none
        return parsed, f"cut off at its end: {rest[:60]!r}" if is_metric else ""
    late = Taken(last.records, Position(""), blocks=last.blocks)
    return replace(
        last,
        records=(*parsed.records, *(late.each() if parsed.records else last.records)),
        blocks=parsed.blocks if parsed.records else (*parsed.blocks, *last.blocks),
        lines=parsed.lines + last.lines,
        rejected=(*parsed.rejected, *last.rejected),
    ), ""


def _line_end(data: bytes) -> int:
    ends = [at for at in (data.find(b"\n"), data.find(b"\r")) if at >= 0]
    return min(ends, default=-1)
