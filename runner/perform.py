"""Carries out one action: intent row first, then the act, then its confirmation.

Each step may be cut off by a kill at any line: what is repeated after a restart is harmless (files are replaced, a
second spawn of an attempt is refused by its supervisor), and what was not yet decided is decided again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from provisioning.base import Shell, SpawnRefused
from provisioning.gpus import slot_environment
from runner.actions import Action, MarkRunning, Reap, Retry, Revive, Settle, Spawn, Start, StartTogether, Stop
from runner.home import Home
from runner.judge.best import best_point
from runner.launch_spec import GRACE_S, TERM_S, Launchable, attempt_dir, launch_spec, reap_spec
from runner.observe import checkpoints
from runner.places import Places
from runner.records import AttemptKind, RunState
from runner.schedule import Phase
from runner.spec.models import DEFAULT_AUTOPSY_S, ResolvedArm, document, environment_values, from_json
from runner.spec.yaml12 import dump
from runner.store import changes
from runner.store.curves import as_series, read_curves
from runner.store.facts import StoredRun, read_run
from runner.store.session import Session


@dataclass(frozen=True, slots=True)
class Staged:
    """An attempt whose row and files are in place: what is left is to spawn it. The launch spec may hold secrets."""

    run: str
    attempt: int
    shell: Shell
    launch_spec: Mapping[str, Any]


class Perform:
    """Turns actions into rows, files and processes. The clock and the shell's environment are injected."""

    def __init__(
        self,
        session: Session,
        home: Home,
        places: Places,
        now: Callable[[], float],
        environment: Mapping[str, str],
        left_s: Callable[[StoredRun], float | None] = lambda _run: None,
    ) -> None:
        self._session = session
        self._home = home
        self._places = places
        self._now = now
        self._environment = environment
        self._left_s = left_s
        self._told: set[tuple[str, int]] = set()

    def __call__(self, action: Action) -> None:
        """Carry out one action."""
        match action:
            case Start():
                self.spawn([self.prepare(action)])
            case StartTogether():
                self.spawn([self.prepare(start) for start in action.starts])
            case Spawn():
                self.spawn([self._stage(action.run)])
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
            case Settle():
                self._settle(action)

    def prepare(self, action: Start) -> Staged:
        """Everything of a start but its process: the intent row first, then the files."""
        place = self._places.hold("local")
        now = self._now()
        before = self._places.before(action.slot)
        with self._session.transaction() as connection:
            if action.kind is AttemptKind.TRAIN:
                on_slot = f"attempt {action.attempt} on {action.slot.name}"
                changes.move_run(connection, action.run, RunState.PLACED, on_slot, now, attempt=action.attempt)
                changes.move_run(connection, action.run, RunState.STAGING, on_slot, now, attempt=action.attempt)
            else:
                reason = "full validation of the last and the best checkpoint"
                changes.add_event(connection, now, "evaluate", reason, run=action.run, attempt=action.attempt)
            changes.add_attempt(
                connection, action.run, action.attempt, action.kind, place.lease, asdict(action.slot), now
            )
            if before is not None:
                changes.set_attempt(connection, action.run, action.attempt, before=before)
        return self._stage(action.run)

    def spawn(self, staged: Sequence[Staged]) -> None:
        """Start what is staged, in one call for each host, and confirm it.

        Raises SpawnRefused for a single attempt. Of several nothing is confirmed then: the next round asks for each
        alone, and those that are alive already answer with who they are.
        """
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

    def _stage(self, run_id: str) -> Staged:
        """The files of an intended attempt; every part may be repeated."""
        with self._session.reading() as connection:
            run = read_run(connection, run_id)
        assert run.attempt is not None
        place = self._places.by_lease(run.attempt.lease)
        arm = from_json(run.arm_document)
        run_dir = self._home.root / run.run
        self._write_files(place.shell, run, arm, run_dir)
        spec = self._launch_spec(place.shell, run, arm, run_dir)
        if run.state is RunState.STAGING:
            with self._session.transaction() as connection:
                changes.move_run(connection, run.run, RunState.STARTING, "staged", self._now())
        return Staged(run.run, run.attempt.number, place.shell, spec)

    def _write_files(self, shell: Shell, run: StoredRun, arm: ResolvedArm, run_dir: Path) -> None:
        assert run.attempt is not None
        config = dump(document(arm, run.seed, run.id))
        # None of them waits for the disk: after a power failure an intended attempt is staged again.
        shell.write(str(run_dir / "config.yaml"), config.encode(), is_durable=False)
        provenance = {**run.provenance, "snapshot": run.snapshot["hash"], "slot": asdict(run.attempt.slot)}
        shell.write(str(run_dir / "provenance.json"), _json(provenance), is_durable=False)
        self._write_control(shell, run_dir, run.attempt.number, stop=None)

    def _launch_spec(self, shell: Shell, run: StoredRun, arm: ResolvedArm, run_dir: Path) -> dict[str, Any]:
        assert run.attempt is not None
        steps = checkpoints(shell, run_dir)
        resume = run.attempt.kind == AttemptKind.TRAIN and arm.command is None and bool(steps)
        return launch_spec(
            self._launchable(run, arm, run_dir),
            run.attempt.number,
            AttemptKind(run.attempt.kind),
            run.attempt.slot,
            slot_environment(run.attempt.slot, arm.resources.gpu_ids, self._environment.get("CUDA_VISIBLE_DEVICES")),
            {name: value for name, value in self._environment.items() if name != "RUNNER_ATTEMPT"},
            resume=resume,
            from_step=self._best_step(run, arm, steps) if resume and run.resume_from == "best" else None,
            grace_s=GRACE_S,
        )

    def _launchable(self, run: StoredRun, arm: ResolvedArm, run_dir: Path) -> Launchable:
        snapshot = self._home.root / run.snapshot["root"]
        return Launchable(
            home_id=self._session.home_id,
            run=run.run,
            seed=run.seed,
            run_dir=run_dir,
            code_root=snapshot,
            arm_dir=snapshot / run.snapshot["arm_dir"],
            python=arm.python,
            command=arm.command,
            env=environment_values(arm, self._environment),
            evaluation_limit_s=self._evaluation_limit_s(run),
            steps=arm.steps,
        )

    def _evaluation_limit_s(self, run: StoredRun) -> float:
        """What the last validation may take: no more than the budget has left, and never no time at all."""
        left_s = self._left_s(run)
        return DEFAULT_AUTOPSY_S if left_s is None else max(1.0, min(DEFAULT_AUTOPSY_S, left_s))

    def _best_step(self, run: StoredRun, arm: ResolvedArm, steps: tuple[int, ...]) -> int | None:
        """The kept checkpoint with the best primary; None when the primary says nothing about any of them."""
        if arm.primary is None:
            return None
        with self._session.reading() as connection:
            # The attempt that is being staged has its row already; an earlier one may have ended before it had begun.
            curves = as_series(read_curves(connection, run.run, [arm.primary.metric], begun_only=True))
        series = curves.get(arm.primary.metric)
        best = None if series is None else best_point(series, arm.primary.direction, run.steps_total)
        return best[0] if best is not None and best[0] in steps else None

    def _stop(self, action: Stop) -> None:
        now = self._now()
        with self._session.transaction() as connection:
            changes.set_attempt(connection, action.run, action.attempt, stop_reason=action.reason)
            run = read_run(connection, action.run)
            if run.state is RunState.STOPPING:  # its evaluation; why the run itself was stopped stays as it is
                said = f"its final evaluation ends: {action.reason}"
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
        self._write_control(shell, run_dir, run.attempt.number, stop="checkpoint")
        self._told.add((run.run, run.attempt.number))

    def was_told(self, run: str, attempt: int) -> bool:
        """Whether this controller has told an attempt to stop; one that could not be told must be told again."""
        return (run, attempt) in self._told

    def forget(self, names: Collection[str]) -> None:
        """Keep in memory only what belongs to these runs."""
        self._told = {(run, attempt) for run, attempt in self._told if run in names}

    def _write_control(self, shell: Shell, run_dir: Path, attempt: int, stop: str | None) -> None:
        path = str(run_dir / "control.json")
        before = shell.read(path)
        seq = _seq_of(before) + 1
        document = {"attempt": attempt, "seq": seq, "probe_every_steps": None, "stop": stop}
        shell.write(path, _json(document), is_durable=False)

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
        (answer,) = shell.spawn(
            [reap_spec(self._session.home_id, run.run, self._home.root / run.run, run.attempt.number)]
        )
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
        with self._session.transaction() as connection:
            attempt = read_run(connection, action.run).attempt
            if attempt is not None and attempt.phase == Phase.INTENDED:
                changes.set_attempt(connection, action.run, attempt.number, phase="gone")
            if attempt is not None and action.state in (RunState.FAILED, RunState.LOST):
                changes.set_attempt(connection, action.run, attempt.number, failure=action.rule)
            changes.move_run(connection, action.run, action.state, action.reason, self._now(), rule=action.rule)
            changes.set_run(connection, action.run, stop_wanted=None, resume_from=None)


def _seq_of(control: bytes | None) -> int:
    """The number in a control.json; 0 when there is none or it cannot be read."""
    try:
        found = json.loads(control or b"{}")
    except ValueError:
        return 0
    seq = found.get("seq") if isinstance(found, dict) else None
    return seq if isinstance(seq, int) else 0


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(changes.json_ready(document), indent=1) + "\n").encode()
