"""What a training script may write its metrics as, and how bytes of it become records. Pure.

A format is a function `(data, state) -> Parsed`: it consumes whole records only, so that the caller can store
`consumed` as the new offset and come back when there is more. Adding a format is one function and one line in FORMATS.
"""

from __future__ import annotations

import csv
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from types import MappingProxyType
from typing import Any, NamedTuple

MAX_LINE_BYTES = 64 * 1024
# Beyond it a step is no exact floating-point number any more, and shares of a budget mean nothing.
MAX_STEP = 2**53
_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_NOT_TOLD = object()


class Record(NamedTuple):
    """Some metrics of one step, or an announcement (`event` is then its whole line). `time` is None when not told.

    A tuple, because one is made for every line that any training writes.
    """

    step: int
    values: Mapping[str, float] = MappingProxyType({})
    time: float | None = None
    event: Mapping[str, Any] | None = None


class Block(NamedTuple):
    """Records of one shape that follow each other, turned into columns: what most of every file is."""

    steps: Sequence[int]
    times: Sequence[float | None]
    columns: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Parsed:
    """What was understood of some bytes. `rejected` holds the reason for each line that was not.

    Records stand in `blocks` or one by one in `records`, never in both; those in `blocks` came first.
    `framed` records carry their own length, so that an unfinished one is never mistaken for an endless line; `needs` is
    then how many bytes the unfinished one takes. `closed` records show by themselves whether they are whole, so the
    last one counts even where a process was killed before it ended the line. In a `strict` format the end of a line is
    a part of the record.
    """

    records: tuple[Record, ...]
    consumed: int
    lines: int
    rejected: tuple[str, ...] = ()
    state: Mapping[str, Any] | None = None
    framed: bool = False
    needs: int = 0
    closed: bool = False
    strict: bool = False
    blocks: tuple[Block, ...] = ()


class Unreadable(ValueError):
    """A record that breaks its format; the message says how."""


Format = Callable[[bytes, Mapping[str, Any]], Parsed]


def format_for(metrics: Mapping[str, Any] | None) -> Format:
    """The format of an arm: `metrics` is its declaration, None for a trainer arm (our own JSON lines)."""
    if metrics is None:
        return _jsonl
    if metrics["source"] == "regex":
        pattern = re.compile(metrics["pattern"])
        return lambda data, state: _regex(pattern, data, state)
    return FORMATS[metrics["source"]]


def number(value: object) -> float:
    """A metric's value: a JSON number or one of the words nan, inf, -inf. Raises Unreadable."""
    if isinstance(value, bool):
        raise Unreadable(f"{value} is not a number")
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    raise Unreadable(f"{value!r:.60} is not a number")


def whole_step(value: object) -> int:
    """A step: a whole number, 0 or more. Raises Unreadable."""
    step = number(value)
    if not math.isfinite(step) or step != int(step) or not 0 <= step <= MAX_STEP:
        raise Unreadable(f"{value!r:.60} is not a step (a whole number, 0 or more)")
    return int(step)


def _number_from_text(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise Unreadable(f"{text!r:.60} is not a number") from error


def _by_lines(
    data: bytes,
    ends: str,
    parse: Callable[[str], Record | None],
    state: Mapping[str, Any] | None = None,
) -> Parsed:
    """Feed whole lines to `parse`; the rest, an unfinished line, is left for later."""
    records: list[Record] = []
    rejected: list[str] = []
    lines = 0
    consumed = max(data.rfind(end.encode()) for end in ends) + 1
    for line in _whole_lines(data[:consumed], ends):
        if not line or line.isspace():
            continue
        lines += 1
        if len(line) > MAX_LINE_BYTES:
            rejected.append(f"a line of {len(line)} bytes (limit {MAX_LINE_BYTES})")
            continue
        try:
            record = parse(line.decode("utf-8", errors="replace"))
        except Unreadable as error:
            rejected.append(str(error))
        else:
            if record is not None:
                records.append(record)
    return Parsed(tuple(records), consumed, lines, tuple(rejected), state)


def _whole_lines(data: bytes, ends: str) -> list[bytes]:
    """The finished lines without their ends, and an empty one behind the last."""
    return data.split(ends.encode()) if len(ends) == 1 else re.split(b"[" + re.escape(ends.encode()) + b"]", data)


def _jsonl(data: bytes, state: Mapping[str, Any]) -> Parsed:
    """One JSON object a line with `step`, optional `time` and `kind`; every other number is a metric."""
    consumed = data.rfind(b"\n") + 1
    objects = _plain_objects(data[:consumed])
    if objects is None:
        return replace(_by_lines(data, "\n", _json_record), closed=True)
    blocks: list[Block] = []
    events: list[Record] = []
    rejected: list[str] = []
    for names, group in groupby(objects, tuple):
        alike = list(group)
        block = _block(names, alike)
        if block is not None:
            blocks.append(block)
            continue
        for found in alike:
            try:
                record = _record(found)
            except Unreadable as error:
                rejected.append(str(error))
                continue
            events.extend([record] if record.event is not None else [])
            blocks.extend(as_blocks([record]))
    return Parsed(tuple(events), consumed, len(objects), tuple(rejected), closed=True, blocks=tuple(blocks))


def as_blocks(records: Iterable[Record]) -> Iterator[Block]:
    """The metrics of records in the order of their arrival."""
    with_values = (record for record in records if record.values)
    for names, group in groupby(with_values, lambda record: tuple(record.values)):
        alike = list(group)
        columns = zip(*(record.values.values() for record in alike), strict=True)
        yield Block(
            [record.step for record in alike],
            [record.time for record in alike],
            dict(zip(names, columns, strict=True)),
        )


def _block(names: tuple[str, ...], objects: Sequence[dict[str, Any]]) -> Block | None:
    """Objects of one shape as columns; None where one of them needs a look of its own."""
    columns = dict(zip(names, zip(*map(dict.values, objects), strict=True), strict=True))
    steps, times = columns.pop("step"), columns.pop("time", None)
    if "event" in columns.pop("kind", ()) or set(map(type, steps)) != {int}:
        return None
    if any(set(map(type, column)) != {float} for column in columns.values()):
        return None
    if min(steps) < 0 or max(steps) > MAX_STEP or (times is not None and set(map(type, times)) != {float}):
        return None
    return Block(steps, (None,) * len(steps) if times is None else times, columns)


def _plain_objects(data: bytes) -> list[dict[str, Any]] | None:
    """The objects of many lines, decoded in one go; None for lines that have to be looked at one by one.

    When every line begins with its only opening brace and ends with a closing one, no object and no list can reach
    into another line (and no string may: a line end inside one is no JSON), so the whole is what each line says alone.
    """
    lines = data.count(b"\n")
    is_plain = (
        data.startswith(b"{")
        and data.count(b"{") == lines == data.count(b"}\n") == data.count(b"\n{") + 1
        and max(map(len, data.split(b"\n"))) <= MAX_LINE_BYTES
    )
    if not is_plain:
        return None
    try:
        found = json.loads(b"[%b]" % data[:-1].replace(b"\n", b",\n"))
    except (ValueError, RecursionError):
        return None
    return found if len(found) == lines and all("step" in one for one in found) else None


def _json_record(line: str) -> Record:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {line[:60]!r}") from error
    if not isinstance(found, dict) or "step" not in found:
        raise Unreadable(f"no object with a step: {line[:60]!r}")
    return _record(found)


def _record(found: dict[str, Any]) -> Record:
    """What one object says. It is taken apart."""
    event = dict(found) if found.get("kind") == "event" else None
    step, time = found.pop("step"), found.pop("time", _NOT_TOLD)
    found.pop("kind", None)
    step, time = whole_step(step), None if time is _NOT_TOLD else number(time)
    if event is not None:
        return Record(step, time=time, event=event)
    return Record(step, {name: number(value) for name, value in found.items() if _is_metric(value)}, time)


def _is_metric(value: object) -> bool:
    """Strings beside the three words, lists and objects are notes of a script, not metrics."""
    if isinstance(value, str):
        return value.strip().lower() in _WORDS
    return isinstance(value, int | float) and not isinstance(value, bool)


def _csv(data: bytes, state: Mapping[str, Any]) -> Parsed:
    """A header line that names `step`, then one row a record; empty cells are left out."""
    header: list[str] = list(state.get("header", ()))

    def row(line: str) -> Record | None:
        try:
            cells = next(csv.reader([line]))
        except csv.Error as error:
            raise Unreadable(f"not CSV ({error}): {line[:60]!r}") from error
        if not header:
            header.extend(cell.strip() for cell in cells)
            if "step" not in header:
                raise Unreadable(f"the header names no step column: {line[:60]!r}")
            return None
        if len(cells) != len(header):
            raise Unreadable(f"{len(cells)} cells under {len(header)} headings: {line[:60]!r}")
        named = {name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip()}
        step = whole_step(_number_from_text(named.pop("step", "")))
        time = _number_from_text(named.pop("time")) if "time" in named else None
        return Record(step, {name: _number_from_text(cell) for name, cell in named.items()}, time)

    parsed = _by_lines(data, "\n", row)
    return Parsed(parsed.records, parsed.consumed, parsed.lines, parsed.rejected, {"header": header})


def _regex(pattern: re.Pattern[str], data: bytes, state: Mapping[str, Any]) -> Parsed:
    """Lines of a log; group `step` and the other named groups become metrics. A progress bar ends lines with CR.

    `state` counts matches and keeps one line that did not match, for the warning about a pattern that never matches.
    """
    matched = int(state.get("matched", 0))
    unmatched = str(state.get("unmatched", ""))

    def search(line: str) -> Record | None:
        nonlocal matched, unmatched
        found = pattern.search(line)
        if found is None:
            unmatched = unmatched or line[:200]
            return None
        matched += 1
        groups = {name: text for name, text in found.groupdict().items() if text is not None}
        step = whole_step(_number_from_text(groups.pop("step", "")))
        return Record(step, {name: _number_from_text(text) for name, text in groups.items()})

    parsed = _by_lines(data, "\r\n", search)
    return replace(parsed, state={"matched": matched, "unmatched": unmatched}, strict=True)


def _tensorboard(data: bytes, state: Mapping[str, Any]) -> Parsed:
    """TensorBoard event files: length-framed records (8-byte length, 4-byte check, body, 4-byte check)."""
    # Optional packages, needed for this source only.
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    records: list[Record] = []
    rejected: list[str] = []
    offset = needs = 0
    while len(data) - offset >= 12:
        (length,) = struct.unpack_from("<Q", data, offset)
        if len(data) - offset < length + 16:
            needs = length + 16
            break
        body = data[offset + 12 : offset + 12 + length]
        offset += length + 16
        try:
            event = Event.FromString(body)
        except DecodeError as error:
            rejected.append(f"not a TensorBoard record: {error}")
            continue
        values = {value.tag: float(scalar) for value in event.summary.value if (scalar := _scalar(value)) is not None}
        try:
            records.extend([Record(whole_step(event.step), values, event.wall_time)] if values else [])
        except Unreadable as error:
            rejected.append(str(error))
    return Parsed(tuple(records), offset, len(records) + len(rejected), tuple(rejected), framed=True, needs=needs)


def _scalar(value: Any) -> float | None:
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if value.HasField("tensor") and len(value.tensor.float_val) == 1:
        return float(value.tensor.float_val[0])
    return None


FORMATS: Mapping[str, Format] = {"jsonl": _jsonl, "csv": _csv, "tensorboard": _tensorboard}
