"""What the controller needs to know for one round: live runs with their latest attempts, and the leases."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, func, or_, select

from provisioning.base import ProcessIdentity, Slot
from runner.records import ENDED, RunState
from runner.store import tables


@dataclass(frozen=True, slots=True)
class StoredAttempt:
    """One row of `attempts`."""

    number: int
    kind: str
    phase: str
    lease: int
    slot: Slot
    identity: ProcessIdentity | None
    resumed_from: int | None
    stop_reason: str | None
    exit: Mapping[str, Any] | None
    created: float
    started: float | None


@dataclass(frozen=True, slots=True)
class StoredRun:
    """One row of `runs` with its latest attempt. `run` is its folder below the home, `id` its 8 hex digits."""

    run: str
    study: str
    arm: str
    seed: int
    arm_order: int
    launch: int
    priority: int
    wave: int | None
    retries_used: int
    arm_document: Mapping[str, Any]
    snapshot: Mapping[str, Any]
    provenance: Mapping[str, Any]
    id: str
    steps_total: int | None
    state: RunState
    rule: str
    reason: str
    health: str
    verdict: Mapping[str, Any] | None
    stop_wanted: str | None
    resume_from: str | None
    overridden: tuple[str, ...]
    attempt: StoredAttempt | None


def open_runs(connection: Connection, only: Collection[str] | None = None) -> tuple[StoredRun, ...]:
    """Runs that are waiting or on a slot, in the order of the queue, and lost ones that may report again.

    `only` narrows them to these run folders.
    """
    is_open = tables.runs.c.state.in_([str(state) for state in RunState if state not in ENDED])  # finds them by index
    may_return = and_(tables.runs.c.state == RunState.LOST, tables.attempts.c.phase.in_(["silent", "live"]))
    condition = or_(is_open, may_return)
    return _read(connection, condition if only is None else and_(tables.runs.c.run.in_(only), condition))


def read_run(connection: Connection, run: str) -> StoredRun:
    """One run by its full id."""
    (found,) = _read(connection, tables.runs.c.run == run)
    return found


def _read(connection: Connection, condition: Any) -> tuple[StoredRun, ...]:
    return tuple(_run(row) for row in connection.execute(_all_runs().where(condition)))


@functools.cache
def _all_runs() -> Select[Any]:
    """Every run with its latest attempt; building this takes longer than asking it."""
    runs, attempts = tables.runs, tables.attempts
    others = attempts.alias()
    latest = select(func.max(others.c.attempt)).where(others.c.run == runs.c.run).scalar_subquery()
    columns = [column.label(f"attempt_{column.name}") for column in attempts.c]
    return (
        select(runs, *columns)
        .select_from(runs)
        .outerjoin(attempts, and_(attempts.c.run == runs.c.run, attempts.c.attempt == latest))
        .order_by(runs.c.priority.desc(), runs.c.launch, runs.c.seed, runs.c.arm_order)
    )


def _run(row: Row[Any]) -> StoredRun:
    return StoredRun(
        run=row.run, study=row.study, arm=row.arm, seed=row.seed, arm_order=row.arm_order, launch=row.launch,
        priority=row.priority, wave=row.wave, retries_used=row.retries_used,
        arm_document=row.arm_document, snapshot=row.snapshot, provenance=row.provenance, id=row.id,
        steps_total=row.steps_total, state=RunState(row.state), rule=row.rule, reason=row.reason, health=row.health,
        verdict=row.verdict, stop_wanted=row.stop_wanted, resume_from=row.resume_from,
        overridden=tuple(row.overridden), attempt=None if row.attempt_attempt is None else _attempt(row),
    )  # fmt: skip


def _attempt(row: Row[Any]) -> StoredAttempt:
    identity = row.attempt_identity
    return StoredAttempt(
        number=row.attempt_attempt, kind=row.attempt_kind, phase=row.attempt_phase, lease=row.attempt_lease,
        slot=slot_from_json(row.attempt_slot), identity=None if identity is None else ProcessIdentity(**identity),
        resumed_from=row.attempt_resumed_from, stop_reason=row.attempt_stop_reason, exit=row.attempt_exit,
        created=row.attempt_created, started=row.attempt_started,
    )  # fmt: skip


def slot_from_json(document: Mapping[str, Any]) -> Slot:
    """A slot as `dataclasses.asdict` wrote it, with its lists as tuples again."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
    }
    return Slot(**values)
