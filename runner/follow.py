"""Follows live attempts: look at them, take in their new metrics, judge them, remember what was seen.

The metrics of an ended attempt are read to their last byte and judged before its end is stored, so that whoever
settles the run knows everything it wrote.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from provisioning.base import HostLost, Shell
from runner.attending import Attend
from runner.comparing import Comparing
from runner.home import Home
from runner.ingest import End, Position, Tails, Taken
from runner.judge import judge
from runner.launch_spec import attempt_dir
from runner.memory import CurveMemory
from runner.metric_formats import Format, format_for
from runner.observe import Seen, look, metric_files
from runner.out_of_sight import OutOfSight
from runner.pace import Pace
from runner.places import Places
from runner.records import AttemptKind, DeclaredEvent, Health, Verdict
from runner.schedule import Phase
from runner.spec.models import ResolvedArm, from_json
from runner.store import changes
from runner.store.curves import is_judged
from runner.store.facts import StoredAttempt, StoredRun
from runner.store.points import Written, has_points, names_of, read_position, storable, write_taken
from runner.store.session import Session
from runner.unheard import unheard

SILENT_LINES = 500
SILENT_S = 60.0
ROUND_BYTES = 16 * 1024 * 1024
"""What one round reads at most of what has piled up: a person who asks for a stop meanwhile is heard soon."""

SMALL_BYTES = 256 * 1024
"""Reads up to this size share one transaction; a larger one has its own, so that none holds the database for long."""

Act = Callable[[StoredRun], None]
Guarded = Callable[[StoredRun, Act], None]


@dataclass(frozen=True, slots=True)
class _Known:
    """What stays as it is while an attempt lives, worked out once. `document` is the stored arm that it is true for."""

    document: Mapping[str, Any]
    arm: ResolvedArm
    parse: Format
    run_dir: Path
    folder: Path


@dataclass(slots=True)
class _Look:
    """What a round found out about one attempt. `behind` says that its files hold more than this round may read."""

    attempt: StoredAttempt
    arm: ResolvedArm
    seen: Seen
    taken: list[Taken] = field(default_factory=list)
    behind: bool = False

    @property
    def is_over(self) -> bool:
        return self.seen.phase in (Phase.ENDED, Phase.GONE)


class Follow:
    """Observation of live attempts. Holds nothing that a restart could not read again."""

    def __init__(
        self,
        session: Session,
        home: Home,
        places: Places,
        now: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._home = home
        self._places = places
        self._now = now
        self._monotonic = monotonic
        self._curves = CurveMemory()
        self._comparing = Comparing(home)
        self._tails = Tails()
        self._attend = Attend(session, now, monotonic)
        self._out_of_sight = OutOfSight(session, now)
        self._pace = Pace(monotonic)
        self._known: dict[tuple[str, int], _Known] = {}
        self._first_seen: dict[tuple[str, int], float] = {}
        self._silent: set[tuple[str, int]] = set()
        self._unread: dict[tuple[str, int], tuple[int, str]] = {}
        self._orphaned: set[tuple[str, int]] = set()
        self._bytes_left = ROUND_BYTES
        self._turn = 0

    def __call__(self, run: StoredRun) -> None:
        """One round for one run with a live or intended attempt."""
        self.follow_all([run], lambda one, act: act(one))

    def is_orphaned(self, run: str, attempt: int) -> bool:
        """Whether the last look found a training process alive without its supervisor."""
        return (run, attempt) in self._orphaned

    def forget(self, names: Collection[str]) -> None:
        """Keep in memory only what belongs to these runs: an attempt may also end unseen, silent or before it began."""
        self._out_of_sight.forget(names)
        for run, attempt in [key for key in self._known if key[0] not in names]:
            self._forget_attempt(run, attempt)

    def _forget_attempt(self, run: str, attempt: int) -> None:
        self._curves.forget(run)
        self._comparing.forget(run)
        for memory in (self._tails, self._pace, self._attend):
            memory.forget(run, attempt)
        for known in (self._known, self._unread, self._first_seen):
            known.pop((run, attempt), None)
        self._silent.discard((run, attempt))
        self._orphaned.discard((run, attempt))

    def follow_all(self, runs: Collection[StoredRun], guarded: Guarded) -> bool:
        """One round for all runs with a live or intended attempt; what they wrote is stored in one transaction.

        `guarded` calls what it is given for a run, and decides what an exception of it means to the others. Says
        whether something was left unread because too much had piled up.
        """
        self._bytes_left = ROUND_BYTES
        first = self._turn % max(1, len(runs))  # one that writes a lot must not hide the others for ever
        self._turn += 1
        runs = [*list(runs)[first:], *list(runs)[:first]]
        looks: dict[str, _Look] = {}

        def look_at(run: StoredRun) -> None:
            if (found := self._look(run)) is not None:
                looks[run.run] = found

        def store(run: StoredRun) -> None:
            with self._session.transaction() as connection:
                written[run.run] = [self._store(connection, run, looks[run.run], one) for one in looks[run.run].taken]

        for run in runs:
            guarded(run, look_at)
        changed = [run for run in runs if run.run in looks and looks[run.run].taken]
        written: dict[str, list[Written]] = {}
        if changed:
            with self._session.transaction():
                for run in changed:
                    guarded(run, store)
        for run in changed:
            self._learn(run, looks[run.run], written.get(run.run))
        for run in runs:
            if run.run in looks and (run.run in written or not looks[run.run].taken):
                guarded(run, lambda one: self._conclude(one, looks[one.run], len(runs)))
        return any(one.behind for one in looks.values())

    def _look(self, run: StoredRun) -> _Look | None:
        """Look at processes and files; None while its machine does not answer. Nothing is stored but large reads of
        what has piled up."""
        attempt = run.attempt
        assert attempt is not None
        shell = self._places.by_lease(attempt.lease).shell
        self._first_seen.setdefault((run.run, attempt.number), self._monotonic())
        known = self._of(run, attempt)
        try:
            found = _Look(attempt, known.arm, look(shell, known.folder, Phase(attempt.phase), attempt.identity))
        except HostLost as error:
            if shell.is_here:
                raise
            self._out_of_sight.lost(run, attempt, str(error))
            return None
        self._out_of_sight.seen(run, attempt)
        self._attend.begin(run, attempt, known.arm)
        for path in metric_files(shell, known.run_dir, known.folder, known.arm.metrics):
            self._read(shell, run, found, path, known.parse)
        return found

    def _of(self, run: StoredRun, attempt: StoredAttempt) -> _Known:
        key = (run.run, attempt.number)
        known = self._known.get(key)
        if known is None or known.document is not run.arm_document:
            arm, run_dir = from_json(run.arm_document), self._home.root / run.run
            folder = attempt_dir(run_dir, attempt.number)
            known = self._known[key] = _Known(run.arm_document, arm, format_for(arm.metrics), run_dir, folder)
        return known

    def _read(self, shell: Shell, run: StoredRun, found: _Look, path: str, parse: Format) -> None:
        number = found.attempt.number

        def stored() -> Position:
            with self._session.reading() as connection:
                return read_position(connection, run.run, number, path)

        while True:
            if self._bytes_left <= 0:
                found.behind = True
                return
            taken = self._tails.take(run.run, number, path, stored, shell.stamp, shell.read, parse, _end_of(found.seen))
            if taken is None:
                return
            self._bytes_left -= taken.size_bytes
            if taken.size_bytes <= SMALL_BYTES and not taken.more:
                found.taken.append(taken)
                return
            with self._session.transaction() as connection:
                written = self._store(connection, run, found, taken)
            self._learn(run, _Look(found.attempt, found.arm, found.seen, [taken]), [written])

    def _store(self, connection: Connection, run: StoredRun, found: _Look, taken: Taken) -> Written:
        written = write_taken(connection, run.run, found.attempt.number, taken, self._now())
        self._announce(connection, run, found.attempt, taken, written)
        return written

    def _learn(self, run: StoredRun, found: _Look, written: list[Written] | None) -> None:
        """Take what was stored into memory; what could not be stored is read again in the next round."""
        number = found.attempt.number
        if written is None:
            self._tails.forget(run.run, number)
            self._curves.forget(run.run)
            return
        for taken, one in zip(found.taken, written, strict=True):
            self._tails.keep(run.run, number, taken, one.position)
            self._curves.add(run.run, number, one.fresh)
            self._attend.hear(run, found.attempt, taken, found.arm)
            if any(record.event and record.event.get("event") in ("resumed", "rescued") for record in one.events):
                self._curves.forget(run.run)
            if one.fresh or one.events:
                self._pace.news(run.run, number, _not_finite(one))

    def _announce(
        self, connection: Connection, run: StoredRun, attempt: StoredAttempt, taken: Taken, written: Written
    ) -> None:
        """Announcements of the trainer and oddities of its file become events."""
        place: dict[str, Any] = {"study": run.study, "run": run.run, "attempt": attempt.number}
        for record in written.events:
            assert record.event is not None
            name = storable(str(record.event.get("event", ""))[:64])
            if name in ("resumed", "rescued"):
                changes.set_attempt(connection, run.run, attempt.number, resumed_from=record.step)
            details = {
                key: value for key, value in record.event.items() if key not in ("kind", "event", "step", "time")
            }
            when = record.time if record.time and math.isfinite(record.time) else self._now()
            said = "announced by the trainer"
            changes.add_event(connection, when, name, said, step=record.step, data=details, **place)
        if taken.restarted:
            reason = f"{Path(taken.position.path).name}: {taken.restarted}; read again from its start"
            changes.add_event(connection, self._now(), "metrics_restarted", reason, **place)
        self._note_unread(run, attempt, taken)

    def _note_unread(self, run: StoredRun, attempt: StoredAttempt, taken: Taken) -> None:
        state = taken.position.state or {}
        if not state.get("matched", 1) and taken.position.lines:
            self._unread[run.run, attempt.number] = (taken.position.lines, str(state.get("unmatched", "")))

    def _warn_if_unread(self, run: StoredRun, attempt: StoredAttempt) -> None:
        """A pattern that never matches would leave a run unwatched, so say so once and show a line of the log. One of
        the two logs may well hold nothing but other words."""
        key = (run.run, attempt.number)
        lines, example = self._unread[key]
        if lines < SILENT_LINES and self._monotonic() - self._first_seen[key] < SILENT_S:
            return
        del self._unread[key]
        if key in self._silent:
            return
        self._silent.add(key)
        with self._session.transaction() as connection:
            if has_points(connection, run.run, attempt.number):
                return
            reason = f"no line matched metrics.pattern so far; one of them: {example!r}"
            changes.add_event(
                connection, self._now(), "warning", reason, study=run.study, run=run.run, attempt=attempt.number
            )
            changes.set_run(connection, run.run, health=Health.WARNED)

    def _warn_of_unheard(self, run: StoredRun, found: _Look) -> None:
        if found.attempt.kind != AttemptKind.TRAIN or _end_of(found.seen) is not End.COMPLETE:
            return
        files = self._places.by_lease(found.attempt.lease).shell.names(str(self._home.root / run.run))
        with self._session.reading() as connection:
            said = unheard(found.arm, names_of(connection, run.run), files)
        if said is None or found.attempt.stop_reason:
            return
        with self._session.transaction() as connection:
            changes.add_event(
                connection, self._now(), "warning", said, study=run.study, run=run.run, attempt=found.attempt.number
            )
            changes.set_run(connection, run.run, health=Health.WARNED)

    def _conclude(self, run: StoredRun, found: _Look, live: int) -> None:
        """Judge what is there and remember what was seen; an end only when all that led to it has been read."""
        number = found.attempt.number
        if self._pace.is_due(run.run, number, at_end=found.is_over):
            began_s = self._monotonic()
            self._judge(run, found.attempt, found.arm)
            self._pace.judged(run.run, number, self._monotonic() - began_s, live)
        if found.behind:
            return
        if (run.run, number) in self._unread:
            self._warn_if_unread(run, found.attempt)
        self._remember(run, found.attempt, self._attended(run, found))
        if found.is_over:
            self._attend.conclude(run, found.attempt)
            self._warn_of_unheard(run, found)
            self._forget_attempt(run.run, number)

    def _attended(self, run: StoredRun, found: _Look) -> Seen:
        """What was seen, after a look at how the attempt gets on: a silent one may go on where we cannot see it."""
        if found.seen.phase is not Phase.LIVE:
            return found.seen
        shell = self._places.by_lease(found.attempt.lease).shell
        folder = attempt_dir(self._home.root / run.run, found.attempt.number)
        is_silent = self._attend(run, found.attempt, found.arm, shell, folder, is_visible=found.seen.is_visible)
        return replace(found.seen, phase=Phase.SILENT) if is_silent else found.seen

    def _judge(self, run: StoredRun, attempt: StoredAttempt, arm: ResolvedArm) -> None:
        if attempt.kind != AttemptKind.TRAIN:
            return
        with self._session.reading() as connection:
            series = self._curves.series(connection, run.run)
            events = self._curves.events(connection, run.run)
            siblings = self._comparing.siblings(connection, run, arm, series)
        if not series:
            return
        judged = partial(
            judge, series, steps_total=run.steps_total, primary=arm.primary, policy=arm.policy,
            events=[DeclaredEvent(step, name) for step, name in events],
            loss_name=(arm.metrics or {}).get("loss"), overridden=frozenset(run.overridden), siblings=siblings,
        )  # fmt: skip
        verdict = judged()
        # A late look, which meets a warning and an abort at once, must conclude what timely ones would have.
        if any(one.detector == "regress" for one in verdict.findings):
            verdict = judged(paired=self._comparing.scores(run, arm, series))
        if is_news(run.verdict, verdict):
            with self._session.transaction() as connection:
                changes.add_verdict(connection, run.run, attempt.number, verdict, self._now())
                if verdict.rule:
                    changes.add_event(
                        connection, self._now(), f"verdict:{verdict.action}", verdict.reason, study=run.study,
                        run=run.run, attempt=attempt.number,
                    )  # fmt: skip

    def _remember(self, run: StoredRun, attempt: StoredAttempt, seen: Seen) -> None:
        values: dict[str, Any] = {}
        if seen.phase != attempt.phase:
            values["phase"] = str(seen.phase)
        if seen.identity is not None and attempt.identity is None:
            values["identity"] = asdict(seen.identity)
            values["started"] = attempt.started or self._now()
        if seen.phase in (Phase.ENDED, Phase.GONE):
            values["exit"] = None if seen.exit is None else changes.json_ready(seen.exit)
            values["ended"] = self._now()
            if self._places.by_lease(attempt.lease).shell.is_here:
                values["sync"] = "done"  # a local run folder is where it belongs already
        if seen.phase is Phase.SILENT and attempt.phase != Phase.SILENT:
            values["ended"] = self._now()  # its slot is not charged while nobody knows; a revival takes it back
        if seen.orphaned:
            self._orphaned.add((run.run, attempt.number))
        else:
            self._orphaned.discard((run.run, attempt.number))
        if values:
            with self._session.transaction() as connection:
                changes.set_attempt(connection, run.run, attempt.number, **values)


def _end_of(seen: Seen) -> End | None:
    if seen.phase not in (Phase.ENDED, Phase.GONE):
        return None
    return End.COMPLETE if seen.exit is not None and seen.exit.get("code") == 0 else End.CUT


def is_news(stored: Mapping[str, Any] | None, verdict: Verdict) -> bool:
    """Whether a verdict says something that the stored one does not (having seen more is no news)."""
    if stored is None:
        return True
    document = changes.verdict_document(verdict)
    told = ("health", "action", "rule", "reason", "findings", "probe_every_steps")
    return any(document[key] != stored.get(key) for key in told)


def _not_finite(written: Written) -> frozenset[str]:
    """Names of the judged metrics that have become nan or infinite."""
    return frozenset(
        one.name for one in written.fresh if is_judged(one.name) and not all(map(math.isfinite, one.values))
    )
