"""Puts everything in place that an attempt needs on its host: what is left then is to spawn it.

Every part may be repeated, and each round asks again: what is on its way to another machine is waited for by nobody.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from provisioning.base import HostLost, Shell
from provisioning.gpus import slot_environment
from provisioning.local_shell import LocalShell
from runner.autopsies import limit_s
from runner.bringing import Bringing
from runner.clock import Clock
from runner.control_file import write_control
from runner.home import Home
from runner.judge.best import best_point
from runner.launch_spec import GRACE_S, Launchable, launch_spec
from runner.observe import checkpoints, checkpoints_there, step_name
from runner.places import Place, Places
from runner.readying import Readying
from runner.records import AttemptKind, RunState
from runner.spec.models import ResolvedArm, document, environment_values, from_json
from runner.spec.yaml12 import dump
from runner.staging import data, jobs
from runner.staging.jobs import Site
from runner.store import changes
from runner.store.curves import as_series, read_curves
from runner.store.facts import StoredRun, read_run
from runner.store.session import Session
from runner.unstaged import Unstaged

EVALUATION_S = 900.0
"""What the final evaluation after an abort may take."""


@dataclass(frozen=True, slots=True)
class Staged:
    """An attempt whose row and files are in place: what is left is to spawn it. The launch spec may hold secrets."""

    run: str
    attempt: int
    shell: Shell
    launch_spec: Mapping[str, Any]


class Stage:
    """Stages attempts. The clock and the environment that we were started with are injected."""

    def __init__(
        self,
        session: Session,
        home: Home,
        places: Places,
        clock: Clock,
        environment: Mapping[str, str],
        left_s: Callable[[StoredRun], float | None],
    ) -> None:
        self._session = session
        self._home = home
        self._places = places
        self._now = clock.now
        self._environment = environment
        self._left_s = left_s
        self._there = Bringing()
        self._here = LocalShell("")  # its spawner is never asked
        self._readying = Readying(session, home, clock.now)
        self._unstaged = Unstaged(session, clock.now, clock.monotonic)

    def folders(self) -> Iterator[tuple[int, str]]:
        """(lease, folder) of what is being made ready: what is written there must be seen."""
        return self._readying.folders()

    def __call__(self, run_id: str) -> Staged | None:
        """The files of an intended attempt; every part may be repeated. None while something of it is under way. Raises
        HostLost, StagingFailed, SpawnRefused; a run whose host stays silent goes back to the queue."""
        try:
            staged = self._stage(run_id)
        except HostLost:
            self._unstaged.lost(run_id)
            raise
        self._unstaged.reached(run_id)
        return staged

    def _stage(self, run_id: str) -> Staged | None:
        with self._session.reading() as connection:
            run = read_run(connection, run_id)
        assert run.attempt is not None
        place = self._places.by_lease(run.attempt.lease)
        arm = from_json(run.arm_document)
        run_dir = self._home.root / run.run
        is_there = self._there.code(place, self._home.root / run.snapshot["root"])
        if not (is_there and self._checkpoints_are_there(place, run, arm)):
            return None
        variables = environment_values(arm, self._environment)
        site = self._readying.site(place, run, {**self._shell_environment(place.shell), **variables})
        if not self._readying.is_ready(place, run, arm, site):
            return None
        wanted = self._launchable(place.shell, run, arm, run_dir, site, variables)
        if not self._has_stepped(place, run, arm, wanted):
            return None
        self._write_files(place.shell, run, arm, run_dir)
        spec = self._launch_spec(place.shell, run, arm, wanted)
        if run.state is RunState.STAGING:
            with self._session.transaction() as connection:
                changes.move_run(connection, run.run, RunState.STARTING, "staged", self._now())
        return Staged(run.run, run.attempt.number, place.shell, spec)

    def _has_stepped(self, place: Place, run: StoredRun, arm: ResolvedArm, wanted: Launchable) -> bool:
        """Whether a training on another machine has made one step there in small: it may lack what is here."""
        assert run.attempt is not None
        if place.shell.is_here or run.attempt.kind != AttemptKind.TRAIN:
            return True
        pinned = slot_environment(run.attempt.slot, arm.resources.gpu_ids, place.shell.mask)
        return self._readying.has_stepped(place, run, arm, wanted, pinned, self._shell_environment(place.shell))

    def _checkpoints_are_there(self, place: Place, run: StoredRun, arm: ResolvedArm) -> bool:
        """Whether the host has what the attempt begins with. A run that comes from another machine, or from here, finds
        its checkpoints on no other host: they are brought."""
        assert run.attempt is not None
        if place.shell.is_here or arm.command is not None:
            return True
        run_dir = self._home.root / run.run
        wanted = [run_dir / "checkpoints" / step_name(step) for step in checkpoints(place.shell, run_dir)]
        if checkpoints_there(place.shell, run_dir):
            wanted = []  # it was here before, and has newer ones than we
        elif run.initial_checkpoint is not None and not wanted:
            origin = self._home.root / run.initial_checkpoint["run"]
            wanted = [origin / "checkpoints" / step_name(run.initial_checkpoint["step"])]
        found = [self._there.checkpoint(place, one) for one in wanted]  # all are begun at once
        return all(found)

    def _write_files(self, shell: Shell, run: StoredRun, arm: ResolvedArm, run_dir: Path) -> None:
        assert run.attempt is not None
        config = dump(document(arm, run.seed, run.id))
        # None of them waits for the disk: after a power failure an intended attempt is staged again.
        shell.write(str(run_dir / "config.yaml"), config.encode(), is_durable=False)
        provenance = {**run.provenance, "snapshot": run.snapshot["hash"], "slot": asdict(run.attempt.slot)}
        # Only here: what differs from the last commit concerns nobody who runs another machine.
        self._here.write(str(run_dir / "provenance.json"), _json(provenance), is_durable=False)
        write_control(shell, run_dir, run.attempt.number)

    def _launch_spec(self, shell: Shell, run: StoredRun, arm: ResolvedArm, wanted: Launchable) -> dict[str, Any]:
        assert run.attempt is not None
        run_dir = self._home.root / run.run
        steps = checkpoints_there(shell, run_dir)
        resume = run.attempt.kind == AttemptKind.TRAIN and arm.command is None and bool(steps)
        from_step = self.best_step(run, arm, steps) if resume and run.resume_from == "best" else None
        from_run = None
        if run.initial_checkpoint is not None and not resume and run.attempt.kind == AttemptKind.TRAIN:
            from_run = _there(shell, self._home.root / run.initial_checkpoint["run"])
            from_step = run.initial_checkpoint["step"]
        return launch_spec(
            wanted,
            run.attempt.number,
            AttemptKind(run.attempt.kind),
            run.attempt.slot,
            slot_environment(run.attempt.slot, arm.resources.gpu_ids, shell.mask),
            self._shell_environment(shell),
            resume=resume,
            from_step=from_step,
            from_run=from_run,
            grace_s=GRACE_S,
        )

    def _shell_environment(self, shell: Shell) -> Mapping[str, str]:
        """What a process begins with: here, what we were started with; elsewhere, what holds there."""
        if not shell.is_here:
            return {}
        return {name: value for name, value in self._environment.items() if name != "RUNNER_ATTEMPT"}

    def _launchable(
        self, shell: Shell, run: StoredRun, arm: ResolvedArm, run_dir: Path, site: Site, variables: Mapping[str, str]
    ) -> Launchable:
        snapshot, key = _there(shell, self._home.root / run.snapshot["root"]), self._readying.key(run, arm)
        placed = data.places(arm.data, str(site.folder))
        return Launchable(
            home_id=self._session.home_id,
            run=run.run,
            seed=run.seed,
            run_dir=_there(shell, run_dir),
            code_root=snapshot,
            arm_dir=snapshot / run.snapshot["arm_dir"],
            python=jobs.run_python(arm, site, key),
            command=None if arm.command is None else data.with_places(arm.command, placed),
            env={**variables, **jobs.run_variables(arm, site, key)},
            evaluation_limit_s=self._evaluation_limit_s(run),
            autopsy_limit_s=limit_s(arm.policy, self._left_s(run)),
            steps=arm.steps,
        )

    def _evaluation_limit_s(self, run: StoredRun) -> float:
        """What the last validation may take: no more than the budget has left, and never no time at all."""
        left_s = self._left_s(run)
        return EVALUATION_S if left_s is None else max(1.0, min(EVALUATION_S, left_s))

    def best_step(self, run: StoredRun, arm: ResolvedArm, steps: tuple[int, ...]) -> int | None:
        """The kept checkpoint with the best primary; None when the primary says nothing about any of them."""
        if arm.primary is None:
            return None
        with self._session.reading() as connection:
            # The attempt that is being staged has its row already; an earlier one may have ended before it had begun.
            curves = as_series(read_curves(connection, run.run, [arm.primary.metric], begun_only=True))
        series = curves.get(arm.primary.metric)
        best = None if series is None else best_point(series, arm.primary.direction, run.steps_total)
        return best[0] if best is not None and best[0] in steps else None


def _there(shell: Shell, path: Path) -> Path:
    return Path(shell.path_there(str(path)))


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(changes.json_ready(document), indent=1) + "\n").encode()
