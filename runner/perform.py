"""Carries out one action: intent row first, then the act, then its confirmation.

Each step may be cut off by a kill at any line: what is repeated after a restart is harmless (files are replaced, a
second spawn of an attempt is refused by its supervisor), and what was not yet decided is decided again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from provisioning.base import SpawnRefused
from runner.actions import (
    Action,
    EndAutopsy,
    MarkRunning,
    Probe,
    Reap,
    Retry,
    Revive,
    Settle,
    Spawn,
    Start,
    StartTogether,
    Stop,
)
from runner.autopsies import AUTOPSY_ENDED
from runner.clock import Clock
from runner.control_file import read_control, write_control
from runner.home import Home
from runner.launch_spec import GRACE_S, TERM_S, attempt_dir, reap_spec
from runner.observe import checkpoints
from runner.places import Places
from runner.records import ENDED, AttemptKind, RunState
from runner.rescue import Rescued, began_at, choose_step, rescued
from runner.run_facts import Phase
from runner.spec.models import from_json
from runner.stage import Stage, Staged
from runner.store import changes
from runner.store.facts import StoredAttempt, StoredRun, read_run
from runner.store.history import last_step
from runner.store.rescues import RESCUED, add_rescue
from runner.store.session import Session

_PURPOSES = {
    AttemptKind.EVALUATE: "full validation of the last and the best checkpoint",
    AttemptKind.AUTOPSY: "what became worse between the best checkpoint and the last",
}


class Perform:
    """Turns actions into rows, files and processes. The clock and the shell's environment are injected."""

    def __init__(
        self,
        session: Session,
        home: Home,
        places: Places,
        clock: Clock,
        environment: Mapping[str, str],
        left_s: Callable[[StoredRun], float | None] = lambda _run: None,
    ) -> None:
        self._session = session
        self._home = home
        self._places = places
        self._now = clock.now
        self._stage = Stage(session, home, places, clock, environment, left_s)
        self._told: set[tuple[str, int]] = set()
        self._asked: dict[tuple[str, int], int | None] = {}

    def __call__(self, action: Action) -> None:
        """Carry out one action."""
        match action:
            case Start():
                self.spawn([self.prepare(action)])
            case StartTogether():
                self.spawn([self.prepare(start) for start in action.starts])
            case Spawn():
                self.spawn([self._staged(action.run)])
            case MarkRunning():
                with self._session.transaction() as connection:
                    changes.move_run(connection, action.run, RunState.RUNNING, "its process is alive", self._now())
            case Reap():
                self._reap(action.run)
            case Retry():
                self._retry(action)
            case Revive():
                self._revive(action)
            case Stop():
                self._stop(action)
            case Probe():
                self._probe(action)
            case Settle():
                self._settle(action)
            case EndAutopsy():
                self._end_autopsy(action)

    def prepare(self, action: Start) -> Staged | None:
        """Everything of a start but its process: the intent row first, then the files. None while something is on its
        way to the host."""
        place = self._places.of_slot(action.slot)
        now = self._now()
        before = self._places.before(action.slot)
        with self._session.transaction() as connection:
            if action.kind is AttemptKind.TRAIN:
                on_slot = f"attempt {action.attempt} on {action.slot}"
                changes.move_run(connection, action.run, RunState.PLACED, on_slot, now, attempt=action.attempt)
                changes.move_run(connection, action.run, RunState.STAGING, on_slot, now, attempt=action.attempt)
            else:
                reason = _PURPOSES[action.kind]
                changes.add_event(connection, now, str(action.kind), reason, run=action.run, attempt=action.attempt)
            changes.add_attempt(
                connection, action.run, action.attempt, action.kind, place.lease, asdict(action.slot), now
            )
            if before is not None:
                changes.set_attempt(connection, action.run, action.attempt, before=before)
        return self._staged(action.run)

    def _staged(self, run_id: str) -> Staged | None:
        staged = self._stage(run_id)
        if staged is not None:
            self._asked[staged.run, staged.attempt] = None  # its control.json is new
        return staged

    def spawn(self, ready: Sequence[Staged | None]) -> None:
        """Start what is staged, in one call for each host, and confirm it.

        Raises SpawnRefused for a single attempt. Of several nothing is confirmed then: the next round asks for each
        alone, and those that are alive already answer with who they are.
        """
        staged = [one for one in ready if one is not None]
        for shell in dict.fromkeys(one.shell for one in staged):
            group = [one for one in staged if one.shell is shell]
            try:
                spawned = shell.spawn([one.launch_spec for one in group])
            except SpawnRefused:
                if len(group) == 1:
                    raise
                continue
            with self._session.transaction() as connection:
                for one, answer in zip(group, spawned, strict=True):
                    changes.set_attempt(
                        connection, one.run, one.attempt,
                        phase="live", identity=asdict(answer.identity), started=self._now(),
                    )  # fmt: skip

    def _stop(self, action: Stop) -> None:
        now = self._now()
        with self._session.transaction() as connection:
            changes.set_attempt(connection, action.run, action.attempt, stop_reason=action.reason)
            run = read_run(connection, action.run)
            if run.state not in (RunState.STARTING, RunState.RUNNING):  # what the run itself is stays as it is
                assert run.attempt is not None
                what = "autopsy" if run.attempt.kind == AttemptKind.AUTOPSY else "final evaluation"
                said = f"its {what} ends: {action.reason}"
                changes.add_event(connection, now, "stop", said, study=run.study, run=run.run, attempt=action.attempt)
            else:
                changes.move_run(
                    connection, action.run, RunState.STOPPING, action.reason, now,
                    rule=action.rule, attempt=action.attempt,
                )  # fmt: skip
        self.send_stop(run)

    def send_stop(self, run: StoredRun) -> None:
        """Tell the trainer and its supervisor; written again after a restart, because a repeat is harmless."""
        assert run.attempt is not None
        shell = self._places.by_lease(run.attempt.lease).shell
        run_dir = self._home.root / run.run
        order = {"reason": run.attempt.stop_reason, "grace_s": GRACE_S, "term_s": TERM_S}
        shell.write(str(attempt_dir(run_dir, run.attempt.number) / "stop.json"), _json(order))
        write_control(shell, run_dir, run.attempt.number, stop="checkpoint")
        self._told.add((run.run, run.attempt.number))

    def _probe(self, action: Probe) -> None:
        """What is decided stands in the attempt's row first; control.json follows it, after a kill at the latest."""
        with self._session.transaction() as connection:
            changes.set_attempt(connection, action.run, action.attempt, probe_every_steps=action.every_steps)
            run = read_run(connection, action.run)
            if action.every_steps is None:
                said = "relaxed: no validations beside the regular ones any more"
            else:
                said = f"asked: validations every {action.every_steps} steps; {(run.verdict or {}).get('reason', '')}"
            changes.add_event(
                connection, self._now(), "probe", said, study=run.study, run=run.run, attempt=action.attempt,
                step=last_step(connection, run.run), data={"every_steps": action.every_steps},
            )  # fmt: skip
        self.send_probe(run)

    def send_probe(self, run: StoredRun) -> None:
        """Bring control.json to what the attempt's row says; one that says it already is left as it is."""
        attempt = run.attempt
        assert attempt is not None
        shell, run_dir = self._places.by_lease(attempt.lease).shell, self._home.root / run.run
        found = read_control(shell, run_dir)
        wanted = {"attempt": attempt.number, "probe_every_steps": attempt.probe_every_steps, "stop": None}
        if any(found.get(key, ...) != value for key, value in wanted.items()):
            write_control(shell, run_dir, attempt.number, probe_every_steps=attempt.probe_every_steps)
        self._asked[run.run, attempt.number] = attempt.probe_every_steps

    def folders(self) -> Iterator[tuple[int, str]]:
        """(lease, folder) of what is being made ready on hosts: what is written there must be seen."""
        return self._stage.folders()

    def was_asked(self, run: str, attempt: StoredAttempt) -> bool:
        """Whether this controller has seen to it that control.json asks a training for what its row says."""
        return self._asked.get((run, attempt.number), -1) == attempt.probe_every_steps

    def was_told(self, run: str, attempt: int) -> bool:
        """Whether this controller has told an attempt to stop; one that could not be told must be told again."""
        return (run, attempt) in self._told

    def forget(self, names: Collection[str]) -> None:
        """Keep in memory only what belongs to these runs."""
        self._told = {(run, attempt) for run, attempt in self._told if run in names}
        self._asked = {key: steps for key, steps in self._asked.items() if key[0] in names}

    def _retry(self, action: Retry) -> None:
        now = self._now()
        with self._session.transaction() as connection:
            run = read_run(connection, action.run)
            assert run.attempt is not None
            used = run.retries_used + 1
            changes.set_attempt(connection, run.run, run.attempt.number, failure=action.rule)
            changes.move_run(connection, run.run, action.state, action.reason, now, rule=action.rule)
            # Once it has gone back to its best, a retry goes on from where it came to since.
            start = "last" if run.attempt.resumed_from is not None else run.resume_from
            changes.set_run(connection, run.run, retries_used=used, wave=None, resume_from=start)
            arm = from_json(run.arm_document)
            how = "from the last complete checkpoint" if arm.command is None else "the command is started again"
            again = f"retry {used} of {arm.retries} after {action.rule}, {how}"
            changes.move_run(connection, run.run, RunState.QUEUED, again, now)

    def _reap(self, run_id: str) -> None:
        """A new supervisor for what a lost one left: it asks the process to save, ends the tree and writes its end."""
        with self._session.reading() as connection:
            run = read_run(connection, run_id)
        assert run.attempt is not None
        shell = self._places.by_lease(run.attempt.lease).shell
        run_dir = Path(shell.path_there(str(self._home.root / run.run)))
        (answer,) = shell.spawn([reap_spec(self._session.home_id, run.run, run_dir, run.attempt.number)])
        with self._session.transaction() as connection:
            changes.set_attempt(connection, run.run, run.attempt.number, identity=asdict(answer.identity))
            reason = "its supervisor was lost; another one lets the training save and ends it"
            changes.add_event(
                connection, self._now(), "warning", reason, study=run.study, run=run.run, attempt=run.attempt.number
            )

    def _revive(self, action: Revive) -> None:
        with self._session.transaction() as connection:
            attempt = read_run(connection, action.run).attempt
            has_ended = attempt is not None and attempt.phase == Phase.ENDED
            if not has_ended:
                changes.set_attempt(connection, action.run, action.attempt, phase="live", ended=None)
            reason = "its end came to light" if has_ended else "it reports again: its process never died"
            changes.move_run(connection, action.run, RunState.RUNNING, reason, self._now(), attempt=action.attempt)

    def _settle(self, action: Settle) -> None:
        next_run = self._rescued(action.run) if action.rescue else None
        with self._session.transaction() as connection:
            run = read_run(connection, action.run)
            attempt = run.attempt
            if attempt is not None and attempt.phase == Phase.INTENDED:
                changes.set_attempt(connection, action.run, attempt.number, phase="gone")
            if attempt is not None and action.state in (RunState.FAILED, RunState.LOST):
                changes.set_attempt(connection, action.run, attempt.number, failure=action.rule)
            changes.move_run(connection, action.run, action.state, action.reason, self._now(), rule=action.rule)
            changes.set_run(connection, action.run, stop_wanted=None, resume_from=None)
            if next_run is not None:
                add_rescue(connection, run, next_run, self._now())
            elif action.rescue:
                said = "it cannot be rescued: none of its checkpoints is there"
                changes.add_event(connection, self._now(), RESCUED, said, study=run.study, run=run.run)

    def _rescued(self, name: str) -> Rescued | None:
        """What goes on from a run that is being settled; None without a checkpoint."""
        with self._session.reading() as connection:
            run = read_run(connection, name)
        assert run.attempt is not None
        arm = from_json(run.arm_document)
        steps = checkpoints(self._places.by_lease(run.attempt.lease).shell, self._home.root / run.run)
        start = arm.policy.rescue.start
        best = self._stage.best_step(run, arm, steps) if start == "best" else None
        chosen = choose_step(start, best, steps, began_at(run.verdict or {}))
        return None if chosen is None else rescued(arm, run.seed, run.id, run.snapshot["hash"], *chosen)

    def _end_autopsy(self, action: EndAutopsy) -> None:
        """The run stays as it is; that it changed tells the report that there is something new to read."""
        now = self._now()
        with self._session.transaction() as connection:
            run = read_run(connection, action.run)
            if run.attempt is not None and run.attempt.number == action.attempt and run.attempt.phase == Phase.INTENDED:
                changes.set_attempt(connection, run.run, action.attempt, phase="gone")
            changes.set_run(connection, run.run, autopsy_attempt=None, changed=now)
            if run.state in ENDED:
                changes.set_run(connection, run.run, stop_wanted=None)
            changes.add_event(
                connection, now, AUTOPSY_ENDED, action.reason, study=run.study, run=run.run, attempt=action.attempt,
                data={"ok": action.ok},
            )  # fmt: skip


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(changes.json_ready(document), indent=1) + "\n").encode()
