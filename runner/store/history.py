"""Small questions the controller asks of the past."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, func, select

from runner.records import RunState
from runner.store import tables


def state_of(connection: Connection, run: str) -> RunState:
    """The state that is stored now."""
    return RunState(connection.execute(select(tables.runs.c.state).where(tables.runs.c.run == run)).scalar_one())


def last_step(connection: Connection, run: str) -> int:
    """The highest step that any metric of the run has reached (0 when there is none)."""
    return int(
        connection.execute(select(func.max(tables.series.c.last_step)).where(tables.series.c.run == run)).scalar() or 0
    )


def studies_without_report(connection: Connection, ended: Sequence[str]) -> tuple[str, ...]:
    """Studies whose runs have all ended and changed since the last report was tried."""
    runs, events = tables.runs, tables.events
    rows = connection.execute(select(runs.c.study, runs.c.state, runs.c.changed, runs.c.superseded_by)).all()
    last_report = select(events.c.study, func.max(events.c.time)).where(events.c.what == "report")
    rows_reported = connection.execute(last_report.group_by(events.c.study)).all()
    reported: dict[str, float] = {row[0]: row[1] for row in rows_reported}
    open_studies = {row.study for row in rows if row.state not in ended}
    changed = {row.study: 0.0 for row in rows}
    for row in rows:
        changed[row.study] = max(changed[row.study], row.changed)
    return tuple(
        study
        for study in sorted(changed)
        if study not in open_studies and changed[study] > reported.get(study, float("-inf"))
    )


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


def report_outcome(connection: Connection, study: str, since: float) -> str | None:
    """What became of the newest report of a study that was tried after `since`; None while there is none."""
    events = tables.events
    return connection.execute(
        select(events.c.reason)
        .where(events.c.what == "report", events.c.study == study, events.c.time >= since)
        .order_by(events.c.id.desc())
    ).scalar()


def reported_gpus(connection: Connection, run: str, attempt: int) -> tuple[str, ...] | None:
    """UUIDs of the GPUs that an attempt's process said it sees; None while it has said nothing."""
    events = tables.events
    data = connection.execute(
        select(events.c.data).where(
            events.c.run == run, events.c.attempt == attempt, events.c.what == "started", events.c.data.is_not(None)
        )
    ).scalar()
    return None if not data or "gpu_uuids" not in data else tuple(data["gpu_uuids"])
