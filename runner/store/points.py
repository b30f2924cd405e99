"""Writing points: the records of one read, and the position behind them, in the caller's one transaction."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from runner.ingest import Position, Taken
from runner.metric_formats import Record
from runner.store import tables


@dataclass(slots=True)
class Written:
    """What one read added: points by name, announcements, and how many points contradicted stored ones."""

    points: int = 0
    contradicted: int = 0
    example: str = ""
    events: list[Record] = field(default_factory=list)


def read_position(connection: Connection, run: str, attempt: int, path: str) -> Position:
    """How far a file was read before, by this attempt or by an earlier one that wrote to the same file."""
    files = tables.files
    row = connection.execute(
        select(files)
        .where(files.c.run == run, files.c.attempt <= attempt, files.c.path == path)
        .order_by(files.c.attempt.desc())
    ).first()
    if row is None:
        return Position(path)
    if row.attempt < attempt:
        return Position(path, row.inode, row.offset, row.skipping, row.state)
    return Position(
        path, row.inode, row.offset, row.skipping, row.state, row.lines, row.rejected, row.example, row.restarts
    )


def write_taken(connection: Connection, run: str, attempt: int, taken: Taken, arrival: float) -> Written:
    """Store points and position of one read. A repeat is ignored; a point that differs from the stored one is rejected
    and counted. `arrival` (seconds since the epoch) stands in where a record tells no time."""
    written = Written(events=[record for record in taken.records if record.event is not None])
    for name, points in _by_name(taken.records, arrival).items():
        _write_series(connection, run, attempt, name, points, written)
    position = taken.position
    row = {
        "inode": position.inode,
        "offset": position.offset,
        "skipping": position.skipping,
        "state": position.state,
        "lines": position.lines,
        "rejected": position.rejected + written.contradicted,
        "example": position.example or written.example,
        "restarts": position.restarts,
    }
    connection.execute(
        upsert(tables.files)
        .values(run=run, attempt=attempt, path=position.path, **row)
        .on_conflict_do_update(index_elements=["run", "attempt", "path"], set_=row)
    )
    return written


def _by_name(records: Iterable[Record], arrival: float) -> dict[str, list[tuple[int, float, float]]]:
    grouped: dict[str, list[tuple[int, float, float]]] = {}
    for record in records:
        time = arrival if record.time is None or not math.isfinite(record.time) else record.time
        for name, value in record.values.items():
            grouped.setdefault(name, []).append((record.step, value, time))
    return grouped


def _write_series(
    connection: Connection, run: str, attempt: int, name: str, points: list[tuple[int, float, float]], written: Written
) -> None:
    series = tables.series
    row = connection.execute(
        select(series).where(series.c.run == run, series.c.attempt == attempt, series.c.name == name)
    ).one_or_none()
    stored = {} if row is None else _stored_values(connection, row.id, row.last_step, points)
    fresh: dict[int, tuple[float, float]] = {}
    for step, value, time in points:
        known = fresh[step][0] if step in fresh else stored.get(step, value)
        if not _same(known, value):
            written.contradicted += 1
            written.example = written.example or f"{name} at step {step}: {value} after {known}"
        elif step not in fresh and step not in stored:
            fresh[step] = (value, time)
    if not fresh:
        return
    last_step = max(fresh)
    last = {
        "last_step": last_step,
        "last_value": _or_null(fresh[last_step][0]),
        "last_time": fresh[last_step][1],
    }
    if row is None:
        first_step = min(fresh)
        first = {"first_step": first_step, "first_time": fresh[first_step][1]}
        result = connection.execute(
            insert(series).values(run=run, attempt=attempt, name=name, points=len(fresh), **first, **last)
        )
        assert result.inserted_primary_key is not None
        identifier = result.inserted_primary_key[0]
    else:
        identifier = row.id
        change = last if last_step >= row.last_step else {}
        connection.execute(
            update(series).where(series.c.id == identifier).values(points=series.c.points + len(fresh), **change)
        )
    connection.execute(
        insert(tables.points),
        [
            {"series": identifier, "step": step, "value": _or_null(value), "time": time}
            for step, (value, time) in fresh.items()
        ],
    )
    written.points += len(fresh)


def _stored_values(
    connection: Connection, series: int, last_step: int, points: list[tuple[int, float, float]]
) -> dict[int, float]:
    """Stored values among the steps that arrived; empty in the usual case that all of them are new."""
    lowest = min(step for step, _, _ in points)
    if lowest > last_step:
        return {}
    rows = connection.execute(
        select(tables.points.c.step, tables.points.c.value).where(
            tables.points.c.series == series, tables.points.c.step >= lowest
        )
    )
    return {step: math.nan if value is None else value for step, value in rows}


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value
