"""The controller's side of rented machines: which are wanted, which runs may be on, and when each may go.

A launch wants one machine for each of its studies for as long as runs of it wait or are at work. A machine goes back
when nothing needs it and everything on it is home; a run whose machine ended first waits for another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from provisioning import RENTED
from provisioning.base import Handle, HomeKeyError, HostLost, Provider, Request
from reports.wording import counted
from runner.errors import HomeError, InfrastructureError
from runner.places import Places
from runner.records import ENDED, ON_A_SLOT, RunState
from runner.renting import bills
from runner.renting.book import study_limits_usd
from runner.renting.decide import Limits
from runner.renting.lanes import LaneThreads
from runner.renting.leases import Lease, Want
from runner.renting.loop import Renting
from runner.renting.market import Market
from runner.run_facts import Phase
from runner.store import changes
from runner.store.facts import StoredRun
from runner.store.leases import held
from runner.store.opening import driver_of
from runner.store.session import Session

LAST_S = 1800.0
"""So long before the end of a machine's life its runs must end, to save, to come home, and to be verified."""

LATE_S, LONGER_S, ASK_LONGER_S = 3600.0, 3600.0, 300.0
"""When a machine is asked to live longer, by how much, and how soon again after a no."""

PREEMPTED = "preempted"

GC_WITHIN_S = 25.0
"""What is not proven gone by then is told as such: it goes on, and the command gives up after 30 s."""

BILL_S = 120.0
"""For a bill that is asked for so soon the controller stays; a later one is read when it next has to do with the place.
"""


class Rented:
    """The rented machines of a home. Asks nobody while nothing is rented or wanted."""

    def __init__(
        self,
        session: Session,
        providers: Mapping[str, Provider],
        places: Places,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        submit: Callable[..., Future[Any]] | None = None,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
    ) -> None:
        self._session = session
        self._providers = providers
        self._places = places
        self._now = now
        self._monotonic = monotonic
        self._limits = limits
        self._threads = LaneThreads() if submit is None else None
        self._submit = submit or self._threads
        self._renting: dict[str, Renting] = {}
        self._ready: dict[int, Handle] = {}
        self._sweeps: dict[int, float] = {}
        self._asked_longer_s: dict[int, float] = {}
        self._charged: dict[int, tuple[float, float] | None] = {}
        with session.reading() as connection:
            self._had = {lease.provider for lease in held(connection) if lease.provider in RENTED}
            unread = bills.unread(connection, now()) & RENTED
        self._only_bills = self._begin_for_bills(unread - self._had)
        self._had |= self._only_bills
        self._bills_until_s = monotonic() + BILL_S

    @property
    def is_open(self) -> bool:
        """Whether anything is rented, or may be, or a first bill is about to come."""
        return bool(self._had)

    def gc(self, request: int) -> str | None:
        """Look at all that the accounts hold, give back what is ours and nobody's, and say what came of it; None while
        that takes its time. Raises HomeError without a usable key."""
        if request not in self._sweeps:
            self._sweeps[request] = self._monotonic()
            for name in sorted(RENTED):
                self._had.add(name)
                self._of(name).sweep()
            return None
        found = [self._of(name) for name in sorted(RENTED)]
        is_over = all(one.is_swept and not one.on_the_way_back for one in found)
        if not is_over and self._monotonic() - self._sweeps[request] < GC_WITHIN_S:
            return None
        del self._sweeps[request]
        return "; ".join(_swept(one) for one in found)

    def step(self, runs: Sequence[StoredRun]) -> tuple[str, ...]:
        """One round; returns the runs that it changed."""
        wanted = {run.provider for run in runs if run.provider in RENTED and _needs_one(run)}
        for name in wanted | self._had:
            self._of(name)
        for name, renting in self._renting.items():
            renting.step(self._wants(name, runs))
        self._note_ready()
        self._lengthen(runs)
        changed: list[str] = []
        for lease in self._leases():
            if lease.because or not lease.is_open:
                said = f"its machine {lease.host or lease.label} is given back: {lease.because or lease.proof}"
                changed += self._settle_runs(lease, runs, said)
            elif lease.is_ready and (ended := self._ended_unseen(lease, runs)):
                changed += self._settle_runs(lease, ended, f"its machine {lease.host} was started again")
            elif lease.leaving:
                said = f"its machine {lease.host} is left: {lease.leaving}"
                changed += self._settle_runs(lease, runs, said)
            if lease.was_ready and lease.is_kept and not self._is_needed(lease, runs):
                said = lease.leaving or "its runs have ended, and what they made is home"
                self._renting[lease.provider].release(lease.id, said)
        self._note_bills()
        soon_s = self._now() + BILL_S
        self._had = {
            name for name, one in self._renting.items() if not one.is_idle or one.awaits_bill_s <= soon_s
        } | (set(RENTED) if self._sweeps else set())  # fmt: skip
        return tuple(changed)

    def ready(self, provider: str) -> Mapping[int, Handle]:
        """The machines of a provider that runs may be on now, by lease."""
        return {lease: handle for lease, handle in self._ready.items() if handle.provider == provider}

    def reason(self, run: StoredRun) -> str | None:
        """Why a run must end for its machine's sake; None while it may go on."""
        lease = self._lease_of(run)
        if lease is None or run.state not in ON_A_SLOT or lease.ttl_end_s - self._now() > LAST_S:
            return None
        return f"the life of its machine ends in {max(0.0, lease.ttl_end_s - self._now()) / 60.0:.0f} min"

    def waiting(self, runs: Iterable[StoredRun]) -> dict[str, str]:
        """Why runs have no machine yet."""
        waits = {key: why for renting in self._renting.values() for key, why in renting.waits().items()}
        return {run.run: waits[key] for run in runs if (key := _key(run)) in waits} if waits else {}

    def close(self) -> None:
        """Ask nobody any more; what is rented stays so, and the next controller goes on with it."""
        if self._threads is not None:
            self._threads.close()

    def moved(self, lease: int, up_bytes: int) -> None:
        """Count what came home from a machine."""
        for renting in self._renting.values():
            if any(one.id == lease for one in renting.leases()):
                renting.moved(lease, up_bytes, 0)

    def _of(self, name: str) -> Renting:
        if name not in self._renting:
            self._renting[name] = self._begin(name)
        return self._renting[name]

    def _begin(self, name: str) -> Renting:
        try:
            market = self._providers[name]
        except (ValueError, HomeKeyError) as problem:
            raise HomeError(
                f"this home has to do with machines of {name}, and {problem}; then: runner resume (what is rented "
                "stays so until the end of its life)"
            ) from problem
        assert isinstance(market, Market)
        assert self._submit is not None
        return Renting(self._session, market, self._now, self._monotonic, self._submit, self._limits)

    def _leases(self) -> Iterator[Lease]:
        for renting in self._renting.values():
            yield from renting.leases()

    def _lease_of(self, run: StoredRun) -> Lease | None:
        if run.attempt is None or run.provider not in self._renting:
            return None
        return next((one for one in self._leases() if one.id == run.attempt.lease), None)

    def _lengthen(self, runs: Sequence[StoredRun]) -> None:
        """A machine whose runs are at work may live longer, an hour at a time, while the budget of its study pays."""
        now_s = self._now()
        for lease in self._leases():
            is_late = lease.is_ready and lease.ttl_end_s - now_s < LATE_S
            if not is_late or now_s < self._asked_longer_s.get(lease.id, 0.0) + ASK_LONGER_S:
                continue
            if any(
                run.attempt is not None and run.attempt.lease == lease.id and run.state in ON_A_SLOT for run in runs
            ):
                self._asked_longer_s[lease.id] = now_s
                self._renting[lease.provider].extend(lease.id, lease.terms.ttl_s + LONGER_S)

    def _note_ready(self) -> None:
        """One that is not ready any more, or again, is reached anew."""
        before = self._ready
        self._ready = {lease: one for renting in self._renting.values() for lease, one in renting.ready().items()}
        for lease in before.keys() ^ self._ready.keys():
            self._places.reach_anew(lease)

    def _begin_for_bills(self, names: Iterable[str]) -> set[str]:
        """Those of these places that can be asked, for they may charge more yet. Without a key a bill stays unread."""
        found = set()
        for name in names:
            with suppress(HomeError):
                leases = self._of(name).leases()
                self._charged |= {one.id: _charge(one) for one in leases}
                found.add(name)
        return found

    def _let_go_of_the_silent(self) -> None:
        """Nobody stays for a place that does not answer when only a bill of it is missing: a later controller asks."""
        if self._monotonic() < self._bills_until_s:
            return
        for name in self._only_bills & self._renting.keys():
            one = self._renting[name]
            if not one.is_swept and not any(lease.is_open for lease in one.leases()):
                del self._renting[name]
        self._only_bills = set()

    def _note_bills(self) -> None:
        """What the provider charged, once it is known, changes what the reports of its studies say."""
        self._let_go_of_the_silent()
        for lease in self._leases():
            charged = _charge(lease)
            before = self._charged.get(lease.id, None if lease.is_open else charged)
            self._charged[lease.id] = charged
            if charged == before:
                continue
            with self._session.transaction() as connection:
                used = "SELECT DISTINCT run FROM attempts WHERE lease = ?"
                for (run,) in driver_of(connection).execute(used, (lease.id,)).fetchall():
                    changes.set_run(connection, run, changed=self._now())

    def _wants(self, provider: str, runs: Iterable[StoredRun]) -> list[Want]:
        """One for all runs of a launch and a study that wait or are at work. What it may cost is what its study may
        now; the limit in the row of a run is that of its launch, and counts where the study has none."""
        mine = [run for run in runs if run.provider == provider and run.wanted is not None and _needs_one(run)]
        if not mine:
            return []
        with self._session.reading() as connection:
            limits = study_limits_usd(connection)
        found = {}
        for run in mine:
            wanted = run.wanted
            assert wanted is not None
            request = Request(wanted["slots"], wanted["gpus"], wanted["cpus"], wanted["min_vram_gib"], wanted["wanted"])
            max_usd = limits.get(run.study, wanted["max_usd"])
            found[wanted["key"]] = Want(wanted["key"], request, run.study, max_usd)
        return list(found.values())

    def _is_needed(self, lease: Lease, runs: Sequence[StoredRun]) -> bool:
        """Whether a run may yet be there, or something of one is still to come home."""
        for run in runs:
            if lease.leaving or not _needs_one(run):
                continue
            if _key(run) == lease.want or (run.attempt is not None and run.attempt.lease == lease.id):
                return True
        with self._session.reading() as connection:
            pending = "SELECT 1 FROM attempts WHERE lease = ? AND sync = 'pending' LIMIT 1"
            return driver_of(connection).execute(pending, (lease.id,)).fetchone() is not None

    def _ended_unseen(self, lease: Lease, runs: Iterable[StoredRun]) -> list[StoredRun]:
        """Runs whose processes were in a container of this machine that is there no more: one that is started again
        has another first process, and none of those that ran before."""
        place = self._places.known(lease.id)
        found = []
        with suppress(HostLost):
            for run in runs:
                attempt = run.attempt
                if attempt is None or attempt.lease != lease.id or attempt.identity is None or place is None:
                    continue
                if attempt.phase not in (Phase.ENDED, Phase.GONE) and not place.shell.can_see(attempt.identity):
                    found.append(run)
        return found

    def _settle_runs(self, lease: Lease, runs: Iterable[StoredRun], said: str) -> list[str]:
        """What was at work on a machine that is given back, gone, or started again begins again, unless it was to end
        anyway. Returns the runs."""
        hit = [
            run for run in runs
            if run.attempt is not None and run.attempt.lease == lease.id
            and (run.state in ON_A_SLOT or run.attempt.number == run.autopsy_attempt)
        ]  # fmt: skip
        for run in hit:
            assert run.attempt is not None
            now, number = self._now(), run.attempt.number
            with self._session.transaction() as connection:
                if run.attempt.phase not in (Phase.ENDED, Phase.GONE):
                    changes.set_attempt(connection, run.run, number, phase="gone", ended=now, failure=PREEMPTED)
                if run.state not in ON_A_SLOT:
                    continue  # its autopsy: the next round says that it is over
                if run.state is RunState.STOPPING:
                    state = RunState.ABORTED if run.rule else RunState.CANCELLED
                    changes.move_run(connection, run.run, state, f"{run.reason}; {said}", now, rule=run.rule)
                    changes.set_run(connection, run.run, stop_wanted=None, resume_from=None)
                    continue
                if run.state in (RunState.STARTING, RunState.RUNNING):
                    changes.move_run(connection, run.run, RunState.PREEMPTED, said, now, attempt=number)
                changes.move_run(connection, run.run, RunState.QUEUED, f"again: {said}", now)
                changes.set_run(connection, run.run, wave=None, resume_from="last")
        return [run.run for run in hit]


def _needs_one(run: StoredRun) -> bool:
    """Whether a run waits for a machine or is at work on one; or an autopsy of it is."""
    return run.state not in ENDED or run.autopsy_attempt is not None


def _key(run: StoredRun) -> str | None:
    return None if run.wanted is None else str(run.wanted["key"])


def _charge(lease: Lease) -> tuple[float, float] | None:
    """What the provider has charged and what counts for it, USD; None while it has not said."""
    return None if lease.charged_usd is None else (lease.charged_usd, bills.bill_of(lease).bound_usd)


def _swept(renting: Renting) -> str:
    """What a look at an account came to. Raises InfrastructureError where something is not proven."""
    again = "the controller of this home asks again as long as it is at work; to look again: runner gc"
    if not renting.is_swept:
        raise InfrastructureError(f"{renting.provider} gave no complete list, so nothing is proven; {again}")
    kept = [one.handle for one in renting.leases() if one.is_open and not one.because]
    said = [f"{renting.provider}: {counted(len(kept), 'machine')} {'is' if len(kept) == 1 else 'are'} held for runs"]
    if back := renting.on_the_way_back:
        said.append(f"{_names(back)} not proven given back yet")
    if renting.foreign:
        said.append(f"not ours, never touched: {_names(renting.foreign)}")
    if back:
        raise InfrastructureError(f"{', '.join(said)}; {again}")
    return ", ".join(said)


def _names(handles: Sequence[Handle]) -> str:
    return ", ".join(f"{one.host} ({one.label or 'no label'})" for one in handles)
