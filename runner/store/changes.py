"""Every change the controller makes to runs, attempts and leases; each state change leaves an event with its reason.

What happens several times for each attempt goes to the driver directly, which is ten times as fast.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, Connection, Table, insert, update
from sqlalchemy.dialects.sqlite import insert as upsert

from runner.records import AttemptKind, RunState, Verdict, is_legal
from runner.store import outbox, tables
from runner.store.best import find_best
from runner.store.opening import driver_of


def move_run(
    connection: Connection, run: str, state: RunState, reason: str, now: float, *, rule: str = "", attempt: int = 0
) -> None:
    """Change a run's state. An illegal move is our own mistake and raises AssertionError."""
    driver = driver_of(connection)
    (stored, study) = driver.execute("SELECT state, study FROM runs WHERE run = ?", (run,)).fetchone()
    old = RunState(stored)
    assert is_legal(old, state), f"{run}: {old} -> {state} is no legal move ({reason})"
    driver.execute(
        "UPDATE runs SET state = ?, reason = ?, rule = ?, changed = ? WHERE run = ?", (state, reason, rule, now, run)
    )
    what = f"{state}({rule})" if rule else str(state)
    add_event(connection, now, what, reason, study=study, run=run, attempt=attempt or None)


def set_run(connection: Connection, run: str, **values: Any) -> None:
    """Change columns of a run that are not its state."""
    assert "state" not in values
    _update(connection, tables.runs, values, {"run": run})
    if "arm_document" in values or "steps_total" in values:
        find_best(connection, run)  # both say which points count


def add_attempt(
    connection: Connection,
    run: str,
    attempt: int,
    kind: AttemptKind,
    lease: int,
    slot: Mapping[str, Any],
    now: float,
) -> None:
    """The intent row of a process: written and committed before anything is started."""
    driver_of(connection).execute(
        "INSERT INTO attempts (run, attempt, kind, phase, lease, slot, sync, created) "
        "VALUES (?, ?, ?, 'intended', ?, ?, 'pending', ?)",
        (run, attempt, str(kind), lease, json.dumps(slot), now),
    )
    find_best(connection, run)  # what an earlier attempt wrote behind the start of this one counts no more


def set_attempt(connection: Connection, run: str, attempt: int, **values: Any) -> None:
    """Change columns of one attempt."""
    if values:
        _update(connection, tables.attempts, values, {"run": run, "attempt": attempt})
    if "resumed_from" in values:
        find_best(connection, run)


def add_event(
    connection: Connection,
    now: float,
    what: str,
    reason: str,
    *,
    study: str | None = None,
    run: str | None = None,
    attempt: int | None = None,
    step: int | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """A line of the history that status, report and a person read."""
    added = driver_of(connection).execute(
        "INSERT INTO events (time, study, run, attempt, step, what, reason, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (now, study, run, attempt, step, what, reason, None if data is None else json.dumps(json_ready(data))),
    )
    assert added.lastrowid is not None
    outbox.announce(connection, added.lastrowid, what, reason, now)


def add_verdict(connection: Connection, run: str, attempt: int, verdict: Verdict, now: float) -> None:
    """Keep a verdict that differs from the last one, with its evidence and what it had seen."""
    step = max((finding.step for finding in verdict.findings), default=0)
    document = verdict_document(verdict)
    connection.execute(
        insert(tables.verdicts).values(
            run=run, attempt=attempt, time=now, health=verdict.health, action=verdict.action, rule=verdict.rule,
            step=step, reason=verdict.reason, findings=document["findings"], as_of=document["as_of"],
        )
    )  # fmt: skip
    connection.execute(
        update(tables.runs).where(tables.runs.c.run == run).values(health=verdict.health, verdict=document)
    )


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """A verdict as plain JSON values."""
    return {
        "health": str(verdict.health),
        "action": verdict.action,
        "rule": verdict.rule,
        "reason": verdict.reason,
        "probe_every_steps": verdict.probe_every_steps,
        "as_of": dict(verdict.as_of),
        "findings": [
            {
                "detector": finding.detector,
                "severity": str(finding.severity),
                "step": finding.step,
                "summary": finding.summary,
                "evidence": json_ready(finding.evidence),
            }
            for finding in verdict.findings
        ],
    }


def answer(connection: Connection, request: int, accepted: bool, message: str, now: float) -> None:
    """Say what became of a request; a second answer to the same one changes nothing."""
    connection.execute(
        upsert(tables.answers)
        .values(request=request, time=now, accepted=accepted, message=message)
        .on_conflict_do_nothing()
    )


def _update(connection: Connection, table: Table, values: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    """Set columns of one row. SQLAlchemy takes longer to build such a statement than SQLite to carry it out."""
    given = [_as_stored(table, name, value) for name, value in values.items()]
    columns = ", ".join(f"{name} = ?" for name in values)
    where = " AND ".join(f"{name} = ?" for name in key)
    driver_of(connection).execute(f"UPDATE {table.name} SET {columns} WHERE {where}", (*given, *key.values()))


def _as_stored(table: Table, name: str, value: Any) -> Any:
    """A value as SQLAlchemy would write it; None is NULL in every column. Raises KeyError where there is no column."""
    if isinstance(table.c[name].type, JSON):
        return None if value is None else json.dumps(value)
    return str(value) if isinstance(value, StrEnum) else value


def json_ready(value: Any) -> Any:
    """The same value with nan and the infinities as the words that every JSON reader accepts."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {str(key): json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner) for inner in value]
    return value
