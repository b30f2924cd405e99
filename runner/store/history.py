"""Small questions the controller asks of the past."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import Connection, func, select

from runner.store import tables
from runner.store.opening import driver_of


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
        "SELECT study, CAST(1000 * total(changed) AS INTEGER) FROM runs GROUP BY study "
        f"HAVING sum(state NOT IN ({states})) = 0 ORDER BY study",
        tuple(ended),
    )
    newest = (
        "SELECT json_extract(data, '$.covers') FROM events WHERE what = 'report' AND study = ? ORDER BY id DESC LIMIT 1"
    )
    due = {}
    for study, covers in all_ended.fetchall():
        told = driver.execute(newest, (study,)).fetchone()
        if told is None or told[0] != covers:
            due[study] = covers
    return due


def seconds_per_step(connection: Connection) -> dict[str, float]:
    """study/arm -> seconds that a step took in its latest run so far, evaluation included."""
    runs, series = tables.runs, tables.series
    query = (
        select(runs.c.study, runs.c.arm, series.c.name, series.c.last_step, series.c.last_value)
        .join(series, series.c.run == runs.c.run)
        .where(series.c.name.in_(["sys/train_s", "sys/eval_s"]))
        .order_by(runs.c.created, series.c.attempt)
    )
    spent: dict[str, dict[str, float]] = {}
    for study, arm, name, step, value in connection.execute(query):
        if step and value is not None:
            spent.setdefault(f"{study}/{arm}", {})[name] = value / step
    return {arm: sum(parts.values()) for arm, parts in spent.items()}


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
