"""What is going on, as one document: the same for `status --json`, the live table and whoever scripts us.

Costs no more for a run of a million points than for one of ten: the last values stand in `series`, and only the
primary's few points are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, select

from runner.judge.best import best_point
from runner.records import RunState
from runner.store import tables
from runner.store.changes import json_ready
from runner.store.curves import as_series, read_curves

LIVE = (RunState.STARTING, RunState.RUNNING, RunState.STOPPING)


def read_status(connection: Connection, now: float, study: str | None = None) -> dict[str, Any]:
    """The document. `now` (seconds since the epoch) gives the time that is left. Superseded runs are listed by id."""
    runs = tables.runs
    query = select(runs).order_by(runs.c.study, runs.c.launch, runs.c.seed, runs.c.arm_order)
    if study is not None:
        query = query.where(func.lower(runs.c.study) == study.lower())
    rows = connection.execute(query).all()
    attempts = _attempts(connection)
    series = _series(connection)
    rejected = _rejected(connection)
    warnings = _warnings(connection)
    studies: dict[str, dict[str, Any]] = {}
    for row in rows:
        entry = studies.setdefault(row.study, {"study": row.study, "runs": [], "superseded": []})
        if row.superseded_by is not None:
            entry["superseded"].append(row.id)
            continue
        mine = attempts.get(row.run, [])
        run = _run(connection, row, mine, series.get(row.run, []), rejected.get(row.run, 0), now)
        run["warnings"] = warnings.get(row.run, [])
        entry["runs"].append(run)
    found: dict[str, Any] = json_ready({"studies": list(studies.values())})
    return found


def _run(
    connection: Connection,
    row: Row[Any],
    attempts: Sequence[Row[Any]],
    series: Sequence[Row[Any]],
    rejected: int,
    now: float,
) -> dict[str, Any]:
    latest = {one.name: one for one in series}  # ordered by attempt: the last attempt has the last word
    values = {name: _value(one.last_value) for name, one in sorted(latest.items())}
    step = max((one.last_step for one in latest.values()), default=0)
    state = RunState(row.state)
    steps_total = row.steps_total
    left_s = _left_s(series, attempts, step, steps_total, now) if state in LIVE else None
    return {
        "run": row.id,
        "arm": row.arm,
        "seed": row.seed,
        "generation": row.generation,
        "parent": row.parent,
        "state": f"{state}({row.rule})" if row.rule and state is not RunState.STOPPING else str(state),
        "health": row.health,
        "verdict": row.verdict,
        "rule": row.rule or (row.verdict or {}).get("rule", ""),
        "reason": row.reason,
        "step": step,
        "steps_total": steps_total,
        "slot": attempts[-1].slot["name"] if attempts and state not in (RunState.QUEUED,) else None,
        "attempts": len(attempts),
        "points": sum(one.points for one in series),
        "rejected_lines": rejected,
        "sync": attempts[-1].sync if attempts else "pending",
        "latest": values,
        "primary": _primary(connection, row, values),
        "usd": 0.0,
        "eta_s": left_s,
        "run_dir": row.run,
        "started": attempts[0].started if attempts else None,
        "changed": row.changed,
    }


def _primary(connection: Connection, row: Row[Any], latest: Mapping[str, float]) -> dict[str, Any] | None:
    primary = row.arm_document.get("primary")
    if primary is None:
        return None
    metric = primary["metric"]
    series = as_series(read_curves(connection, row.run, [metric])).get(metric)
    best = None if series is None else best_point(series, primary["direction"], row.steps_total)
    return {
        "name": metric,
        "value": latest.get(metric),
        "best": None if best is None else best[1],
        "best_step": None if best is None else best[0],
    }


def _left_s(
    series: Sequence[Row[Any]], attempts: Sequence[Row[Any]], step: int, steps_total: int | None, now: float
) -> float | None:
    """Seconds left at the pace of the latest attempt so far; None before it has two steps to show."""
    if not steps_total or not attempts:
        return None
    mine = [one for one in series if one.attempt == attempts[-1].attempt and one.last_step > one.first_step]
    if not mine:
        return None
    fastest = max(mine, key=lambda one: one.last_step - one.first_step)
    pace_s: float = (fastest.last_time - fastest.first_time) / (fastest.last_step - fastest.first_step)
    return max(0.0, (steps_total - step) * pace_s)


def _attempts(connection: Connection) -> dict[str, list[Row[Any]]]:
    rows = connection.execute(select(tables.attempts).order_by(tables.attempts.c.run, tables.attempts.c.attempt))
    return _grouped(rows)


def _series(connection: Connection) -> dict[str, list[Row[Any]]]:
    rows = connection.execute(select(tables.series).order_by(tables.series.c.run, tables.series.c.attempt))
    return _grouped(rows)


def _rejected(connection: Connection) -> dict[str, int]:
    files = tables.files
    rows = connection.execute(select(files.c.run, func.sum(files.c.rejected)).group_by(files.c.run))
    return {run: int(count) for run, count in rows}


def _warnings(connection: Connection) -> dict[str, list[str]]:
    events = tables.events
    rows = connection.execute(
        select(events.c.run, events.c.reason).where(events.c.what.in_(["warning", "metrics_restarted", "trouble"]))
    )
    found: dict[str, list[str]] = {}
    for run, reason in rows:
        found.setdefault(run, []).append(reason)
    return found


def _grouped(rows: Iterable[Row[Any]]) -> dict[str, list[Row[Any]]]:
    found: dict[str, list[Row[Any]]] = {}
    for row in rows:
        found.setdefault(row.run, []).append(row)
    return found


def _value(stored: float | None) -> float:
    return float("nan") if stored is None else stored
