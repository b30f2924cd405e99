"""The leases of a home as they are now: in memory, and on disk before anything is built on them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from sqlalchemy import Connection

from runner.renting.decide import TROUBLE, after_restart
from runner.renting.leases import Change, Lease, State, Told
from runner.renting.rows import add_lease, next_id, read_leases, write_changes
from runner.store import changes
from runner.store.opening import driver_of, stored_document
from runner.store.session import Session

KEEP_METER_S = 300.0
"""How much of a meter may be lost by a kill: what was seen by then is seen again at the next look."""

KEEP_BYTES = 100_000_000
"""How much traffic likewise."""


class SteadyClock:
    """The wall clock, which never gives back time that has passed: where it is set back, a monotonic one counts on, so
    that no machine lives longer for it."""

    def __init__(self, now: Callable[[], float], monotonic: Callable[[], float], least_s: float) -> None:
        self._now = now
        self._monotonic = monotonic
        self._last_s = max(now(), least_s)
        self._last_monotonic_s = monotonic()

    def __call__(self) -> float:
        """Seconds since the epoch."""
        monotonic_s = self._monotonic()
        self._last_s = max(self._now(), self._last_s + max(0.0, monotonic_s - self._last_monotonic_s))
        self._last_monotonic_s = monotonic_s
        return self._last_s


class Book:
    """All leases that a home ever rented from one provider. Raises HomeError for a row that cannot be read."""

    def __init__(
        self, session: Session, provider: str, now: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self._session = session
        self.provider = provider
        self.prefix = f"armature/{session.home_id}/"
        with session.reading() as connection:
            found = read_leases(connection, provider)
        self.clock = SteadyClock(now, monotonic, max((one.seen_s for one in found), default=0.0))
        started_s = self.clock()
        self._stored = {one.id: one for one in found}
        self.leases = {one.id: after_restart(one, started_s) for one in found}
        self._open: tuple[Lease, ...] | None = None
        self._told: set[Hashable] = set()
        self._news: list[Told] = []

    def all(self) -> tuple[Lease, ...]:
        """By number."""
        return tuple(self.leases.values())

    def open(self) -> tuple[Lease, ...]:
        """Those under whose label something may exist."""
        if self._open is None:
            self._open = tuple(one for one in self.leases.values() if one.is_open)
        return self._open

    def to_release(self) -> tuple[Lease, ...]:
        """Those whose machine is to be given back."""
        return tuple(one for one in self.open() if one.state is State.OWNED and one.because)

    def of_want(self, key: str) -> Lease | None:
        """The open lease of a want."""
        return next((one for one in self.open() if one.want == key), None)

    def mind_limits(self) -> None:
        """Bound what is rented by what its study may spend now: `--amend` moves that for machines that are held too."""
        if not self.open():
            return
        with self._session.reading() as connection:
            limits = study_limits_usd(connection)
        moved = [replace(one, max_usd=limits.get(one.purse, one.max_usd)) for one in self.open()]
        self.write([Change(one) for one in moved if one != self.leases[one.id]])

    def add(self, intend: Callable[[int], Lease], told: Callable[[Lease], Told]) -> Lease:
        """Write and commit the row of a new lease, made from its number; nobody has been asked for it yet."""
        with self._session.transaction() as connection:
            lease = intend(next_id(connection))
            add_lease(connection, lease)
            write_changes(connection, [Change(lease, (told(lease),))], self.clock())
        self.leases[lease.id] = self._stored[lease.id] = lease
        self._open = None
        return lease

    def write(self, changed: Sequence[Change]) -> None:
        """Keep what has changed, on disk first. A meter alone is written now and then only."""
        worth = [one for one in changed if one.told or self._is_worth_writing(one.lease)]
        if worth:
            with self._session.transaction() as connection:
                write_changes(connection, worth, self.clock())
        for change in changed:
            self.leases[change.lease.id] = change.lease
        for change in worth:
            self._stored[change.lease.id] = change.lease
        if changed:
            self._open = None

    def tell(self, told: Told) -> None:
        """Something that belongs to no lease, for the history."""
        self._news.append(told)

    def tell_once(self, key: Hashable, reason: str) -> None:
        """A trouble, once until `well` is said of it."""
        if key not in self._told:
            self._told.add(key)
            self.tell(Told(TROUBLE, reason))

    def well(self, key: Hashable, said: str) -> None:
        """A trouble is over; told if the trouble was."""
        if key in self._told:
            self._told.discard(key)
            self.tell(Told("renting:answers", said))

    def write_news(self) -> None:
        """Write what was told of no lease."""
        if self._news:
            with self._session.transaction() as connection:
                for told in self._news:
                    changes.add_event(connection, self.clock(), told.what, told.reason)
            self._news = []

    def _is_worth_writing(self, lease: Lease) -> bool:
        stored = self._stored[lease.id]
        if lease is stored:
            return False
        now, then = lease.meter, stored.meter
        if now.at_s - then.at_s >= KEEP_METER_S:
            return True
        if abs(now.up_bytes - then.up_bytes) + abs(now.down_bytes - then.down_bytes) >= KEEP_BYTES:
            return True
        same = replace(lease, meter=then, seen_s=stored.seen_s, watched_s=stored.watched_s, absences=stored.absences)
        return same != stored


def study_limits_usd(connection: Connection) -> dict[str, float]:
    """What each stored study may cost in all, as it was launched or amended last. One without a limit is left out: what
    is rented keeps the limit that it was rented with."""
    limits = {}
    for study, text in driver_of(connection).execute("SELECT study, document FROM studies"):
        study_limit = ((stored_document(text).get("budget") or {}).get("study") or {}).get("max_usd")
        if study_limit is not None:
            limits[study] = float(study_limit)
    return limits
