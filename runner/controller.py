"""The one process that decides: observe -> judge -> schedule -> perform, round after round.

It may be killed at any line. Everything it knows is in the database and the run folders, every process it started has
a supervisor of its own, and the next controller takes up where this one was cut off.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from provisioning.base import HostLost, Provider, Slot, SpawnRefused, StagingFailed
from runner.accept import Accept
from runner.actions import Action, Settle, Start, StartTogether
from runner.clock import Clock, SystemClock
from runner.detach import shell_environment, start_report
from runner.disk_watch import DiskWatch
from runner.errors import EXIT_INFRASTRUCTURE, EXIT_OK, ArmatureError, Fenced, HomeError
from runner.follow import Follow
from runner.home import Home, create_home
from runner.homecoming import Homecoming
from runner.lock import HomeLock
from runner.notify import Notifier
from runner.perform import Perform
from runner.places import Places
from runner.providers import Providers
from runner.records import ON_A_SLOT, AttemptKind, RunState
from runner.rented import Rented
from runner.reporting import Report, Reporting
from runner.schedule import Phase, RunFacts, schedule, waits_for_autopsy, waits_for_room
from runner.screen import printable
from runner.situation import Situation
from runner.spec.models import TRAINER
from runner.spending import Spending
from runner.stage import Staged
from runner.store import changes, requests
from runner.store.database import create_or_upgrade, reading
from runner.store.facts import StoredAttempt, StoredRun, open_runs, read_run
from runner.store.requests import Request
from runner.store.session import Session
from runner.waiting import Waiting
from runner.wake import Wake

ROUND_S = 0.5
BUSY_ROUND_S = 0.1

_FOLLOWED = frozenset({Phase.INTENDED, Phase.LIVE, Phase.SILENT})
_NOT_STARTED = frozenset({RunState.QUEUED, RunState.PLACED, RunState.STAGING, RunState.STARTING})


@dataclass(frozen=True, slots=True)
class Round:
    """What one round found: whether anything is left to wait for, and whether something was done just now."""

    open: bool
    acted: bool


class Controller:
    """One home's rounds. Clock, session, providers and environment are injected; `step` is one round."""

    def __init__(
        self,
        home: Home,
        session: Session,
        providers: Mapping[str, Provider],
        clock: Clock,
        environment: Mapping[str, str],
        report: Report = start_report,
    ) -> None:
        self._home = home
        self._session = session
        self._clock = clock
        self._places = Places(session, providers, clock.now, clock.monotonic)
        self._follow = Follow(session, home, self._places, clock.now, clock.monotonic)
        self._spending = Spending(session, clock.now, clock.monotonic)
        self._perform = Perform(session, home, self._places, clock, environment, self._spending.left_s)
        self._notifier = Notifier(session, home, clock.now, clock.monotonic, environment)
        self._rented = Rented(session, providers, self._places, clock.now, clock.monotonic)
        self._places.rented = self._rented.ready
        self._homecoming = Homecoming(session, home, self._places, clock.now, clock.monotonic, moved=self._rented.moved)
        self._situation = Situation(
            session, home, self._places, self._why_end, self._follow.is_orphaned, self._spending.left_s,
            self._homecoming.host_of,
        )  # fmt: skip
        self._reporting = Reporting(session, home, clock.now, clock.monotonic, report)
        self._accept = Accept(session, home, self._places, clock.now, clock.monotonic, self._rented.gc)
        self._disk = DiskWatch(session, home, self._places, clock.now)
        self._waiting = Waiting(session, self._places, clock.now)
        self._wake = Wake()
        self._live: tuple[StoredAttempt, ...] = ()
        # Nobody else writes to the home (a second controller would fence us off at our next write), so what was read of
        # the open runs stays true until we write: then those runs are read again, and all after a request.
        self._runs: tuple[StoredRun, ...] | None = None
        self._noted: set[str] = set()
        self._troubles: set[tuple[str, str]] = set()

    def step(self) -> Round:
        """One round: answer, look, decide, act."""
        asked = self._answer_requests()
        if asked or self._runs is None:
            self._runs = self._open_runs()
        runs, behind = self._observe(self._runs)
        self._repeat_orders(runs)
        if runs:
            self._spending.look(runs)
        is_coming_home = self._homecoming.step()
        runs = self._again(runs, self._rented.step(runs))
        held = self._places.prove_released(runs)
        facts, unread = self._facts(runs)
        held = (*held, *unread)
        by_id = {run.run: run for run in runs}
        waiting = {fact.shape for fact in facts if fact.state is RunState.QUEUED or waits_for_autopsy(fact)}
        slots = self._places.slots(waiting) if waiting else {}
        self._noted.update(self._waiting.tell(facts, waits_for_room(facts, slots), self._rented.waiting(runs)))
        actions = schedule(facts, slots, held)
        for action in actions:
            self._carry_out(action, by_id)
        if any(isinstance(action, Settle) and action.rescue for action in actions):
            after = self._open_runs()  # there is one more, and it may have superseded another
        else:
            after = self._again(runs, [*_touched(actions), *self._noted])
        self._runs = after
        self._noted.clear()
        self._live = _live(after)
        if len(after) < len(runs):
            self._forget_ended(after)
        self._disk.look(runs)
        reporting = self._reporting.step()
        is_busy = any(run.state is not RunState.LOST for run in (*runs, *after))
        is_open = bool(asked or reporting or held or is_coming_home or is_busy or self._rented.is_open)
        telling = self._notifier.step(must_look=not is_open)
        return Round(open=is_open or telling, acted=bool(asked or actions or behind))

    def _why_end(self, run: StoredRun) -> str | None:
        """Why a run's money, or its machine's life, ends it."""
        return self._spending.reason(run) or self._rented.reason(run)

    def _forget_ended(self, runs: Sequence[StoredRun]) -> None:
        """Keep in memory only what belongs to open runs: a controller may live for months."""
        names = frozenset(run.run for run in runs)
        self._follow.forget(names)
        self._situation.forget(names)
        self._perform.forget(names)
        self._waiting.forget(names)
        self._troubles = {(run, reason) for run, reason in self._troubles if run in names}

    def _observe(self, runs: tuple[StoredRun, ...]) -> tuple[tuple[StoredRun, ...], bool]:
        """The runs as a look at their attempts leaves them, and whether more was there than one round may read."""
        followed = [run for run in runs if run.attempt is not None and run.attempt.phase in _FOLLOWED]
        self._places.follow(followed, self._home.root, self._perform.folders())
        behind = self._follow.follow_all(followed, self._guarded)
        return self._again(runs, [run.run for run in followed]), behind

    def _facts(self, runs: Sequence[StoredRun]) -> tuple[list[RunFacts], list[Slot]]:
        """What is known of the runs, and the slots of those of which nothing can be known now: they stay taken."""
        facts: list[RunFacts] = []
        for run in runs:
            unchanged = self._situation.unchanged(run)
            if unchanged is None:
                self._guarded(run, lambda one: facts.append(self._situation(one)))
            else:
                facts.append(unchanged)
        known = {fact.run for fact in facts}
        unread = [run.attempt.slot for run in runs if run.run not in known and run.attempt and _is_on_a_slot(run)]
        return facts, unread

    def _again(self, runs: tuple[StoredRun, ...], changed: Sequence[str]) -> tuple[StoredRun, ...]:
        """The same runs, those that may have changed read again; one that has ended drops out."""
        if not changed:
            return runs
        with self._session.reading() as connection:
            fresh = {run.run: run for run in open_runs(connection, changed)}
        touched = set(changed)
        return tuple(fresh.get(run.run, run) for run in runs if run.run not in touched or run.run in fresh)

    def _carry_out(self, action: Action, runs: Mapping[str, StoredRun]) -> None:
        if not isinstance(action, StartTogether):
            self._guarded(runs[action.run], lambda _run: self._perform(action))
            return
        staged: list[Staged | None] = []

        def prepare(start: Start) -> Callable[[StoredRun], None]:
            return lambda _run: staged.append(self._perform.prepare(start))

        for start in action.starts:
            self._guarded(runs[start.run], prepare(start))
        self._guarded(runs[action.run], lambda _run: self._perform.spawn(staged))

    def wait(self, seconds: float) -> None:
        """Wait for the next round; the end of any attempt's supervisor ends the waiting."""
        self._wake.watch(
            (place.shell, attempt.identity)
            for attempt in self._live
            if attempt.identity is not None and (place := self._places.known(attempt.lease)) is not None
        )
        self._wake.wait(self._clock, seconds)

    def let_go(self) -> bool:
        """Give back what we hold, once nothing is left to do; False while that is not proven."""
        return self._places.release_all()

    def close(self) -> None:
        """Leave everything running and let go of connections."""
        self._notifier.close()
        self._homecoming.close()
        self._rented.close()
        self._wake.close()
        self._places.close()
        self._session.close()

    def _open_runs(self) -> tuple[StoredRun, ...]:
        with self._session.reading() as connection:
            return open_runs(connection)

    def _answer_requests(self) -> bool:
        with self._session.reading() as connection:
            waiting = requests.pending(connection)
        for request in waiting:
            self._answer(request)
        return bool(waiting)

    def _answer(self, request: Request) -> None:
        """One request; what goes wrong in it for a reason that nobody foresaw is its answer."""

        def refuse(error: Exception, details: str) -> None:
            said = f"request {request.id} ({request.kind}): {error}\n{details}"
            print(printable(said, keep_newlines=True), file=sys.stderr, flush=True)
            reason = f"our own mistake, {type(error).__name__}: {error}; it was not carried out (see {self._home.log})"
            self._accept.refuse(request, reason)

        _served(lambda: self._accept(request), refuse)

    def _guarded(self, run: StoredRun, act: Callable[[StoredRun], None]) -> None:
        """One run's trouble must not stop the others: it becomes that run's event, with its traceback, once."""

        def note(error: Exception, details: str) -> None:
            self._record_trouble(run, f"{type(error).__name__}: {error}", details)
            self._give_up_if_stuck(run, error)

        try:
            _served(lambda: act(run), note)
        except HostLost as error:
            self._record_trouble(run, str(error), "")
        except (SpawnRefused, StagingFailed) as error:
            self._record_trouble(run, str(error), "")
            self._give_up_if_stuck(run, error)

    def _record_trouble(self, run: StoredRun, reason: str, details: str) -> None:
        if (run.run, reason) in self._troubles:
            return
        self._troubles.add((run.run, reason))
        self._noted.add(run.run)
        said = f"{run.study}/{run.arm}-s{run.seed}: {reason}\n{details}"
        print(printable(said, keep_newlines=True), file=sys.stderr, flush=True)  # a host's words are part of it
        with self._session.transaction() as connection:
            changes.add_event(
                connection, self._clock.now(), "trouble", reason, study=run.study, run=run.run,
                attempt=run.attempt.number if run.attempt else None, data={"traceback": details},
            )  # fmt: skip

    def _give_up_if_stuck(self, run: StoredRun, error: Exception) -> None:
        """A run that cannot be staged or started has failed; one whose process may live goes on, whatever we met."""
        self._noted.add(run.run)
        with self._session.transaction() as connection:
            found = read_run(connection, run.run)
            attempt = found.attempt
            is_intended = attempt is not None and attempt.phase == Phase.INTENDED
            if attempt is not None and is_intended and attempt.kind != AttemptKind.TRAIN:
                # Its last evaluation or its autopsy cannot be started: the next round says so.
                end = {"cause": "spawn_failed", "error": str(error)}
                changes.set_attempt(
                    connection, run.run, attempt.number, phase="ended", ended=self._clock.now(), exit=end
                )
                return
            if found.state not in _NOT_STARTED or (attempt is not None and attempt.phase == Phase.LIVE):
                return
            reason = f"it could not be started: {error}"
            if attempt is not None and is_intended:
                changes.set_attempt(connection, run.run, attempt.number, phase="gone", failure="staging")
            changes.move_run(connection, run.run, RunState.FAILED, reason, self._clock.now(), rule="staging")

    def _repeat_orders(self, runs: Sequence[StoredRun]) -> None:
        """What was decided may not have been told: the controller died in between, or the disk was full."""
        for run in runs:
            attempt = run.attempt
            if attempt is None or attempt.phase != Phase.LIVE:
                continue
            is_stopping = run.state is RunState.STOPPING or attempt.kind == AttemptKind.AUTOPSY
            if attempt.stop_reason:
                if is_stopping and not self._perform.was_told(run.run, attempt.number):
                    self._guarded(run, self._perform.send_stop)
            elif _takes_probes(run, attempt) and not self._perform.was_asked(run.run, attempt):
                self._guarded(run, self._perform.send_probe)


def _served(act: Callable[[], None], on_mistake: Callable[[Exception, str], None]) -> None:
    """Do one thing for one run or one request: what nobody foresaw is told with its traceback, and others are served.

    What we know by name goes on to the caller: a host or a process that fails, a home that is gone or not ours.
    """
    try:
        act()
    except (HostLost, SpawnRefused, StagingFailed, HomeError, Fenced):
        raise
    except Exception as error:  # the one broad except: see above
        on_mistake(error, traceback.format_exc())


def _is_on_a_slot(run: StoredRun) -> bool:
    """Whether a run has a slot, or an autopsy of it does."""
    return run.state in ON_A_SLOT or (run.attempt is not None and run.attempt.number == run.autopsy_attempt)


def _takes_probes(run: StoredRun, attempt: StoredAttempt) -> bool:
    return attempt.kind == AttemptKind.TRAIN and run.arm_document["kind"] == TRAINER


def _touched(actions: Sequence[Action]) -> list[str]:
    return [
        one.run for action in actions for one in (action.starts if isinstance(action, StartTogether) else (action,))
    ]


def _live(runs: Sequence[StoredRun]) -> tuple[StoredAttempt, ...]:
    return tuple(run.attempt for run in runs if run.attempt is not None and run.attempt.phase == Phase.LIVE)


def run_rounds(controller: Controller, home: Home, clock: Clock, wants_to_stop: Callable[[], bool]) -> None:
    """Rounds until nothing is left to do, a signal came or the home vanished. Leaves every training alive."""
    while not wants_to_stop():
        if not home.database.exists():
            raise HomeError(f"{home.root}: the home vanished; what is running goes on without a controller")
        found = controller.step()
        if not found.open and controller.let_go():
            return
        controller.wait(BUSY_ROUND_S if found.acted else ROUND_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Be the controller of a home, unless it has one already."""
    parser = argparse.ArgumentParser(prog="runner.controller", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    home = Home(parser.parse_args(arguments).home.absolute())
    stop = _on_signal()
    lock = HomeLock(home.lock)
    try:
        create_home(home)
        while lock.acquire():
            _serve(home, lock, stop)
            lock.release()
            # A request that came in between the last look and the release found the lock held: look once more.
            if stop() or not _asked(home):
                return EXIT_OK
    except ArmatureError as error:
        print(f"runner.controller: {error}", file=sys.stderr, flush=True)
        return EXIT_INFRASTRUCTURE
    return EXIT_OK


def _serve(home: Home, lock: HomeLock, stop: Callable[[], bool]) -> None:
    clock = SystemClock()
    create_or_upgrade(home, lock)
    session = Session(home.database, pid=os.getpid(), now=clock.now())
    environment = shell_environment(os.environ)
    controller = Controller(home, session, Providers(home, session, environment), clock, environment)
    try:
        run_rounds(controller, home, clock, stop)
    finally:
        controller.close()


def _asked(home: Home) -> bool:
    with reading(home) as connection:
        return bool(requests.pending(connection))


def _on_signal() -> Callable[[], bool]:
    """SIGTERM and SIGINT end the rounds; whatever is running lives on under its supervisors."""
    asked: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, remember)
    signal.signal(signal.SIGINT, remember)
    return lambda: bool(asked)


if __name__ == "__main__":
    sys.exit(main())
