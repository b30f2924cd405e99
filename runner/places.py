"""The hosts that a controller holds: leases, the slots they are cut into, and one shell for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select, update

from provisioning.base import (
    Handle,
    NoCapacity,
    NotYetReleased,
    ProcessIdentity,
    Provider,
    Request,
    Shell,
    Slot,
    SlotProbe,
)
from runner.errors import InfrastructureError
from runner.quarantine import Withheld, before_of, offered, withheld
from runner.schedule import Phase, Shape, conflicts
from runner.slot_watch import SlotWatch
from runner.store import changes, tables
from runner.store.facts import StoredRun, slot_from_json
from runner.store.opening import driver_of
from runner.store.session import Session

SHARE = "share_gpus"
"""The event that says whether runs may start beside others on a GPU; the newest one holds."""


@dataclass(frozen=True, slots=True)
class Place:
    """One held host."""

    lease: int
    handle: Handle
    provider: Provider
    shell: Shell


class Places:
    """Takes a host when runs need one, cuts it into slots, gives it back when nothing does.

    Every lease has a row, written before the provider is asked; a row leaves `owned` only on the provider's proof.
    """

    def __init__(
        self,
        session: Session,
        providers: Mapping[str, Provider],
        now: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._providers = providers
        self._now = now
        self._places: dict[str, Place] = {}
        self._watch = SlotWatch(session, self._probe, now, monotonic)
        self._withheld: dict[Shape, tuple[Withheld, ...]] = {}
        self._shares: bool | None = None

    def hold(self, provider_name: str) -> Place:
        """Our place at a provider, taken now if we have none. Raises NoCapacity or InfrastructureError."""
        if provider_name not in self._places:
            self._places[provider_name] = self._take(provider_name)
        return self._places[provider_name]

    def follow(self, runs: Iterable[StoredRun], root: Path) -> None:
        """Tell each host which of its run folders, below `root`, are of interest now."""
        folders: dict[int, dict[str, tuple[ProcessIdentity, ...]]] = {}
        for run in runs:
            if run.attempt is not None:
                alive = () if run.attempt.identity is None else (run.attempt.identity,)
                folders.setdefault(run.attempt.lease, {})[str(root / run.run)] = alive
        for place in self._places.values():
            place.shell.follow(folders.get(place.lease, {}))

    def by_lease(self, lease: int) -> Place:
        """The place of a lease, taken up again after a restart of the controller."""
        for place in self._places.values():
            if place.lease == lease:
                return place
        with self._session.reading() as connection:
            name = connection.execute(select(tables.leases.c.provider).where(tables.leases.c.id == lease)).scalar_one()
        return self.hold(name)

    def request_slots(self, provider_name: str, slots: int | None, share_gpus: bool = False) -> None:
        """Remember what the last launch asked for: how many slots (None = as many as the host has), and whether runs
        may start on GPUs that somebody else computes on."""
        place = self.hold(provider_name)
        changed = share_gpus != self.shares_gpus()
        with self._session.transaction() as connection:
            connection.execute(
                update(tables.leases).where(tables.leases.c.id == place.lease).values(slots_requested=slots)
            )
            if changed:
                said = "runs may start beside others" if share_gpus else "no run starts beside others"
                changes.add_event(connection, self._now(), SHARE, f"{said} on a GPU", data={"share": share_gpus})
        self._shares = share_gpus

    def shares_gpus(self) -> bool:
        """Whether runs may start on a GPU that somebody else computes on."""
        if self._shares is None:
            events = tables.events
            newest = select(events.c.data).where(events.c.what == SHARE).order_by(events.c.id.desc()).limit(1)
            with self._session.reading() as connection:
                told = connection.execute(newest).scalar_one_or_none()
            self._shares = bool((told or {}).get("share", False))
        return self._shares

    def cut(self, shapes: Iterable[Shape]) -> dict[Shape, tuple[Slot, ...]]:
        """The whole host cut into slots for each shape, in use or not; none for a shape that it cannot hold."""
        place = self.hold("local")
        with self._session.reading() as connection:
            query = "SELECT slots_requested FROM leases WHERE id = ?"
            (wanted,) = driver_of(connection).execute(query, (place.lease,)).fetchone()
        found: dict[Shape, tuple[Slot, ...]] = {}
        for gpus, cpus, vram_gib in set(shapes):
            try:
                found[gpus, cpus, vram_gib] = place.provider.slots(place.handle, Request(wanted, gpus, cpus, vram_gib))
            except NoCapacity:
                found[gpus, cpus, vram_gib] = ()
        return found

    def slots(self, shapes: Iterable[Shape]) -> dict[Shape, tuple[Slot, ...]]:
        """The slots of each shape that a run may be put on, with the GPU memory that others leave.

        What is left out, and why, is in `withheld` until the next call. A slot in use by our own runs is not left out.
        """
        place = self.hold("local")
        self._withheld = {}
        found: dict[Shape, tuple[Slot, ...]] = {}
        for shape, slots in self.cut(shapes).items():
            judged = [self._judge(place, slot, shape) for slot in slots]
            found[shape] = tuple(one for one in judged if isinstance(one, Slot))
            self._withheld[shape] = tuple(one for one in judged if isinstance(one, Withheld))
        return found

    def withheld(self, shape: Shape | None = None) -> tuple[Withheld, ...]:
        """The slots that the last round left out: for one shape, or for all."""
        if shape is not None:
            return self._withheld.get(shape, ())
        return tuple(dict.fromkeys(one for found in self._withheld.values() for one in found))

    def prove_released(self, runs: Sequence[StoredRun]) -> tuple[Slot, ...]:
        """Look at the slots of attempts that ended and of those in quarantine; returns those that still count as busy.

        `runs` are all open ones, as the round's observation left them.
        """
        return self._watch.look(runs)

    def release_state(self, run: str, attempt: int) -> str:
        """Of the slot of an attempt that ended: `free`, `waiting` or `quarantined`."""
        return self._watch.state(run, attempt)

    def before(self, slot: Slot) -> dict[str, Any] | None:
        """What a start on the slot remembers of it, for `attempts.before`; None where nothing need be remembered."""
        if not slot.gpu_uuids:
            return None
        return asdict(before_of(self._probe(self.hold("local").lease, slot, ())))

    def _judge(self, place: Place, slot: Slot, shape: Shape) -> Slot | Withheld:
        quarantine = self._watch.quarantine_of(slot)
        if quarantine is not None:
            return Withheld(slot.name, "quarantine", f"in quarantine: {quarantine.reason}")
        if not slot.gpu_uuids or self._watch.is_live(slot):
            return slot  # its cores were counted just now; and what our own attempt holds says nothing about others
        probe = place.provider.probe(place.handle, slot)
        if probe.problem:
            self._watch.quarantine(place.lease, slot, probe.problem)
            return Withheld(slot.name, "quarantine", f"in quarantine: {probe.problem}")
        left_out = withheld(
            slot,
            probe,
            share_gpus=self.shares_gpus(),
            min_vram_gib=shape[2],
        )
        return offered(slot, probe) if left_out is None else left_out

    def _probe(self, lease: int, slot: Slot, pids: Sequence[int]) -> SlotProbe:
        place = self.by_lease(lease)
        return place.provider.probe(place.handle, slot, pids)

    def release_all(self) -> bool:
        """Give every host back, those of an earlier controller too; False while a provider has not proven it."""
        for name in self._held_before():
            self.hold(name)
        proven = True
        for name, place in list(self._places.items()):
            try:
                place.provider.release(place.handle)
            except NotYetReleased:
                proven = False
                continue
            place.shell.close()
            with self._session.transaction() as connection:
                connection.execute(
                    update(tables.leases)
                    .where(tables.leases.c.id == place.lease)
                    .values(state="released", released=self._now())
                )
            del self._places[name]
        return proven

    def close(self) -> None:
        """Let go of the shells; what runs on the hosts lives on."""
        for place in self._places.values():
            place.shell.close()

    def _held_before(self) -> tuple[str, ...]:
        """Providers of leases that are still open, whoever took them."""
        leases = tables.leases
        with self._session.reading() as connection:
            query = select(leases.c.provider).where(leases.c.state != "released").distinct()
            return tuple(connection.execute(query).scalars())

    def _take(self, name: str) -> Place:
        provider = self._providers[name]
        offers = provider.offers(Request(None, 0, 1))
        if not offers:
            raise NoCapacity(f"{name} offers no host")
        lease, label = self._intend(name)
        held = provider.create(offers[0], label)
        if not isinstance(held, Handle):
            raise InfrastructureError(f"{name} did not give us a host: {held.reason}")
        with self._session.transaction() as connection:
            connection.execute(
                update(tables.leases).where(tables.leases.c.id == lease).values(state="owned", host=held.host)
            )
        return Place(lease, held, provider, provider.shell(held))

    def _intend(self, name: str) -> tuple[int, str]:
        """The intent row of a lease: the open one of this provider, or a new one under a label of its own."""
        leases = tables.leases
        with self._session.transaction() as connection:
            open_one = connection.execute(
                select(leases.c.id, leases.c.label).where(leases.c.provider == name, leases.c.state != "released")
            ).first()
            if open_one is not None:
                return open_one.id, open_one.label
            number = (connection.execute(select(leases.c.id).order_by(leases.c.id.desc())).scalar() or 0) + 1
            label = f"armature/{self._session.home_id}/{number}"
            connection.execute(
                insert(leases).values(
                    id=number, provider=name, label=label, host="", state="intended", price_usd_per_h=0.0,
                    created=self._now(),
                )
            )  # fmt: skip
            return number, label


def live_slots(connection: Connection) -> tuple[Slot, ...]:
    """The slots that attempts of this home are on, or are about to start on."""
    rows = tables.attempts
    found = connection.execute(select(rows.c.slot).where(rows.c.phase.in_([str(Phase.INTENDED), str(Phase.LIVE)])))
    return tuple(slot_from_json(document) for document in found.scalars())


def left_out(
    provider: Provider,
    handle: Handle,
    cut: Mapping[Shape, Sequence[Slot]],
    live: Sequence[Slot],
    *,
    share_gpus: bool,
) -> dict[Shape, tuple[Withheld, ...]]:
    """Who keeps runs off GPU slots now, for a plan.

    The handle's label names the home; the slots of its `live` attempts are not looked at: they come free some time.
    """
    found: dict[Shape, tuple[Withheld, ...]] = {}
    for shape, slots in cut.items():
        free = [slot for slot in slots if slot.gpu_uuids and not any(conflicts(slot, one) for one in live)]
        seen = [(slot, provider.probe(handle, slot)) for slot in free]
        kept = [
            Withheld(slot.name, "problem", probe.problem)
            if probe.problem
            else withheld(slot, probe, share_gpus=share_gpus, min_vram_gib=shape[2])
            for slot, probe in seen
        ]
        found[shape] = tuple(one for one in kept if one is not None)
    return found


def refuse_occupied(cut: Mapping[Shape, Sequence[Slot]], kept: Mapping[Shape, Sequence[Withheld]]) -> None:
    """Raises InfrastructureError, naming who is in the way, when a shape has slots and all of them are left out."""
    for shape, slots in cut.items():
        reasons = kept.get(shape, ())
        if slots and len(reasons) == len(slots):
            raise InfrastructureError(f"no GPU is free for a run: {'; '.join(map(str, reasons))} (nothing was started)")
