"""Follows one attempt: look at it, take in its new metrics, judge them, remember what was seen.

The metrics of an ended attempt are read to their last byte before its end is stored, so that whoever settles the run
knows everything it wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from provisioning.base import Shell
from runner.home import Home
from runner.ingest import Taken, take
from runner.judge import judge
from runner.launch_spec import attempt_dir
from runner.memory import CurveMemory
from runner.metric_formats import Format, Record, format_for
from runner.observe import Seen, look
from runner.places import Places
from runner.records import AttemptKind, DeclaredEvent, Health, Verdict
from runner.schedule import Phase
from runner.spec.models import ResolvedArm, from_json
from runner.store import changes
from runner.store.facts import StoredAttempt, StoredRun
from runner.store.points import read_position, write_taken
from runner.store.session import Session

SILENT_LINES = 500
SILENT_S = 60.0


class Follow:
    """Observation of live attempts. Holds nothing that a restart could not read again."""

    def __init__(self, session: Session, home: Home, places: Places, now: Callable[[], float]) -> None:
        self._session = session
        self._home = home
        self._places = places
        self._now = now
        self._curves = CurveMemory()
        self._silent: set[tuple[str, int]] = set()
        self._orphaned: set[tuple[str, int]] = set()

    def __call__(self, run: StoredRun) -> None:
        """One round for one run with a live or intended attempt."""
        attempt = run.attempt
        assert attempt is not None
        shell = self._places.by_lease(attempt.lease).shell
        folder = attempt_dir(self._home.root / run.run, attempt.number)
        seen = look(shell, folder, Phase(attempt.phase), attempt.identity)
        arm = from_json(run.arm_document)
        if self._ingest(shell, run, attempt, arm) or run.verdict is None:
            self._judge(run, attempt, arm)
        self._remember(run, attempt, seen)

    def _ingest(self, shell: Shell, run: StoredRun, attempt: StoredAttempt, arm: ResolvedArm) -> bool:
        """Take in everything new; says whether there was anything."""
        parse = format_for(arm.metrics)
        found = False
        for path in metric_files(shell, self._home.root / run.run, attempt.number, arm.metrics):
            while self._take_chunk(shell, run, attempt, path, parse):
                found = True
        return found

    def _take_chunk(self, shell: Shell, run: StoredRun, attempt: StoredAttempt, path: str, parse: Format) -> bool:
        with self._session.reading() as connection:
            position = read_position(connection, run.run, attempt.number, path)
        taken = take(position, shell.stamp, shell.read, parse)
        if taken is None or (taken.position == position and not taken.restarted):
            return False
        with self._session.transaction() as connection:
            written = write_taken(connection, run.run, attempt.number, taken, self._now())
            self._announce(connection, run, attempt, taken, written.events)
        self._curves.add(run.run, attempt.number, taken.records)
        if any(record.event and record.event.get("event") == "resumed" for record in written.events):
            self._curves.forget(run.run)
        return taken.more or bool(taken.records)

    def _announce(
        self, connection: Connection, run: StoredRun, attempt: StoredAttempt, taken: Taken, events: list[Record]
    ) -> None:
        """Announcements of the trainer and oddities of its file become events."""
        place: dict[str, Any] = {"study": run.study, "run": run.run, "attempt": attempt.number}
        for record in events:
            assert record.event is not None
            name = str(record.event.get("event", ""))[:64]
            if name == "resumed":
                changes.set_attempt(connection, run.run, attempt.number, resumed_from=record.step)
            details = {
                key: value for key, value in record.event.items() if key not in ("kind", "event", "step", "time")
            }
            when = record.time or self._now()
            said = "announced by the trainer"
            changes.add_event(connection, when, name, said, step=record.step, data=details, **place)
        if taken.restarted:
            reason = f"{Path(taken.position.path).name}: {taken.restarted}; read again from its start"
            changes.add_event(connection, self._now(), "metrics_restarted", reason, **place)
        self._warn_if_silent(connection, run, attempt, taken)

    def _warn_if_silent(self, connection: Connection, run: StoredRun, attempt: StoredAttempt, taken: Taken) -> None:
        """A pattern that never matches would leave a run unwatched, so say so once and show a line of the log."""
        state = taken.position.state or {}
        if state.get("matched", 1) or (run.run, attempt.number) in self._silent:
            return
        waited_s = self._now() - (attempt.started or attempt.created)
        if taken.position.lines >= SILENT_LINES or (waited_s >= SILENT_S and taken.position.lines):
            self._silent.add((run.run, attempt.number))
            reason = f"no line matched metrics.pattern so far; one of them: {state.get('unmatched', '')!r}"
            changes.add_event(
                connection, self._now(), "warning", reason, study=run.study, run=run.run, attempt=attempt.number
            )
            changes.set_run(connection, run.run, health=Health.WARNED)

    def _judge(self, run: StoredRun, attempt: StoredAttempt, arm: ResolvedArm) -> None:
        if attempt.kind != AttemptKind.TRAIN:
            return
        with self._session.reading() as connection:
            series = self._curves.series(connection, run.run)
            events = self._curves.events(connection, run.run)
        if not series:
            return
        verdict = judge(
            series,
            steps_total=run.steps_total,
            primary=arm.primary,
            policy=arm.policy,
            events=[DeclaredEvent(step, name) for step, name in events],
            loss_name=(arm.metrics or {}).get("loss"),
            overridden=frozenset(run.overridden),
        )
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
            values["sync"] = "done"  # a local run folder is where it belongs already
        newly_orphaned = seen.orphaned and (run.run, attempt.number) not in self._orphaned
        if not values and not newly_orphaned:
            return
        with self._session.transaction() as connection:
            changes.set_attempt(connection, run.run, attempt.number, **values)
            if newly_orphaned:
                self._orphaned.add((run.run, attempt.number))
                reason = (
                    "its supervisor is gone; the training process was told to save and end, and is watched until then"
                )
                changes.add_event(
                    connection, self._now(), "warning", reason, study=run.study, run=run.run, attempt=attempt.number
                )


def metric_files(shell: Shell, run_dir: Path, attempt: int, metrics: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The files that an attempt's metrics are read from."""
    folder = attempt_dir(run_dir, attempt)
    if metrics is None:
        return (str(folder / "metrics.jsonl"),)
    if metrics["source"] == "regex":
        return (str(folder / "stdout.log"), str(folder / "stderr.log"))
    path = run_dir / metrics["path"]
    if metrics["source"] == "tensorboard":
        return tuple(str(path / name) for name in shell.names(str(path)) if "tfevents" in name)
    return (str(path),)


def is_news(stored: Mapping[str, Any] | None, verdict: Verdict) -> bool:
    """Whether a verdict says something that the stored one does not (having seen more is no news)."""
    if stored is None:
        return True
    document = changes.verdict_document(verdict)
    return any(document[key] != stored[key] for key in ("health", "action", "rule", "reason", "findings"))
