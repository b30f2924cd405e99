"""Writing points: the records of one read, and the position behind them, in the caller's one transaction.

The path that every point takes, so it works on whole columns and speaks to the driver directly: what a training writes
costs little more than the database itself takes for it.
"""

from __future__ import annotations

import json
import math
import operator
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, repeat
from typing import cast

from sqlalchemy import Connection

from runner.ingest import Position, Taken, collector_paused
from runner.metric_formats import Record, as_blocks
from runner.store.best import note_points
from runner.store.opening import driver_of


@dataclass(frozen=True, slots=True)
class Column:
    """Points of one name in the order of their arrival: steps, values, times (seconds since the epoch)."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    times: Sequence[float]


@dataclass(slots=True)
class Written:
    """What one read added: points, the new ones by name, announcements, the position as stored, and how many points
    contradicted stored ones."""

    position: Position
    points: int = 0
    contradicted: int = 0
    example: str = ""
    fresh: list[Column] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)


@dataclass(slots=True)
class _Series:
    """One row of `series`; `id` is None before it is stored."""

    id: int | None
    last_step: int


def read_position(connection: Connection, run: str, attempt: int, path: str) -> Position:
    """How far a file was read before, by this attempt or by an earlier one that wrote to the same file."""
    row = (
        driver_of(connection)
        .execute(
            "SELECT attempt, inode, offset, skipping, state, lines, rejected, example, restarts, head "
            "FROM files WHERE run = ? AND attempt <= ? AND path = ? ORDER BY attempt DESC LIMIT 1",
            (run, attempt, path),
        )
        .fetchone()
    )
    if row is None:
        return Position(path)
    found, inode, offset, skipping, state, lines, rejected, example, restarts, head = row
    where = Position(path, inode, offset, bool(skipping), None if state is None else json.loads(state), head=head)
    if found < attempt:
        return where
    return replace(where, lines=lines, rejected=rejected, example=example, restarts=restarts)


def has_points(connection: Connection, run: str, attempt: int) -> bool:
    """Whether anything of an attempt was stored so far."""
    query = "SELECT 1 FROM series WHERE run = ? AND attempt = ? LIMIT 1"
    return driver_of(connection).execute(query, (run, attempt)).fetchone() is not None


def names_of(connection: Connection, run: str) -> frozenset[str]:
    """The metrics that a run has reported so far."""
    rows = driver_of(connection).execute("SELECT DISTINCT name FROM series WHERE run = ?", (run,))
    return frozenset(name for (name,) in rows)


def write_taken(connection: Connection, run: str, attempt: int, taken: Taken, arrival: float) -> Written:
    """Store points and position of one read. A repeat is ignored; a point that differs from the stored one is rejected
    and counted. `arrival` (seconds since the epoch) stands in where a record tells no time."""
    with collector_paused():
        return _write(connection, run, attempt, taken, arrival)


def _write(connection: Connection, run: str, attempt: int, taken: Taken, arrival: float) -> Written:
    driver = driver_of(connection)
    written = Written(taken.position, events=[record for record in taken.records if record.event is not None])
    known = _series_of(driver, run, attempt)
    rows: list[Iterator[tuple[int, int, float, float]]] = []
    for column in _columns(taken, arrival):
        series = known.get(column.name) or _Series(None, -1)
        fresh = column if _is_new(series, column.steps) else _fresh(driver, series, column, written)
        if fresh.steps:
            identifier = _store_series(driver, run, attempt, series, fresh)
            rows.append(zip(repeat(identifier), fresh.steps, fresh.values, fresh.times))
            written.fresh.append(fresh)
            written.points += len(fresh.steps)
    if rows:
        # The driver stores nan as NULL, which is what the table means by it.
        driver.executemany(
            "INSERT INTO points (series, step, value, time) VALUES (?, ?, ?, ?)", chain.from_iterable(rows)
        )
        note_points(connection, run, attempt, ((one.name, one.steps, one.values) for one in written.fresh))
    position = taken.position
    written.position = replace(
        position, rejected=position.rejected + written.contradicted, example=position.example or written.example
    )
    _store_position(driver, run, attempt, written.position)
    return written


def storable(text: str) -> str:
    """Text that a database takes: half a character, which JSON can spell, becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _columns(taken: Taken, arrival: float) -> Iterable[Column]:
    """The points by name, in the order of their arrival: because of two values for one step the earlier one holds."""
    found: dict[str, Column] = {}
    own: set[str] = set()  # columns that are lists of ours and may grow
    for steps, told, columns in chain(taken.blocks, as_blocks(taken.records)):
        times = [arrival if time is None or not math.isfinite(time) else time for time in told]
        for told_name, values in columns.items():
            name = storable(told_name)
            known = found.get(name)
            if known is None:
                found[name] = Column(name, steps, values, times)
                continue
            if name not in own:
                own.add(name)
                known = found[name] = Column(name, list(known.steps), list(known.values), list(known.times))
            for column, more in (known.steps, steps), (known.values, values), (known.times, times):
                cast("list[float]", column).extend(more)
    return found.values()


def _is_new(series: _Series, steps: Sequence[int]) -> bool:
    """The usual case: every step lies behind the one before it and behind everything stored."""
    return steps[0] > series.last_step and all(map(operator.lt, steps, islice(steps, 1, None)))


def _fresh(driver: sqlite3.Connection, series: _Series, column: Column, written: Written) -> Column:
    """What of a column is not stored yet; the first value of a step holds."""
    stored = _stored_values(driver, series, min(column.steps))
    fresh: dict[int, tuple[float, float]] = {}
    for step, value, time in zip(column.steps, column.values, column.times, strict=True):
        known = fresh[step][0] if step in fresh else stored.get(step, value)
        if not _same(known, value):
            written.contradicted += 1
            written.example = written.example or f"{column.name} at step {step}: {value} after {known}"
        elif step not in fresh and step not in stored:
            fresh[step] = (value, time)
    return Column(
        column.name, list(fresh), [value for value, _ in fresh.values()], [time for _, time in fresh.values()]
    )


def _series_of(driver: sqlite3.Connection, run: str, attempt: int) -> dict[str, _Series]:
    rows = driver.execute("SELECT name, id, last_step FROM series WHERE run = ? AND attempt = ?", (run, attempt))
    return {name: _Series(identifier, last_step) for name, identifier, last_step in rows}


def _store_series(driver: sqlite3.Connection, run: str, attempt: int, series: _Series, fresh: Column) -> int:
    """Bring the row of a series up to its new points; returns its number."""
    last_step = max(fresh.steps)
    last = fresh.steps.index(last_step)
    end = (last_step, fresh.values[last], fresh.times[last])
    if series.id is None:
        first_step = min(fresh.steps)
        first_time = fresh.times[fresh.steps.index(first_step)]
        cursor = driver.execute(
            "INSERT INTO series (run, attempt, name, points, first_step, first_time, last_step, last_value, last_time) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (run, attempt, fresh.name, len(fresh.steps), first_step, first_time, *end),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid
    if last_step >= series.last_step:
        driver.execute(
            "UPDATE series SET points = points + ?, last_step = ?, last_value = ?, last_time = ? WHERE id = ?",
            (len(fresh.steps), *end, series.id),
        )
    else:
        driver.execute("UPDATE series SET points = points + ? WHERE id = ?", (len(fresh.steps), series.id))
    return series.id


def _store_position(driver: sqlite3.Connection, run: str, attempt: int, position: Position) -> None:
    driver.execute(
        "INSERT OR REPLACE INTO files "
        "(run, attempt, path, inode, offset, skipping, state, lines, rejected, example, restarts, head) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            run, attempt, position.path, position.inode, position.offset, position.skipping,
            None if position.state is None else json.dumps(position.state), position.lines, position.rejected,
            position.example, position.restarts, position.head,
        ),
    )  # fmt: skip


def _stored_values(driver: sqlite3.Connection, series: _Series, first_step: int) -> dict[int, float]:
    """Stored values from a step on; empty in the usual case that all steps are new."""
    if series.id is None or first_step > series.last_step:
        return {}
    rows = driver.execute("SELECT step, value FROM points WHERE series = ? AND step >= ?", (series.id, first_step))
    return {step: math.nan if value is None else value for step, value in rows}


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
