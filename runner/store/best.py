"""The best value of each run's primary metric, kept beside the run so that a status need not read its points.

`runs.best_step` and `runs.best_value` always equal what runner.judge.best finds in the joined curve. Points that only
add to the curve are compared with what is kept; whatever changes the curve or the rule makes it be found anew.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from runner.judge.best import best_point
from runner.records import AttemptKind, Series
from runner.store.curves import read_curves
from runner.store.opening import driver_of


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a run is ranked by, and its best so far."""

    metric: str
    direction: str
    steps_total: int | None
    best: tuple[int, float] | None


def find_best(connection: Connection, run: str) -> None:
    """Find a run's best in its joined curve, and keep it. For whatever is not plainly an addition to the curve."""
    driver = driver_of(connection)
    kept = _kept(driver, run)
    if kept is None:
        _keep(driver, run, None)
        return
    curve = read_curves(connection, run, [kept.metric]).get(kept.metric)
    best = None
    if curve is not None:
        best = best_point(Series(kept.metric, curve.steps, curve.values), kept.direction, kept.steps_total)
    _keep(driver, run, best)


def note_points(
    connection: Connection, run: str, attempt: int, fresh: Iterable[tuple[str, Sequence[int], Sequence[float]]]
) -> None:
    """Take points into account that were stored just now: (name, steps, values) of each series."""
    driver = driver_of(connection)
    kept = _kept(driver, run)
    if kept is None:
        return
    for name, steps, values in fresh:
        if name != kept.metric:
            continue
        if not _only_adds(driver, run, attempt, min(steps)):
            find_best(connection, run)
            return
        found = best_point(Series(name, tuple(steps), tuple(values)), kept.direction, kept.steps_total)
        sign = -1.0 if kept.direction == "max" else 1.0
        rivals = [best for best in (kept.best, found) if best is not None]
        best = min(rivals, key=lambda one: (sign * one[1], one[0]), default=None)
        if best != kept.best:
            _keep(driver, run, best)


def _only_adds(driver: sqlite3.Connection, run: str, attempt: int, first_step: int) -> bool:
    """Whether points from a step on can replace nothing: those of the newest training attempt, behind its start."""
    latest, kind, resumed_from = driver.execute(
        "SELECT attempt, kind, resumed_from FROM attempts WHERE run = ? ORDER BY attempt DESC LIMIT 1", (run,)
    ).fetchone() or (attempt, AttemptKind.TRAIN, None)
    if latest != attempt or kind != AttemptKind.TRAIN:
        return False
    return bool(attempt == 1 or first_step > (resumed_from or 0))


def _kept(driver: sqlite3.Connection, run: str) -> _Kept | None:
    metric, direction, steps_total, step, value = driver.execute(
        "SELECT json_extract(arm_document, '$.primary.metric'), json_extract(arm_document, '$.primary.direction'), "
        "steps_total, best_step, best_value FROM runs WHERE run = ?",
        (run,),
    ).fetchone()
    best = None if step is None else (step, value)
    return None if metric is None else _Kept(metric, direction or "min", steps_total, best)


def _keep(driver: sqlite3.Connection, run: str, best: tuple[int, float] | None) -> None:
    step, value = best or (None, None)
    driver.execute("UPDATE runs SET best_step = ?, best_value = ? WHERE run = ?", (step, value, run))
