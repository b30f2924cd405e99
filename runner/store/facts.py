"""What the controller needs to know for one round: live runs with their latest attempts, and the leases."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from provisioning.base import ProcessIdentity, Slot
from runner.records import ENDED, RunState
from runner.store.opening import driver_of, stored_document


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
    probe_every_steps: int | None
    suspected: Mapping[str, Any] | None
    exit: Mapping[str, Any] | None
    created: float
    started: float | None


@dataclass(frozen=True, slots=True)
class StoredRun:
    """One row of `runs` with its latest attempt. `run` is its folder below the home, `id` its 8 hex digits.

    `autopsy_attempt` is the number of an autopsy that a person asked for and that has not ended: while there is no
    attempt of that number it waits for a slot. `provider` is where its attempts are placed,
    `wanted` the machine that is rented for it.
    """

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
    generation: int
    parent: str | None
    initial_checkpoint: Mapping[str, Any] | None
    autopsy_attempt: int | None
    provider: str
    wanted: Mapping[str, Any] | None
    attempt: StoredAttempt | None


_RUN_COLUMNS = (
    "run", "study", "arm", "seed", "arm_order", "launch", "priority", "wave", "retries_used", "arm_document",
    "snapshot", "provenance", "id", "steps_total", "state", "rule", "reason", "health", "verdict", "stop_wanted",
    "resume_from", "overridden", "generation", "parent", "initial_checkpoint", "autopsy_attempt",
    "provider", "wanted",
)  # fmt: skip
_ATTEMPT_COLUMNS = (
    "attempt", "kind", "phase", "lease", "slot", "identity", "resumed_from", "stop_reason", "probe_every_steps",
    "suspected", "exit", "created", "started",
)  # fmt: skip
_QUERY = (
    f"SELECT {', '.join(f'r.{name}' for name in _RUN_COLUMNS)}, {', '.join(f'a.{name}' for name in _ATTEMPT_COLUMNS)} "
    "FROM runs AS r LEFT JOIN attempts AS a "
    "ON a.run = r.run AND a.attempt = (SELECT max(attempt) FROM attempts WHERE run = r.run) "
    "WHERE {condition} ORDER BY r.priority DESC, r.launch, r.seed, r.arm_order"
)
_OPEN_STATES = tuple(str(state) for state in RunState if state not in ENDED)
_IS_OPEN = (
    f"(r.state IN ({', '.join('?' * len(_OPEN_STATES))}) "  # finds them by index
    "OR r.autopsy_attempt IS NOT NULL "
    "OR (r.state = 'lost' AND a.phase IN ('silent', 'live', 'ended')))"
)


def open_runs(connection: Connection, only: Collection[str] | None = None) -> tuple[StoredRun, ...]:
    """Runs that are waiting or on a slot, in the order of the queue, ended ones with an autopsy to come, and lost ones
    that may report again or whose end came to light.

    `only` narrows them to these run folders.
    """
    if only is None:
        return _read(connection, _IS_OPEN, _OPEN_STATES)
    return _read(connection, f"r.run IN ({', '.join('?' * len(only))}) AND {_IS_OPEN}", (*only, *_OPEN_STATES))


def read_run(connection: Connection, run: str) -> StoredRun:
    """One run by its full id."""
    (found,) = _read(connection, "r.run = ?", (run,))
    return found


def _read(connection: Connection, condition: str, values: Sequence[Any]) -> tuple[StoredRun, ...]:
    """Runs with their latest attempts. Asked many times a second, so the driver is asked directly."""
    rows = driver_of(connection).execute(_QUERY.format(condition=condition), values)
    return tuple(_run(row) for row in rows)


def _run(row: Sequence[Any]) -> StoredRun:
    found = dict(zip(_RUN_COLUMNS, row, strict=False))
    for name in ("arm_document", "snapshot", "provenance", "verdict", "overridden", "initial_checkpoint", "wanted"):
        found[name] = stored_document(found[name])
    found["state"] = RunState(found["state"])
    found["overridden"] = tuple(found["overridden"])
    attempt = row[len(_RUN_COLUMNS) :]
    return StoredRun(**found, attempt=None if attempt[0] is None else _attempt(attempt))


def _attempt(row: Sequence[Any]) -> StoredAttempt:
    found = dict(zip(_ATTEMPT_COLUMNS, row, strict=True))
    identity = stored_document(found.pop("identity"))
    return StoredAttempt(
        number=found.pop("attempt"),
        slot=slot_from_json(stored_document(found.pop("slot"))),
        identity=None if identity is None else ProcessIdentity(**identity),
        exit=stored_document(found.pop("exit")),
        suspected=stored_document(found.pop("suspected")),
        **found,
    )


def slot_from_json(document: Mapping[str, Any]) -> Slot:
    """A slot as `dataclasses.asdict` wrote it, with its lists as tuples again."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
    }
    return Slot(**values)
