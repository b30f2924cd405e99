"""Small questions the controller asks of the past."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from runner.store import tables
from runner.store.opening import driver_of, stored_document
from runner.store.outbox import BY_THE_TRAINER


def last_step(connection: Connection, run: str) -> int:
    """The highest step that any metric of the run has reached (0 when there is none)."""
    row = driver_of(connection).execute("SELECT max(last_step) FROM series WHERE run = ?", (run,)).fetchone()
    return int(row[0] or 0)


def studies_without_report(connection: Connection, ended: Sequence[str]) -> dict[str, int]:
    """Studies whose runs have all ended and changed since the last report was tried, each with a number for the state
    that it is in: the sum of the times of its runs' last changes, in ms. Nothing is said of before and after, so a
    clock that was set back makes no report come again and keeps none away.
    """
    driver, states = driver_of(connection), ", ".join("?" * len(ended))
    all_ended = driver.execute(
        "SELECT study, CAST(1000 * total(changed) AS INTEGER), max(changed) FROM runs GROUP BY study "
        f"HAVING sum(state NOT IN ({states})) = 0 ORDER BY study",
        tuple(ended),
    )
    newest = (
        "SELECT json_extract(data, '$.covers'), time FROM events WHERE what = 'report' AND study = ? "
        "ORDER BY id DESC LIMIT 1"
    )
    due = {}
    for study, covers, changed in all_ended.fetchall():
        told_of, when = driver.execute(newest, (study,)).fetchone() or (None, -math.inf)
        # An event without a number is of an earlier version, which knew the time alone.
        if (changed > when) if told_of is None else (told_of != covers):
            due[study] = covers
    return due


def newest_stop(connection: Connection, run: str) -> tuple[str, str]:
    """(rule, reason) of the last stop that was decided for a run; both empty when there was none."""
    query = (
        "SELECT what, reason FROM events WHERE run = ? AND (what = 'stopping' OR what LIKE 'stopping(%)') "
        "AND reason != ? ORDER BY id DESC LIMIT 1"
    )
    row = driver_of(connection).execute(query, (run, BY_THE_TRAINER)).fetchone()
    return ("", "") if row is None else (row[0].removeprefix("stopping").strip("()"), row[1])


def evaluation_before(connection: Connection, run: str, attempt: int) -> dict[str, Any] | None:
    """The exit record of the final evaluation that an attempt came after; None when it came after something else."""
    query = "SELECT exit FROM attempts WHERE run = ? AND attempt = ? AND kind = 'evaluate' AND exit IS NOT NULL"
    row = driver_of(connection).execute(query, (run, attempt - 1)).fetchone()
    found: dict[str, Any] | None = None if row is None else stored_document(row[0])
    return found


def seconds_per_step(connection: Connection) -> dict[str, float]:
    """study/arm -> seconds that a step took in its latest run so far, evaluation included: as the trainer measured it,
    or else from the start to the end of a run that finished."""
    driver = driver_of(connection)
    found = {}
    finished = (
        "SELECT study, arm, sum(ended - started), (SELECT max(last_step) FROM series WHERE series.run = runs.run) "
        "FROM runs JOIN attempts ON attempts.run = runs.run WHERE state = 'finished' "
        "GROUP BY runs.run ORDER BY runs.created"
    )
    for study, arm, seconds, step in driver.execute(finished):
        if step and seconds and seconds > 0:
            found[f"{study}/{arm}"] = seconds / step
    spent: dict[str, dict[str, float]] = {}
    measured = (
        "SELECT study, arm, name, last_step, last_value FROM runs JOIN series ON series.run = runs.run "
        "WHERE name IN ('sys/train_s', 'sys/eval_s') ORDER BY runs.created, attempt"
    )
    for study, arm, name, step, value in driver.execute(measured):
        if step and value is not None:
            spent.setdefault(f"{study}/{arm}", {})[name] = value / step
    return {**found, **{arm: sum(parts.values()) for arm, parts in spent.items()}}


def newest_event(connection: Connection) -> int:
    """The number of the newest event, 0 in a new home."""
    return connection.execute(select(func.max(tables.events.c.id))).scalar() or 0


def report_outcome(connection: Connection, study: str, since: int) -> str | None:
    """What became of the newest report of a study, if it was told after the event `since`; None while there is none."""
    events = tables.events
    return connection.execute(
        select(events.c.reason)
        .where(events.c.what == "report", events.c.study == study, events.c.id > since)
        .order_by(events.c.id.desc())
    ).scalar()


def reported_gpus(connection: Connection, run: str, attempt: int) -> tuple[str, ...] | None:
    """UUIDs of the GPUs that an attempt's process said it sees; None while it has said nothing."""
    row = (
        driver_of(connection)
        .execute(
            "SELECT json_extract(data, '$.gpu_uuids') FROM events "
            "WHERE run = ? AND attempt = ? AND what = 'started' AND data IS NOT NULL LIMIT 1",
            (run, attempt),
        )
        .fetchone()
    )
    return None if row is None or row[0] is None else tuple(json.loads(row[0]))
