"""Rows of our holds on hosts. One is written before a provider is asked, and leaves `owned` only on its proof."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from provisioning.base import Handle
from runner.store import tables
from runner.store.opening import driver_of


@dataclass(frozen=True, slots=True)
class StoredLease:
    """One row of `leases`; `host` is the provider's own name of what is held."""

    id: int
    provider: str
    label: str
    host: str
    state: str

    @property
    def handle(self) -> Handle:
        """What the provider knows the hold by."""
        return Handle(self.provider, self.label, self.host)


def read_lease(connection: Connection, lease: int) -> StoredLease:
    """One lease by its number."""
    return _read(connection, "id = ?", lease)[0]


def held(connection: Connection, provider: str | None = None) -> tuple[StoredLease, ...]:
    """Leases that are not given back, oldest first, whoever took them; of one provider, or of all."""
    if provider is None:
        return _read(connection, "state != 'released'")
    return _read(connection, "state != 'released' AND provider = ?", provider)


def intend(connection: Connection, home_id: str, provider: str, host: str, now: float) -> StoredLease:
    """The open lease of a host that is ours anyway, or a new one under a label of its own."""
    open_one = next((one for one in held(connection, provider) if one.host in ("", host)), None)
    if open_one is not None:
        return open_one
    leases = tables.leases
    number = (connection.execute(select(leases.c.id).order_by(leases.c.id.desc())).scalar() or 0) + 1
    label = f"armature/{home_id}/{number}"
    connection.execute(
        insert(leases).values(
            id=number, provider=provider, label=label, host=host, state="intended", price_usd_per_h=0.0, created=now
        )
    )
    return StoredLease(number, provider, label, host, "intended")


def own(connection: Connection, lease: int, host: str) -> None:
    """The provider gave it to us."""
    _set(connection, lease, state="owned", host=host)


def give_back(connection: Connection, lease: int, proof: str, now: float) -> None:
    """The provider said that it is given back."""
    _set(connection, lease, state="released", released=now, proof=proof)


def request_slots(connection: Connection, lease: int, slots: int | None) -> None:
    """How many slots the last launch wanted of a host; None = as many as it has."""
    _set(connection, lease, slots_requested=slots)


def requested_slots(connection: Connection, lease: int) -> int | None:
    """What `request_slots` said. Asked many times a second, so the driver is asked directly."""
    query = "SELECT slots_requested FROM leases WHERE id = ?"
    found: tuple[int | None] = driver_of(connection).execute(query, (lease,)).fetchone()
    return found[0]


def _set(connection: Connection, lease: int, **values: object) -> None:
    connection.execute(update(tables.leases).where(tables.leases.c.id == lease).values(**values))


def _read(connection: Connection, condition: str, *values: object) -> tuple[StoredLease, ...]:
    query = f"SELECT id, provider, label, host, state FROM leases WHERE {condition} ORDER BY id"
    return tuple(StoredLease(*row) for row in driver_of(connection).execute(query, values))
