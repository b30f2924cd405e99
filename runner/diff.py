"""What differs between two runs: configuration, code, where they ran, and how they came out. Pure.

Reads like a report for one pair: nothing is judged, values stand side by side.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.screen import printable

NOT_SET = "(not set)"
# Keys of the resolved document that say which run it is; the two runs are named above the comparison. The seed is not
# one of them: it can change the result.
NAMES = frozenset({"study", "arm", "run"})
# Entries of the provenance that say the same as something shown already, or where a file happened to lie.
_SHOWN_ELSEWHERE = frozenset({"arm_files", "code"})
_NARROWEST = 12


@dataclass(frozen=True, slots=True)
class Side:
    """One run as `diff` sees it.

    `config` is its resolved document and `provenance` where it came from, both in dotted keys. `files` maps the names
    of its frozen code to SHA-256 (hex); None when the frozen copy is not there to be read. `outcome` maps what is shown
    about its end to values.
    """

    name: str
    id: str
    config: Mapping[str, Any]
    code_hash: str
    files: Mapping[str, str] | None
    provenance: Mapping[str, Any]
    outcome: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that has two values; `in_a` and `in_b` tell a value that is null from one that is not there."""

    key: str
    a: Any
    b: Any
    in_a: bool = True
    in_b: bool = True

    @property
    def differs(self) -> bool:
        """Whether the two values are not the same; 1 and "1" are not."""
        return self.in_a != self.in_b or _json(self.a) != _json(self.b)

    @property
    def texts(self) -> tuple[str, str]:
        """Both values as one line each; text is quoted only where the two would look alike."""
        quoted = self.differs and _text(self.a) == _text(self.b)
        a, b = (printable(_json(value)) if quoted else _text(value) for value in (self.a, self.b))
        return (a if self.in_a else NOT_SET, b if self.in_b else NOT_SET)


@dataclass(frozen=True, slots=True)
class CodeChange:
    """The frozen code: both hashes, and the files that were changed or that only one side has.

    `unknown` says why files could not be compared; empty when they were.
    """

    a: str
    b: str
    changed: tuple[str, ...] = ()
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    unknown: str = ""

    @property
    def differs(self) -> bool:
        """Whether the two runs could import different code."""
        return self.a != self.b


@dataclass(frozen=True, slots=True)
class Diff:
    """Two runs compared. `outcome` holds every row, equal or not; the others only what differs."""

    a: str
    b: str
    config: tuple[Entry, ...]
    code: CodeChange
    provenance: tuple[Entry, ...]
    outcome: tuple[Entry, ...] = field(default=())

    @property
    def is_empty(self) -> bool:
        """Whether nothing that was asked of the two runs differs (their outcomes may)."""
        return not (self.config or self.code.differs or self.provenance)


def compare(a: Side, b: Side) -> Diff:
    """What differs between two runs, keys sorted."""
    return Diff(
        a=f"{a.name} ({a.id})",
        b=f"{b.name} ({b.id})",
        config=_differing(*(_without(side.config, NAMES) for side in (a, b))),
        code=_code(a, b),
        provenance=_differing(*(_without(side.provenance, _SHOWN_ELSEWHERE) for side in (a, b))),
        outcome=tuple(_entry(key, a.outcome, b.outcome) for key in dict.fromkeys([*a.outcome, *b.outcome])),
    )


def as_document(diff: Diff) -> dict[str, Any]:
    """The comparison as plain values, for `--json`."""
    return {
        "a": diff.a,
        "b": diff.b,
        "same": diff.is_empty,
        "config": [_plain(entry) for entry in diff.config],
        "code": {
            "a": diff.code.a,
            "b": diff.code.b,
            "changed": list(diff.code.changed),
            "only_a": list(diff.code.only_a),
            "only_b": list(diff.code.only_b),
            "unknown": diff.code.unknown,
        },
        "provenance": [_plain(entry) for entry in diff.provenance],
        "outcome": {entry.key: {"a": entry.a, "b": entry.b} for entry in diff.outcome},
    }


def render(diff: Diff, width: int = 80) -> Iterator[str]:
    """The comparison as lines of at most `width` characters, safe for a terminal."""
    yield from (f"{side}  {text}" for side, text in (("A", printable(diff.a)), ("B", printable(diff.b))))
    if diff.is_empty:
        yield ""
        yield "nothing differs: same configuration, same code, same environment"
    for title, entries in (("configuration", diff.config), ("environment", diff.provenance)):
        if entries:
            yield ""
            yield title
            yield from _rows(entries, width)
    if diff.code.differs:
        yield ""
        yield f"code  {diff.code.a[:12]} and {diff.code.b[:12]}"
        yield from _code_lines(diff.code)
    yield ""
    yield "outcome"
    yield from _table([entry for entry in diff.outcome if any(text != "null" for text in entry.texts)], width)


def _without(values: Mapping[str, Any], left_out: frozenset[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key.partition(".")[0] not in left_out}


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Entry, ...]:
    entries = (_entry(key, a, b) for key in sorted({*a, *b}))
    return tuple(entry for entry in entries if entry.differs)


def _entry(key: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Entry:
    return Entry(key, a.get(key), b.get(key), key in a, key in b)


def _code(a: Side, b: Side) -> CodeChange:
    if a.code_hash == b.code_hash:
        return CodeChange(a.code_hash, b.code_hash)
    gone = [side.name for side in (a, b) if side.files is None]
    if a.files is None or b.files is None:
        return CodeChange(a.code_hash, b.code_hash, unknown=f"the frozen copy of {' and '.join(gone)} is not there")
    common = a.files.keys() & b.files.keys()
    return CodeChange(
        a.code_hash,
        b.code_hash,
        changed=tuple(sorted(name for name in common if a.files[name] != b.files[name])),
        only_a=tuple(sorted(a.files.keys() - common)),
        only_b=tuple(sorted(b.files.keys() - common)),
    )


def _code_lines(code: CodeChange) -> Iterator[str]:
    if code.unknown:
        yield f"  {printable(code.unknown)}"
    for word, names in (("changed", code.changed), ("only in A", code.only_a), ("only in B", code.only_b)):
        yield from (f"  {word:<9}  {printable(name)}" for name in names)


def _rows(entries: Sequence[Entry], width: int) -> Iterator[str]:
    """One line a key where both values fit beside it, else the key with the two values below it."""
    keys, room = _columns([entry.key for entry in entries], width)
    for entry in entries:
        key, (a, b) = printable(entry.key), entry.texts
        if len(key) <= keys and max(len(a), len(b)) <= room:
            yield f"  {key:<{keys}}  {a:<{room}}  {b}".rstrip()
        else:
            yield f"  {_cut(key, width - 2)}"
            yield from (line for side, text in (("A", a), ("B", b)) for line in _folded(side, text, width - 6))


def _folded(side: str, text: str, room: int) -> Iterator[str]:
    """A long value in full: what differs may stand at its very end."""
    for start in range(0, max(1, len(text)), room):
        yield f"    {' ' if start else side} {text[start : start + room]}".rstrip()


def _table(entries: Sequence[Entry], width: int) -> Iterator[str]:
    keys, room = _columns([entry.key for entry in entries], width)
    for entry in entries:
        a, b = (_cut(_short(value), room) for value in (entry.a, entry.b))
        yield f"  {_cut(printable(entry.key), keys):<{keys}}  {a:<{room}}  {b}".rstrip()


def _columns(keys: Sequence[str], width: int) -> tuple[int, int]:
    """Widths of the column of keys and of each of the two columns of values."""
    longest = max((len(printable(key)) for key in keys), default=0)
    column = min(longest, max(_NARROWEST, width // 2))
    return column, max(_NARROWEST, (width - 2 - column - 4) // 2)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(1, width - 1)]}…"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _text(value: Any) -> str:
    return printable(value if isinstance(value, str) else _json(value))


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else _text(value)


def _plain(entry: Entry) -> dict[str, Any]:
    found = {"key": entry.key}
    return {**found, **({"a": entry.a} if entry.in_a else {}), **({"b": entry.b} if entry.in_b else {})}
