"""What a training script may write its metrics as, and how bytes of it become records. Pure.

A format is a function `(data, state, ended) -> Parsed`: it consumes whole records only, so that the caller can store
`consumed` as the new offset and come back when there is more. Adding a format is one function and one line in FORMATS.
"""

from __future__ import annotations

import csv
import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_LINE_BYTES = 64 * 1024
MAX_STEP = 2**53
_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True, slots=True)
class Record:
    """Some metrics of one step, or an announcement (`event` is then its whole line). `time` is None when not told."""

    step: int
    values: Mapping[str, float] = field(default_factory=dict)
    time: float | None = None
    event: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Parsed:
    """What was understood of some bytes. `rejected` holds the reason for each line that was not.

    `framed` records carry their own length, so that an unfinished one is never mistaken for an endless line.
    """

    records: tuple[Record, ...]
    consumed: int
    lines: int
    rejected: tuple[str, ...] = ()
    state: Mapping[str, Any] | None = None
    framed: bool = False


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
    ends: bytes,
    parse: Callable[[str], Record | None],
    state: Mapping[str, Any] | None = None,
) -> Parsed:
    """Feed whole lines to `parse`; the rest, an unfinished line, is left for later."""
    records: list[Record] = []
    rejected: list[str] = []
    lines = consumed = 0
    for line, end in _whole_lines(data, ends):
        consumed = end
        if not line.strip():
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


def _whole_lines(data: bytes, ends: bytes) -> Iterator[tuple[bytes, int]]:
    """Each finished line without its end, and the offset behind it."""
    start = 0
    for found in re.finditer(b"[" + re.escape(ends) + b"]", data):
        yield data[start : found.start()], found.end()
        start = found.end()


def _jsonl(data: bytes, state: Mapping[str, Any]) -> Parsed:
    """One JSON object a line with `step`, optional `time` and `kind`; every other number is a metric."""
    return _by_lines(data, b"\n", _json_record)


def _json_record(line: str) -> Record:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {line[:60]!r}") from error
    if not isinstance(found, dict) or "step" not in found:
        raise Unreadable(f"no object with a step: {line[:60]!r}")
    step = whole_step(found["step"])
    time = number(found["time"]) if "time" in found else None
    if found.get("kind") == "event":
        return Record(step, time=time, event=found)
    values = {
        name: number(value)
        for name, value in found.items()
        if name not in ("step", "time", "kind") and (_is_metric(value))
    }
    return Record(step, values, time)


def _is_metric(value: object) -> bool:
    """Strings beside the three words, lists and objects are notes of a script, not metrics."""
    if isinstance(value, str):
        return value.strip().lower() in _WORDS
    return isinstance(value, int | float) and not isinstance(value, bool)


def _csv(data: bytes, state: Mapping[str, Any]) -> Parsed:
    """A header line that names `step`, then one row a record; empty cells are left out."""
    header: list[str] = list(state.get("header", ()))

    def row(line: str) -> Record | None:
        cells = next(csv.reader([line]))
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

    parsed = _by_lines(data, b"\n", row)
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

    parsed = _by_lines(data, b"\r\n", search)
    return Parsed(
        parsed.records, parsed.consumed, parsed.lines, parsed.rejected, {"matched": matched, "unmatched": unmatched}
    )


def _tensorboard(data: bytes, state: Mapping[str, Any]) -> Parsed:
    """TensorBoard event files: length-framed records (8-byte length, 4-byte check, body, 4-byte check)."""
    from tensorboard.compat.proto.event_pb2 import Event  # an optional package, needed for this source only

    records: list[Record] = []
    rejected: list[str] = []
    offset = 0
    while len(data) - offset >= 12:
        (length,) = struct.unpack_from("<Q", data, offset)
        if len(data) - offset < length + 16:
            break
        body = data[offset + 12 : offset + 12 + length]
        offset += length + 16
        try:
            event = Event.FromString(body)
        except ValueError as error:
            rejected.append(f"not a TensorBoard record: {error}")
            continue
        values = {value.tag: float(scalar) for value in event.summary.value if (scalar := _scalar(value)) is not None}
        if values:
            records.append(Record(whole_step(event.step), values, event.wall_time))
    return Parsed(tuple(records), offset, len(records) + len(rejected), tuple(rejected), framed=True)


def _scalar(value: Any) -> float | None:
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if value.HasField("tensor") and len(value.tensor.float_val) == 1:
        return float(value.tensor.float_val[0])
    return None


FORMATS: Mapping[str, Format] = {"jsonl": _jsonl, "csv": _csv, "tensorboard": _tensorboard}
