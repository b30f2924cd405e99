"""Keeps slots back until they are proven free: releases that are waited for, and quarantines, with their rows.

What is in memory here is read again after a restart: an attempt whose `before` has no `released` is not proven yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection, insert, select, update

from provisioning.base import HostLost, ProcessIdentity, Slot, SlotProbe
from runner.quarantine import (
    Before,
    NotReleased,
    Quarantine,
    Released,
    before_from_json,
    is_probe_due,
    is_released,
    lift_reason,
    of_the_attempt,
)
from runner.schedule import Phase, conflicts
from runner.store import changes, tables
from runner.store.facts import StoredAttempt, StoredRun, slot_from_json
from runner.store.session import Session

_OVER = (Phase.ENDED, Phase.GONE)
Probe = Callable[[int, Slot, Sequence[int]], SlotProbe]
"""(lease, slot, pids) -> what is seen there now."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """An attempt that is over and whose slot is not proven free. `first_seen_s` is monotonic."""

    run: str
    attempt: int
    lease: int
    slot: Slot
    before: Mapping[str, Any] | None
    pids: tuple[int, ...]
    ended: float
    first_seen_s: float

    @property
    def key(self) -> tuple[str, int]:
        return self.run, self.attempt


class SlotWatch:
    """Slots of ended attempts until they are proven free, and slots in quarantine until a probe passes."""

    def __init__(
        self, session: Session, probe: Probe, now: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self._session = session
        self._probe = probe
        self._now = now
        self._monotonic = monotonic
        self._waiting: dict[tuple[str, int], _Ended] = {}
        self._proven: set[tuple[str, int]] = set()
        self._ended_slots: dict[tuple[str, int], Slot] = {}
        self._quarantines: dict[int, Quarantine] = {}
        self._last_look_s: dict[int, float] = {}
        self._live: tuple[Slot, ...] = ()
        self._is_loaded = False

    def look(self, runs: Sequence[StoredRun]) -> tuple[Slot, ...]:
        """One round: prove what can be proven, lift what can be lifted; returns the slots that still count as busy."""
        self._load()
        attempts = [(run.run, run.attempt) for run in runs if run.attempt is not None]
        self._live = tuple(one.slot for _, one in attempts if one.phase in (Phase.INTENDED, Phase.LIVE))
        self._note_ended(attempts)
        for ended in list(self._waiting.values()):
            self._prove(ended)
        if runs:
            self._look_at_quarantines()
        return self.held()

    def held(self) -> tuple[Slot, ...]:
        """Slots whose attempts ended and whose release is not proven."""
        return tuple(ended.slot for ended in self._waiting.values())

    def state(self, run: str, attempt: int) -> str:
        """Of an ended attempt's slot: `waiting` until it is proven free, `quarantined` when it was not, else `free`."""
        if (run, attempt) in self._waiting:
            return "waiting"
        ended_there = self._ended_slots.get((run, attempt))
        return "quarantined" if ended_there is not None and self.quarantine_of(ended_there) is not None else "free"

    def is_live(self, slot: Slot) -> bool:
        """Whether an attempt of ours is on a slot, or has only just ended there."""
        return any(conflicts(slot, one) for one in (*self._live, *self.held()))

    def quarantine_of(self, slot: Slot) -> Quarantine | None:
        """The quarantine that keeps a slot back, if one does."""
        self._load()
        return next((one for one in self._quarantines.values() if conflicts(slot, one.slot)), None)

    def quarantine(self, lease: int, slot: Slot, reason: str) -> None:
        """Keep a slot back from now on; harmless when it is kept back already."""
        if self.quarantine_of(slot) is None:
            with self._session.transaction() as connection:
                added = _add(connection, self._now(), lease, slot, reason, None, ())
            self._quarantines[added.id] = added
            self._last_look_s[added.id] = self._monotonic()

    def _load(self) -> None:
        if self._is_loaded:
            return
        self._is_loaded = True
        with self._session.reading() as connection:
            self._quarantines = {one.id: one for one in open_quarantines(connection)}
            for ended in _unproven(connection, self._monotonic()):
                self._waiting[ended.key] = ended

    def _note_ended(self, attempts: Iterable[tuple[str, StoredAttempt]]) -> None:
        over = {(run, one.number): one for run, one in attempts if one.phase in _OVER}
        self._proven &= over.keys()
        self._ended_slots = {key: one.slot for key, one in over.items()}
        for key, one in over.items():
            if key in self._proven or key in self._waiting:
                continue
            if not one.slot.gpu_uuids and not _leftover_pids(one.exit):
                self._proven.add(key)
                continue
            with self._session.reading() as connection:
                ended = _row(connection, key, self._monotonic())
            if ended is None:
                self._proven.add(key)
            else:
                self._waiting[key] = ended

    def _prove(self, ended: _Ended) -> None:
        if any(conflicts(ended.slot, one) for one in self._live):
            self._settle(ended, None)  # the final evaluation of the same run has it: what it holds is no leftover
            return
        # Only GPUs have something to give back: cores that are no longer ours are cut into no slot anyway.
        try:
            seen = self._probe(ended.lease, replace(ended.slot, cores=()), ended.pids)
        except HostLost:
            return  # nothing is known of it until its host answers
        alive = of_the_attempt(seen.leftovers, self._now() - ended.ended)
        waited_s = self._monotonic() - ended.first_seen_s
        found = is_released(before_from_json(ended.before), replace(seen, leftovers=alive), waited_s)
        if isinstance(found, Released):
            self._settle(ended, None)
        elif isinstance(found, NotReleased):
            said = f"{found.reason}, {waited_s:.0f} s after attempt {ended.attempt} of {ended.run} ended"
            self._settle(ended, said, tuple(one.identity for one in alive))

    def _settle(self, ended: _Ended, reason: str | None, leftovers: tuple[ProcessIdentity, ...] = ()) -> None:
        """Nothing is left to prove: the slot is free, or in quarantine for a reason."""
        now = self._now()
        document = {**(ended.before or {}), "released": now if reason is None else None, "settled": now}
        with self._session.transaction() as connection:
            changes.set_attempt(connection, ended.run, ended.attempt, before=document)
            if reason is not None and self.quarantine_of(ended.slot) is None:
                before = before_from_json(ended.before)
                added = _add(
                    connection, now, ended.lease, ended.slot, reason, before, leftovers, run=ended.run,
                    attempt=ended.attempt,
                )  # fmt: skip
                self._quarantines[added.id] = added
                self._last_look_s[added.id] = self._monotonic()
        self._waiting.pop(ended.key, None)
        self._proven.add(ended.key)

    def _look_at_quarantines(self) -> None:
        for one in list(self._quarantines.values()):
            now_s = self._monotonic()
            if not is_probe_due(self._last_look_s.get(one.id), now_s):
                continue
            self._last_look_s[one.id] = now_s
            try:
                seen = self._probe(one.lease, replace(one.slot, cores=()), [found.pid for found in one.leftovers])
            except HostLost:
                continue
            reason = lift_reason(one, seen)
            if not reason:
                continue
            with self._session.transaction() as connection:
                _lift(connection, self._now(), one, reason)
            del self._quarantines[one.id]


def open_quarantines(connection: Connection) -> tuple[Quarantine, ...]:
    """The quarantines in force, oldest first."""
    rows, events = tables.quarantines, tables.events
    found = connection.execute(select(rows).where(rows.c.lifted.is_(None)).order_by(rows.c.id)).all()
    if not found:
        return ()
    told = connection.execute(select(events.c.data).where(events.c.what == "quarantine")).scalars()
    evidence = {data["quarantine"]: data for data in told if data and "quarantine" in data}
    return tuple(_quarantine(row, evidence.get(row.id, {})) for row in found)


def _quarantine(row: Any, evidence: Mapping[str, Any]) -> Quarantine:
    slot = slot_from_json(evidence["slot"]) if "slot" in evidence else Slot(row.slot, (), tuple(row.gpu_uuids))
    leftovers = tuple(ProcessIdentity(**one) for one in evidence.get("leftovers", ()))
    return Quarantine(
        row.id, row.lease, slot, row.reason, row.since, before_from_json(evidence.get("before")), leftovers
    )


def _add(
    connection: Connection,
    now: float,
    lease: int,
    slot: Slot,
    reason: str,
    before: Before | None,
    leftovers: tuple[ProcessIdentity, ...],
    *,
    run: str | None = None,
    attempt: int | None = None,
) -> Quarantine:
    """A row, and an event that holds what the slot must look like to come out again."""
    number: int = connection.execute(
        insert(tables.quarantines).values(
            lease=lease, slot=slot.name, gpu_uuids=list(slot.gpu_uuids), reason=reason, since=now
        )
    ).inserted_primary_key[0]  # type: ignore[index]
    evidence = {
        "quarantine": number,
        "slot": asdict(slot),
        "before": None if before is None else asdict(before),
        "leftovers": [asdict(one) for one in leftovers],
    }
    said = f"slot {slot.name} is not used until it is free again: {reason}"
    changes.add_event(connection, now, "quarantine", said, run=run, attempt=attempt, data=evidence)
    return Quarantine(number, lease, slot, reason, now, before, leftovers)


def _lift(connection: Connection, now: float, one: Quarantine, reason: str) -> None:
    rows = tables.quarantines
    connection.execute(update(rows).where(rows.c.id == one.id).values(lifted=now))
    said = f"slot {one.slot.name} may be used again: {reason}"
    changes.add_event(connection, now, "quarantine_lifted", said, data={"quarantine": one.id})


def _unproven(connection: Connection, now_s: float) -> list[_Ended]:
    """Attempts that an earlier controller saw end, or would have seen, and whose slots nobody has proven free."""
    rows = tables.attempts
    over = connection.execute(select(rows).where(rows.c.phase.in_([str(phase) for phase in _OVER]))).all()
    return [ended for row in over if (ended := _ended(row, now_s)) is not None]


def _row(connection: Connection, key: tuple[str, int], now_s: float) -> _Ended | None:
    rows = tables.attempts
    row = connection.execute(select(rows).where(rows.c.run == key[0], rows.c.attempt == key[1])).one()
    return _ended(row, now_s)


def _ended(row: Any, now_s: float) -> _Ended | None:
    """None when there is nothing to prove: no GPU was remembered and no process was left, or it is settled."""
    pids = _leftover_pids(row.exit)
    if (row.before is None and not pids) or (row.before or {}).get("settled") is not None:
        return None
    slot = slot_from_json(row.slot)
    ended = row.ended if row.ended is not None else row.created
    return _Ended(row.run, row.attempt, row.lease, slot, row.before, pids, ended, now_s)


def _leftover_pids(ended: Mapping[str, Any] | None) -> tuple[int, ...]:
    return tuple((ended or {}).get("leftover_pids", ()))
