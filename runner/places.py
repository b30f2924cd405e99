"""The hosts that a controller holds: leases, the slots they are cut into, and one shell for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import insert, select, update

from provisioning.base import Handle, NoCapacity, NotYetReleased, Provider, Request, Shell, Slot
from runner.errors import InfrastructureError
from runner.schedule import Shape
from runner.store import tables
from runner.store.session import Session


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

    def __init__(self, session: Session, providers: Mapping[str, Provider], now: Callable[[], float]) -> None:
        self._session = session
        self._providers = providers
        self._now = now
        self._places: dict[str, Place] = {}

    def hold(self, provider_name: str) -> Place:
        """Our place at a provider, taken now if we have none. Raises NoCapacity or InfrastructureError."""
        if provider_name not in self._places:
            self._places[provider_name] = self._take(provider_name)
        return self._places[provider_name]

    def by_lease(self, lease: int) -> Place:
        """The place of a lease, taken up again after a restart of the controller."""
        for place in self._places.values():
            if place.lease == lease:
                return place
        with self._session.reading() as connection:
            name = connection.execute(select(tables.leases.c.provider).where(tables.leases.c.id == lease)).scalar_one()
        return self.hold(name)

    def request_slots(self, provider_name: str, slots: int | None) -> None:
        """Remember how many slots the last launch asked for (None = as many as the host has)."""
        place = self.hold(provider_name)
        with self._session.transaction() as connection:
            connection.execute(
                update(tables.leases).where(tables.leases.c.id == place.lease).values(slots_requested=slots)
            )

    def slots(self, shapes: Iterable[Shape]) -> dict[Shape, tuple[Slot, ...]]:
        """The host cut into slots for each shape; none for a shape that it cannot hold."""
        place = self.hold("local")
        with self._session.reading() as connection:
            wanted = connection.execute(
                select(tables.leases.c.slots_requested).where(tables.leases.c.id == place.lease)
            ).scalar_one()
        found: dict[Shape, tuple[Slot, ...]] = {}
        for gpus, cpus, vram_gib in set(shapes):
            try:
                found[gpus, cpus, vram_gib] = place.provider.slots(place.handle, Request(wanted, gpus, cpus, vram_gib))
            except NoCapacity:
                found[gpus, cpus, vram_gib] = ()
        return found

    def release_all(self) -> bool:
        """Give every host back; False while a provider has not proven it."""
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
