"""What is going on, as one document: the same for `status --json`, the live table and whoever scripts us.

Costs no more for a run of a million points than for one of ten, because no point is read: the last values stand in
`series`, the best one beside its run. It is asked for often and from short commands, so it needs the driver alone.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.home import Home
from runner.lock import is_held
from runner.records import RunState
from runner.store.opening import driver_of
from runner.store.schema import reading_rows
from runner.store.untold import given_up

if TYPE_CHECKING:
    from sqlalchemy import Connection

LIVE = (RunState.STARTING, RunState.RUNNING, RunState.STOPPING)


class _Run(NamedTuple):
    run: str
    id: str
    study: str
    arm: str
    seed: int
    generation: int
    parent: str | None
    state: str
    rule: str
    reason: str
    health: str
    verdict: str | None
    steps_total: int | None
    primary: str | None
    best_step: int | None
    best_value: float | None
    superseded_by: str | None
    autopsy_attempt: int | None
    changed: float


class _Attempt(NamedTuple):
    run: str
    attempt: int
    slot: str
    sync: str
    started: float | None


class _Series(NamedTuple):
    run: str
    attempt: int
    name: str
    points: int
    first_step: int
    first_time: float
    last_step: int
    last_value: float | None
    last_time: float


def home_status(home: Home, study: str | None = None, now: Callable[[], float] = time.time) -> dict[str, Any]:
    """The document of a home, superseded runs listed by id. Raises HomeError naming the path when there is none."""
    with reading_rows(home) as driver:
        document = _document(driver, study, now())
    return {**document, "controller": {"alive": is_held(home.lock)}}


def read_status(connection: Connection, now: float, study: str | None = None) -> dict[str, Any]:
    """The document as an open connection sees it. What is rented costs until `now` (seconds since the epoch)."""
    return _document(driver_of(connection), study, now)


def _document(driver: sqlite3.Connection, study: str | None, now: float) -> dict[str, Any]:
    costs, machines = _costs(driver, now)
    attempts = _attempts(driver)
    series = _series(driver)
    rejected = dict(driver.execute("SELECT run, sum(rejected) FROM files GROUP BY run"))
    warnings = _reasons(driver, "what IN ('warning', 'metrics_restarted', 'trouble')")
    # A training may announce an event of that name too; the one of a person's wish says so in its first words.
    extended = _reasons(driver, "what = 'extended' AND reason LIKE 'extended from %'")
    studies: dict[str, dict[str, Any]] = {}
    for row in _runs(driver, study):
        entry = studies.setdefault(row.study, {"study": row.study, "runs": [], "superseded": []})
        if "notices_given_up" not in entry:
            entry["notices_given_up"] = given_up(driver, row.study)
        if row.superseded_by is not None:
            entry["superseded"].append(row.id)
            continue
        run = _run(row, attempts.get(row.run, []), series.get(row.run, []), rejected.get(row.run, 0))
        run["usd"] = costs.get(row.run, 0.0)
        run["warnings"] = warnings.get(row.run, [])
        run["extended"] = extended.get(row.run, [])
        entry["runs"].append(run)
    for entry in studies.values():
        entry["machines"] = [one for one in machines if one["study"] == entry["study"]]
    return {"studies": list(studies.values())}


def _costs(driver: sqlite3.Connection, now: float) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(USD by run, rented machines); what reads them is loaded only where something was ever rented."""
    rented = [name for (name,) in driver.execute("SELECT DISTINCT provider FROM leases WHERE document IS NOT NULL")]
    if not rented:
        return {}, []
    from runner.renting.costs import machine_document, read_costs

    usd: dict[str, float] = {}
    machines = []
    for name in rented:
        costs = read_costs(driver, name, now)
        for run, share in costs.by_run.items():
            usd[run] = usd.get(run, 0.0) + share.usd
        machines += [machine_document(one) for one in costs.machines]
    return usd, machines


def _run(row: _Run, attempts: Sequence[_Attempt], series: Sequence[_Series], rejected: int) -> dict[str, Any]:
    latest = {one.name: one for one in series}  # ordered by attempt: the last attempt has the last word
    values = {name: _number(latest[name].last_value) for name in sorted(latest)}
    step = max((one.last_step for one in latest.values()), default=0)
    state = RunState(row.state)
    verdict: dict[str, Any] | None = None if row.verdict is None else json.loads(row.verdict)
    left_s = _left_s(series, attempts, step, row.steps_total) if state in LIVE else None
    return {
        "run": row.id,
        "arm": row.arm,
        "seed": row.seed,
        "generation": row.generation,
        "parent": None if row.parent is None else row.parent.rpartition("-")[2],
        "state": f"{row.state}({row.rule})" if row.rule and state is not RunState.STOPPING else row.state,
        "health": row.health,
        "verdict": verdict,
        "rule": row.rule or (verdict or {}).get("rule", ""),
        "reason": row.reason,
        "step": step,
        "steps_total": row.steps_total,
        "slot": attempts[-1].slot if attempts and state is not RunState.QUEUED else None,
        "attempts": len(attempts),
        "autopsy": _autopsy(row, attempts),
        "points": sum(one.points for one in series),
        "rejected_lines": rejected,
        "sync": attempts[-1].sync if attempts else "pending",
        "latest": values,
        "primary": _primary(row, values),
        "usd": 0.0,
        "eta_s": left_s,
        "run_dir": row.run,
        "started": attempts[0].started if attempts else None,
        "changed": row.changed,
    }


def _autopsy(row: _Run, attempts: Sequence[_Attempt]) -> str | None:
    """Of an autopsy that a person asked for: waiting or running; None when there is none, or it is over."""
    if row.autopsy_attempt is None:
        return None
    return "running" if attempts and attempts[-1].attempt >= row.autopsy_attempt else "waiting"


def _primary(row: _Run, latest: Mapping[str, float | str]) -> dict[str, Any] | None:
    if row.primary is None:
        return None
    return {"name": row.primary, "value": latest.get(row.primary), "best": row.best_value, "best_step": row.best_step}


def _left_s(
    series: Sequence[_Series], attempts: Sequence[_Attempt], step: int, steps_total: int | None
) -> float | None:
    """Seconds left at the pace of the latest attempt so far; None before it has two steps to show, or when the clock
    of its host was set back in between."""
    if not steps_total or not attempts:
        return None
    mine = [one for one in series if one.attempt == attempts[-1].attempt and one.last_step > one.first_step]
    if not mine:
        return None
    longest = max(mine, key=lambda one: one.last_step - one.first_step)
    pace_s = (longest.last_time - longest.first_time) / (longest.last_step - longest.first_step)
    return max(0.0, (steps_total - step) * pace_s) if pace_s >= 0.0 else None


def _runs(driver: sqlite3.Connection, study: str | None) -> Iterator[_Run]:
    """Only what a status shows: the documents of the arms are long, and reading them would take most of the time."""
    primary = "json_extract(arm_document, '$.primary.metric')"
    columns = ", ".join(primary if name == "primary" else name for name in _Run._fields)
    query = f"SELECT {columns} FROM runs"
    order = " ORDER BY study, launch, seed, arm_order, created"  # a rescued run stands behind its parent
    if study is None:
        return map(_Run._make, driver.execute(query + order))
    return map(_Run._make, driver.execute(f"{query} WHERE lower(study) = ?{order}", (study.lower(),)))


def _attempts(driver: sqlite3.Connection) -> dict[str, list[_Attempt]]:
    found: dict[str, list[_Attempt]] = {}
    rows = driver.execute(
        "SELECT run, attempt, coalesce(nullif(json_extract(slot, '$.host'), '') || ':', '') || "
        "json_extract(slot, '$.name'), sync, started FROM attempts ORDER BY run, attempt"
    )
    for row in map(_Attempt._make, rows):
        found.setdefault(row.run, []).append(row)
    return found


def _series(driver: sqlite3.Connection) -> dict[str, list[_Series]]:
    found: dict[str, list[_Series]] = {}
    rows = driver.execute(f"SELECT {', '.join(_Series._fields)} FROM series ORDER BY run, attempt")
    for row in map(_Series._make, rows):
        found.setdefault(row.run, []).append(row)
    return found


def _reasons(driver: sqlite3.Connection, condition: str) -> dict[str, list[str]]:
    """What events say, by run, oldest first."""
    found: dict[str, list[str]] = {}
    for run, reason in driver.execute(f"SELECT run, reason FROM events WHERE {condition} ORDER BY id"):
        found.setdefault(run, []).append(reason)
    return found


def _number(stored: float | None) -> float | str:
    """A stored value as JSON may hold it: NULL is nan, and what is not finite becomes a word."""
    if stored is None:
        return "nan"
    return stored if math.isfinite(stored) else ("inf" if stored > 0 else "-inf")
