"""A study as five plain tables, row by row: what `export` writes as CSV and what the Python door returns as columns.

Points are streamed: however many a study holds, a few thousand rows are in memory. Values of a row are text, int, float
(nan and the infinities as they are) or None; whatever has structure is JSON text. The order of the rows is that of the
report: arms as launched, seeds, names, steps; events and verdicts in the order they were written.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from runner.judge.best import best_point
from runner.records import AttemptKind
from runner.store import tables
from runner.store.curves import as_series, read_curves

Values = tuple[Any, ...]
Point = tuple[int, int, float, float]
"""Step, attempt, value, time."""

ROWS_AT_ONCE = 2000
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "runs": (
        "run", "arm", "seed", "generation", "superseded_by", "baseline", "title", "state", "rule", "reason", "health",
        "step", "steps_total", "primary", "last_step", "last", "best_step", "best", "points", "rejected_lines",
        "attempts", "code_hash", "created", "changed", "overridden", "parent", "parent_step",
    ),
    "attempts": (
        "run", "attempt", "kind", "phase", "host", "slot", "resumed_from", "stop_reason", "cause", "exit_code",
        "signal", "failure", "max_rss_mib", "created", "started", "ended",
    ),
    "points": ("run", "attempt", "name", "step", "value", "time"),
    "events": ("time", "run", "attempt", "step", "event", "reason", "data"),
    "verdicts": ("run", "attempt", "time", "health", "action", "rule", "step", "reason", "findings", "as_of"),
}  # fmt: skip
"""The tables and their columns. Times are seconds since the epoch, memory is MiB; `run` is the id of 8 hex digits.

`overridden` is a JSON list of the rules that a person has overruled for a run, None without any. `parent` is the run
that a rescued one goes on from and `parent_step` the step of the checkpoint that it began with, else None.
"""


def rows_of(connection: Connection, study: str, table: str, names: Collection[str] | None = None) -> Iterator[Values]:
    """The rows of one table of a study; `names` keeps only the points of these metrics.

    Runs, attempts, events and verdicts cover every generation, points the newest ones, as the report does.
    """
    if table == "points":
        return _points(connection, study, names)
    read: Mapping[str, Callable[[Connection, str], Iterator[Values]]] = {
        "runs": _runs,
        "attempts": _attempts,
        "events": _events,
        "verdicts": _verdicts,
    }
    return read[table](connection, study)


def joined_points(parts: Iterable[Iterable[Point]], starts: Mapping[int, int]) -> Iterator[Point]:
    """The one view of a metric over the attempts of a run, as a stream: the same points as runner.store.curves.join.

    Each part is one attempt's points by step. `starts` maps every attempt of the run, also those without a point here,
    to the step up to which earlier attempts still count. At a step the last attempt that started before it cuts off all
    earlier ones; of the others the first that has a point there is the one that counts.
    """
    if len(starts) == 1:  # the usual case, worth its line: nothing to join, and twice as fast
        yield from heapq.merge(*parts)
        return
    latest_first = sorted(starts.items(), reverse=True)
    for step, candidates in groupby(heapq.merge(*parts), key=itemgetter(0)):
        cut = next((attempt for attempt, start in latest_first if start < step), 0)
        found = next((point for point in candidates if point[1] >= cut), None)
        if found is not None:
            yield found


def _points(connection: Connection, study: str, names: Collection[str] | None) -> Iterator[Values]:
    for run in _ordered_runs(connection, study):
        if run.superseded_by is not None:
            continue
        starts = _starts(connection, run.run)
        for name, series in _series(connection, run.run, names).items():
            parts = [_stored(connection, series[attempt], attempt) for attempt in sorted(series) if attempt in starts]
            for step, attempt, value, time in joined_points(parts, starts):
                yield run.id, attempt, name, step, value, time


def _ordered_runs(connection: Connection, study: str) -> list[Row[Any]]:
    runs = tables.runs
    query = (
        select(runs.c.run, runs.c.id, runs.c.superseded_by)
        .where(runs.c.study == study)
        .order_by(runs.c.arm_order, runs.c.seed, runs.c.created)
    )
    return list(connection.execute(query))


def _starts(connection: Connection, run: str) -> dict[int, int]:
    """An evaluation or an autopsy cuts nothing off: it only adds what was missing."""
    attempts = tables.attempts
    rows = connection.execute(
        select(attempts.c.attempt, attempts.c.kind, attempts.c.resumed_from).where(attempts.c.run == run)
    )
    never = 2**62
    return {number: never if kind != AttemptKind.TRAIN else (start or 0) for number, kind, start in rows}


def _series(connection: Connection, run: str, names: Collection[str] | None) -> dict[str, dict[int, int]]:
    """Name -> attempt -> the series that holds its points; names sorted."""
    series = tables.series
    found: dict[str, dict[int, int]] = {}
    query = select(series.c.name, series.c.attempt, series.c.id).where(series.c.run == run)
    for name, attempt, identifier in connection.execute(query):
        if names is None or name in names:
            found.setdefault(name, {})[attempt] = identifier
    return dict(sorted(found.items()))


def _stored(connection: Connection, series: int, attempt: int) -> Iterator[Point]:
    points = tables.points
    query = select(points.c.step, points.c.value, points.c.time).where(points.c.series == series)
    for row in _streamed(connection, query.order_by(points.c.step)):
        step, value, time = row
        yield step, attempt, float("nan") if value is None else value, time


def _streamed(connection: Connection, query: Select[*tuple[Any, ...]]) -> Iterator[Row[*tuple[Any, ...]]]:
    return iter(connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}))


def _runs(connection: Connection, study: str) -> Iterator[Values]:
    runs = tables.runs
    for one in _ordered_runs(connection, study):
        row = connection.execute(select(runs).where(runs.c.run == one.run)).one()
        points, step = _amounts(connection, row.run)
        primary, last, best = _primary(connection, row)
        yield (
            row.id, row.arm, row.seed, row.generation, row.superseded_by, row.arm_document.get("baseline"),
            row.arm_document.get("title"), row.state, row.rule or None, row.reason, row.health, step, row.steps_total,
            primary, *last, *best, points, _rejected(connection, row.run), len(_starts(connection, row.run)),
            row.snapshot.get("hash"), row.created, row.changed, _json(row.overridden or None),
            None if row.parent is None else row.parent[-8:], (row.initial_checkpoint or {}).get("step"),
        )  # fmt: skip


def _amounts(connection: Connection, run: str) -> tuple[int, int]:
    """How many points a run has, and the last step that any of them reached."""
    series = tables.series
    query = select(func.sum(series.c.points), func.max(series.c.last_step)).where(series.c.run == run)
    points, step = connection.execute(query).one()
    return int(points or 0), int(step or 0)


def _rejected(connection: Connection, run: str) -> int:
    files = tables.files
    return int(connection.execute(select(func.sum(files.c.rejected)).where(files.c.run == run)).scalar() or 0)


def _primary(connection: Connection, row: Row[Any]) -> tuple[str | None, Values, Values]:
    """The primary's name, its last (step, value) and its best."""
    nothing = (None, None)
    primary = row.arm_document.get("primary")
    if primary is None:
        return None, nothing, nothing
    curves = read_curves(connection, row.run, [primary["metric"]])
    series = as_series(curves).get(primary["metric"])
    if series is None or not series.steps:
        return primary["metric"], nothing, nothing
    best = best_point(series, primary["direction"], row.steps_total)
    return primary["metric"], (series.steps[-1], series.values[-1]), best or nothing


def _attempts(connection: Connection, study: str) -> Iterator[Values]:
    runs, attempts, leases = tables.runs, tables.attempts, tables.leases
    query = (
        select(runs.c.id, leases.c.host, attempts)
        .join(attempts, attempts.c.run == runs.c.run)
        .join(leases, leases.c.id == attempts.c.lease)
        .where(runs.c.study == study)
        .order_by(runs.c.arm_order, runs.c.seed, runs.c.created, attempts.c.attempt)
    )
    for row in _streamed(connection, query):
        ended = row.exit or {}
        yield (
            row.id, row.attempt, row.kind, row.phase, row.host, row.slot.get("name"), row.resumed_from,
            row.stop_reason, ended.get("cause"), ended.get("code"), ended.get("signal"), row.failure,
            ended.get("max_rss_mib"), row.created, row.started, row.ended,
        )  # fmt: skip


def _events(connection: Connection, study: str) -> Iterator[Values]:
    runs, events = tables.runs, tables.events
    query = (
        select(runs.c.id, events)
        .select_from(events.outerjoin(runs, runs.c.run == events.c.run))
        .where((runs.c.study == study) | (events.c.study == study))
        .order_by(events.c.id)
    )
    for row in _streamed(connection, query):
        yield row.time, row[0], row.attempt, row.step, row.what, row.reason, _json(row.data)


def _verdicts(connection: Connection, study: str) -> Iterator[Values]:
    runs, verdicts = tables.runs, tables.verdicts
    columns = [verdicts.c[name] for name in COLUMNS["verdicts"][1:]]
    query = (
        select(runs.c.id, *columns)
        .join(verdicts, verdicts.c.run == runs.c.run)
        .where(runs.c.study == study)
        .order_by(verdicts.c.id)
    )
    for *values, findings, as_of in _streamed(connection, query):
        yield *values, _json(findings), _json(as_of)


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
