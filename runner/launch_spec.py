"""What a supervisor is told to start: argv, folder, environment and time limits of one attempt. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provisioning.base import Slot
from runner.records import AttemptKind
from runner.spec.command import expand

GRACE_S = 60.0
TERM_S = 5.0
HEARTBEAT_S = 1.0
AUTOPSY_SHARE = 0.9
"""Of its time: an autopsy must have written down what it found before its supervisor ends it."""


@dataclass(frozen=True, slots=True)
class Launchable:
    """What an attempt needs to know of its run. Paths are absolute paths on the slot's host.

    `command` is None for our own trainer, `steps` the budget of the run as it is now: an extended run has a longer one
    than its arm file says. The limits are what a final evaluation and an autopsy may take. `env` may hold secrets, so
    this value is never stored or printed.
    """

    home_id: str
    run: str
    seed: int
    run_dir: Path
    code_root: Path
    arm_dir: Path
    python: str
    command: Sequence[str] | None
    env: Mapping[str, str]
    evaluation_limit_s: float
    autopsy_limit_s: float
    steps: int


def attempt_name(home_id: str, run: str, attempt: int) -> str:
    """The mark that a whole process tree carries; the home's id keeps two homes on one machine apart."""
    return f"{home_id}/{run}/attempt-{attempt}"


def attempt_dir(run_dir: Path, attempt: int) -> Path:
    """The folder of one attempt."""
    return run_dir / f"attempt-{attempt}"


def launch_spec(
    wanted: Launchable,
    attempt: int,
    kind: AttemptKind,
    slot: Slot,
    slot_environment: Mapping[str, str],
    shell_environment: Mapping[str, str],
    *,
    resume: bool = False,
    from_step: int | None = None,
    from_run: Path | None = None,
    grace_s: float = GRACE_S,
) -> dict[str, Any]:
    """The JSON line for the supervisor. `shell_environment` is what the controller itself was started with.

    A trainer on a slot of several GPUs uses all of them, with a process each that the first one starts; evaluations and
    autopsies are one process on the first GPU. A trainer that resumes does so from its newest checkpoint, or that of
    `from_step`. `from_run` is the folder of another run, with whose checkpoint of that step a run without any of its
    own begins.
    """
    is_trainer = wanted.command is None
    return {
        "attempt": attempt_name(wanted.home_id, wanted.run, attempt),
        "argv": _trainer_argv(wanted, attempt, kind, slot, resume, from_step, from_run)
        if is_trainer
        else _command_argv(wanted, slot_environment),
        "cwd": str(wanted.code_root if is_trainer else wanted.arm_dir),
        "env": _environment(wanted, slot_environment, shell_environment),
        "run_dir": str(wanted.run_dir),
        "attempt_dir": str(attempt_dir(wanted.run_dir, attempt)),
        "cores": list(slot.cores),
        "deadline_s": _deadline_s(wanted, kind),
        "grace_s": grace_s,
        "term_s": TERM_S,
        "heartbeat_s": HEARTBEAT_S,
    }


def reap_spec(home_id: str, run: str, run_dir: Path, attempt: int) -> dict[str, Any]:
    """The JSON line for a supervisor that only ends what a lost one left: it needs no environment and no command."""
    return {
        "attempt": attempt_name(home_id, run, attempt),
        "argv": ["reap"],
        "cwd": "/",
        "env": {},
        "run_dir": str(run_dir),
        "attempt_dir": str(attempt_dir(run_dir, attempt)),
        "grace_s": GRACE_S,
        "term_s": TERM_S,
        "heartbeat_s": HEARTBEAT_S,
        "reap": True,
    }


def _deadline_s(wanted: Launchable, kind: AttemptKind) -> float | None:
    """When the supervisor ends an attempt; a training has no deadline of its own."""
    limits = {AttemptKind.EVALUATE: wanted.evaluation_limit_s, AttemptKind.AUTOPSY: wanted.autopsy_limit_s}
    return limits.get(kind)


def _trainer_argv(
    wanted: Launchable,
    attempt: int,
    kind: AttemptKind,
    slot: Slot,
    resume: bool,
    from_step: int | None,
    from_run: Path | None,
) -> list[str]:
    trainer = [wanted.python, "-m", "trainer"]
    if kind is AttemptKind.EVALUATE:
        return [*trainer, "evaluate", str(wanted.run_dir), "--attempt", str(attempt)]
    if kind is AttemptKind.AUTOPSY:
        budget_s = AUTOPSY_SHARE * wanted.autopsy_limit_s
        return [*trainer, "autopsy", str(wanted.run_dir), "--attempt", str(attempt), "--budget-s", f"{budget_s:.1f}"]
    argv = [*trainer, "train", str(wanted.run_dir / "config.yaml"), "--run-dir", str(wanted.run_dir)]
    argv += ["--attempt", str(attempt)]
    if resume:
        argv.append("--resume")
    elif from_run is not None:
        argv += ["--from-run", str(from_run)]
    if from_step is not None:
        argv += ["--from-step", str(from_step)]
    if len(slot.gpu_uuids) > 1:
        argv += ["--processes", str(len(slot.gpu_uuids))]
    return argv


def _command_argv(wanted: Launchable, slot_environment: Mapping[str, str]) -> list[str]:
    assert wanted.command is not None
    return expand(
        wanted.command,
        seed=wanted.seed,
        run_dir=str(wanted.run_dir),
        arm_dir=str(wanted.arm_dir),
        gpus=slot_environment.get("CUDA_VISIBLE_DEVICES", ""),
        python=wanted.python,
        steps=wanted.steps,
    )


def _environment(
    wanted: Launchable, slot_environment: Mapping[str, str], shell_environment: Mapping[str, str]
) -> dict[str, str]:
    environment = {**shell_environment, **slot_environment, **wanted.env}
    environment.update(PYTHONUNBUFFERED="1", RUNNER_RUN_DIR=str(wanted.run_dir))
    environment.update(RUNNER_SEED=str(wanted.seed), RUNNER_STEPS=str(wanted.steps))
    if wanted.command is None:
        # A safe path keeps a `trainer` folder of the working directory from being imported instead of the snapshot.
        environment.update(PYTHONPATH=str(wanted.code_root), PYTHONSAFEPATH="1")
    return environment
