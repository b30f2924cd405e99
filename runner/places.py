"""The hosts that a controller holds: leases, the slots they are cut into, and one shell for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from provisioning import RENTED
from provisioning.base import (
    Handle,
    HostLost,
    NoCapacity,
    NotYetReleased,
    Offer,
    ProcessIdentity,
    Provider,
    Request,
    Shell,
    Slot,
    SlotProbe,
)
from provisioning.ssh_host import ListsHosts, SshHost
from runner.errors import InfrastructureError
from runner.quarantine import Withheld, before_of, offered, withheld
from runner.schedule import Phase, Shape, conflicts
from runner.slot_watch import SlotWatch
from runner.store import changes, leases, tables
from runner.store.facts import StoredRun, slot_from_json
from runner.store.session import Session

SHARE = "share_gpus"
"""The event that says whether runs may start beside others on a GPU; the newest one holds."""


@dataclass(frozen=True, slots=True)
class Place:
    """One held host. `host` is what its slots call it, '' for the machine that we run on."""

    lease: int
    handle: Handle
    provider: Provider
    shell: Shell
    host: str


class Places:
    """Holds the hosts that runs need, cuts them into slots, gives them back when nothing does. `rented` says which
    rented machines of a provider runs may be on, by lease.

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
        self._places: dict[int, Place] = {}
        self._held: dict[tuple[str, str], int] = {}
        self._over: dict[int, Place] = {}
        self._watch = SlotWatch(session, self._probe, now, monotonic)
        self._withheld: dict[Shape, tuple[Withheld, ...]] = {}
        self._silent: dict[tuple[str, str], str] = {}  # by provider and host
        self._shares: bool | None = None
        self.rented: Callable[[str], Mapping[int, Handle]] = lambda _provider: {}

    def provider(self, name: str) -> Provider:
        """The provider of this name. Raises what its making raises."""
        return self._providers[name]

    def list_hosts(self, hosts: Sequence[SshHost]) -> None:
        """Runs for hosts of our own are placed on these from now on."""
        provider = self._providers["ssh"]
        assert isinstance(provider, ListsHosts)
        provider.know(hosts)

    def hold(self, provider_name: str) -> tuple[Place, ...]:
        """The hosts of a provider that are ours anyway, each under a lease that is taken now if we have none; none of
        them is asked anything. Raises InfrastructureError."""
        provider = self._providers[provider_name]
        ours = tuple(self._take(provider, offer) for offer in provider.hosts())
        rented = (self._reached(lease, handle) for lease, handle in self.rented(provider_name).items())
        return (*ours, *(place for place in rented if place is not None))

    def reach_anew(self, lease: int) -> None:
        """A machine has another connection now, or none: it is looked up when it is asked for again."""
        self._places.pop(lease, None)

    def _reached(self, lease: int, handle: Handle) -> Place | None:
        try:
            return self._add(lease, handle)
        except HostLost as error:
            self._silent[handle.provider, handle.host] = str(error)
            return None

    def follow(self, runs: Iterable[StoredRun], root: Path, others: Iterable[tuple[int, str]] = ()) -> None:
        """Tell each host which of its run folders, below `root`, are of interest now, and which `others` (lease,
        folder)."""
        folders: dict[int, dict[str, tuple[ProcessIdentity, ...]]] = {}
        for run in runs:
            if run.attempt is not None:
                alive = () if run.attempt.identity is None else (run.attempt.identity,)
                folders.setdefault(run.attempt.lease, {})[str(root / run.run)] = alive
        for lease, folder in others:
            folders.setdefault(lease, {})[folder] = ()
        for lease in folders:
            with suppress(HostLost):
                self.by_lease(lease)  # after a restart they are taken up again, and then told
        # A host that was given back and taken anew has two leases and one shell, which is told of both at once.
        wanted: dict[Shell, dict[str, tuple[ProcessIdentity, ...]]] = {}
        for place in self._places.values():
            wanted.setdefault(place.shell, {}).update(folders.get(place.lease, {}))
        for shell, followed in wanted.items():
            shell.follow(followed)

    def by_lease(self, lease: int) -> Place:
        """The place of a lease, taken up again after a restart of the controller; the host is not asked anything.
        Raises HostLost for a rented machine that its provider has not shown yet, or not any more; of one that was given
        back what came home is all there is, and its shell is that of this machine."""
        if lease in self._places:
            return self._places[lease]
        if lease not in self._over:
            with self._session.reading() as connection:
                row = leases.read_lease(connection, lease)
            if row.provider not in RENTED or row.state != "released":
                return self._add(row.id, row.handle)
            shell = self._providers["local"].shell(row.handle)
            self._over[lease] = Place(lease, row.handle, self._providers[row.provider], shell, row.host)
        return self._over[lease]

    def known(self, lease: int) -> Place | None:
        """The place of a lease if it is held in memory; asks nobody."""
        return self._places.get(lease)

    def of_slot(self, slot: Slot) -> Place:
        """The place that a slot is on."""
        if not slot.host:
            return self.hold("local")[0]
        ours = [self._places[lease] for lease in self._held.values()]
        rented = [place for place in self._places.values() if place.handle.provider in RENTED]
        return next(place for place in (*ours, *rented) if place.host == slot.host)

    def request_slots(self, provider_name: str, slots: int | None, share_gpus: bool = False) -> None:
        """Remember what the last launch asked for: how many slots of each host (None = as many as it has), and whether
        runs may start on GPUs that somebody else computes on."""
        places = self.hold(provider_name)
        changed = share_gpus != self.shares_gpus()
        with self._session.transaction() as connection:
            for place in places:
                leases.request_slots(connection, place.lease, slots)
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
        """All hosts of its provider cut into slots for each shape, in use or not. A host that cannot hold a shape, or
        does not answer, has none; `silent` says why it does not."""
        return {shape: tuple(slot for _, slot in found) for shape, found in self._cut_all(shapes).items()}

    def slots(self, shapes: Iterable[Shape]) -> dict[Shape, tuple[Slot, ...]]:
        """The slots of each shape that a run may be put on, with the GPU memory that others leave.

        What is left out, and why, is in `withheld` until the next call. A slot in use by our own runs is not left out.
        """
        self._withheld = {}
        found: dict[Shape, tuple[Slot, ...]] = {}
        for shape, slots in self._cut_all(shapes).items():
            judged = [self._judge(place, slot, shape) for place, slot in slots]
            found[shape] = tuple(one for one in judged if isinstance(one, Slot))
            silent = [
                Withheld(host, "silent", why)
                for (provider, host), why in self._silent.items()
                if provider == shape.provider and shape.host in ("", host)
            ]
            self._withheld[shape] = (*(one for one in judged if isinstance(one, Withheld)), *silent)
        return found

    def silent(self) -> Mapping[str, str]:
        """Why hosts did not answer when they were last to be cut, by host."""
        return {host: why for (_, host), why in self._silent.items()}

    def _cut_all(self, shapes: Iterable[Shape]) -> dict[Shape, list[tuple[Place, Slot]]]:
        self._silent = {}
        return {shape: list(self._cut(shape)) for shape in set(shapes)}

    def _cut(self, shape: Shape) -> Iterator[tuple[Place, Slot]]:
        for place in self.hold(shape.provider):
            if shape.host not in ("", place.host) or (shape.provider, place.host) in self._silent:
                continue
            with self._session.reading() as connection:
                wanted = leases.requested_slots(connection, place.lease)
            request = Request(wanted, shape.gpus, shape.cpus, shape.min_vram_gib)
            try:
                for slot in place.provider.slots(place.handle, request):
                    yield place, slot
            except NoCapacity:
                continue
            except HostLost as error:
                self._silent[shape.provider, place.host] = str(error)

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
        return asdict(before_of(self._probe(self.of_slot(slot).lease, slot, ())))

    def _judge(self, place: Place, slot: Slot, shape: Shape) -> Slot | Withheld:
        quarantine = self._watch.quarantine_of(slot)
        if quarantine is not None:
            return Withheld(slot.name, "quarantine", f"in quarantine: {quarantine.reason}")
        if not slot.gpu_uuids or self._watch.is_live(slot):
            return slot  # its cores were counted just now; and what our own attempt holds says nothing about others
        try:
            probe = place.provider.probe(place.handle, slot)
        except HostLost as error:
            return Withheld(slot.name, "silent", str(error))
        if probe.problem:
            self._watch.quarantine(place.lease, slot, probe.problem)
            return Withheld(slot.name, "quarantine", f"in quarantine: {probe.problem}")
        left_out = withheld(
            slot,
            probe,
            share_gpus=self.shares_gpus(),
            min_vram_gib=shape.min_vram_gib,
        )
        return offered(slot, probe) if left_out is None else left_out

    def _probe(self, lease: int, slot: Slot, pids: Sequence[int]) -> SlotProbe:
        place = self.by_lease(lease)
        return place.provider.probe(place.handle, slot, pids)

    def release_all(self) -> bool:
        """Give every host back, those of an earlier controller too; False while a provider has not proven it."""
        with self._session.reading() as connection:
            held = [row.id for row in leases.held(connection) if row.provider not in RENTED]
        proven = True
        for place in [self.by_lease(lease) for lease in held]:
            try:
                released = place.provider.release(place.handle)
            except NotYetReleased:
                proven = False
                continue
            place.shell.close()
            with self._session.transaction() as connection:
                leases.give_back(connection, place.lease, released.proof, self._now())
            # Older leases of the same host went with its shell.
            self._places = {lease: one for lease, one in self._places.items() if one.shell is not place.shell}
            self._held = {key: lease for key, lease in self._held.items() if lease != place.lease}
        return proven

    def close(self) -> None:
        """Let go of the shells; what runs on the hosts lives on."""
        for place in (*self._places.values(), *self._over.values()):
            place.shell.close()

    def _take(self, provider: Provider, offer: Offer) -> Place:
        key = (provider.name, offer.offer_id)
        if key in self._held:
            return self._places[self._held[key]]
        with self._session.transaction() as connection:
            row = leases.intend(connection, self._session.home_id, provider.name, offer.offer_id, self._now())
        held = provider.create(offer, row.label)
        if not isinstance(held, Handle):
            raise InfrastructureError(f"{provider.name} did not give us {offer.offer_id}: {held.reason}")
        with self._session.transaction() as connection:
            leases.own(connection, row.id, held.host)
        self._held[key] = row.id
        return self._add(row.id, held)

    def _add(self, lease: int, handle: Handle) -> Place:
        if lease not in self._places:
            provider = self._providers[handle.provider]
            same = (one.shell for one in self._places.values() if _is_same_host(one.handle, handle))
            shell = next(same, None) or provider.shell(handle)
            self._places[lease] = Place(lease, handle, provider, shell, "" if shell.is_here else handle.host)
        return self._places[lease]


def _is_same_host(one: Handle, other: Handle) -> bool:
    return (one.provider, one.host) == (other.provider, other.host)


def live_slots(connection: Connection) -> tuple[Slot, ...]:
    """The slots that attempts of this home are on, or are about to start on."""
    rows = tables.attempts
    found = connection.execute(select(rows.c.slot).where(rows.c.phase.in_([str(Phase.INTENDED), str(Phase.LIVE)])))
    return tuple(slot_from_json(document) for document in found.scalars())


def left_out(
    provider: Provider,
    label: str,
    cut: Mapping[Shape, Sequence[Slot]],
    live: Sequence[Slot],
    *,
    share_gpus: bool,
) -> dict[Shape, tuple[Withheld, ...]]:
    """Who keeps runs off GPU slots now, for a plan.

    The label names the home; the slots of its `live` attempts are not looked at: they come free some time.
    """
    found: dict[Shape, tuple[Withheld, ...]] = {}
    for shape, slots in cut.items():
        free = [slot for slot in slots if slot.gpu_uuids and not any(conflicts(slot, one) for one in live)]
        seen = [(slot, provider.probe(Handle(provider.name, label, slot.host), slot)) for slot in free]
        kept = [
            Withheld(slot.name, "problem", probe.problem)
            if probe.problem
            else withheld(slot, probe, share_gpus=share_gpus, min_vram_gib=shape.min_vram_gib)
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
