"""One real step before the clock counts: a run in small, on its own slot, with its own environment and data. Pure.

It works in `<run folder>/preflight/`, so that nothing of it is a part of the run, and leaves only its logs there: its
checkpoints and pictures go before it ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from provisioning.base import Slot
from runner.launch_spec import Launchable, launch_spec
from runner.records import AttemptKind
from runner.spec.command import takes_steps
from runner.staging.jobs import PREFLIGHT, Job

FOLDER = PREFLIGHT
DEADLINE_S = 1800.0
"""Opening a large data set and compiling a model come before the first step and may take long."""

SAMPLES = 6
"""Held-out images of its one validation: each metric still has some."""

# What an earlier try or this one made is of no use to anybody; the logs are. A trainer writes into the folder of its
# try, whose number is known only there; the last --attempt counts.
_STEP = """\
clear() { find "$1" -mindepth 1 -maxdepth 1 ! -name 'attempt-*' ! -name config.yaml -exec rm -rf -- {} +; }
kind=$1 folder=$2; shift 2
clear "$folder"
if [ "$kind" = trainer ]; then set -- "$@" --attempt "${RUNNER_ATTEMPT_DIR##*-}"; fi
"$@"; code=$?
clear "$folder"
exit $code
"""


@dataclass(frozen=True, slots=True)
class NoPreflight:
    """A run that cannot be asked for a single step, and why."""

    why: str


def preflight(
    wanted: Launchable,
    trainer: Mapping[str, Any] | None,
    slot: Slot,
    slot_environment: Mapping[str, str],
    environment: Mapping[str, str],
    seen_run_dir: Path,
) -> Job | NoPreflight:
    """The job that makes one step of a run on its slot.

    `wanted` is the run as it will be started there, `trainer` the trainer block that its config.yaml will hold (None
    for a command), `environment` what processes there get beside it. `seen_run_dir` is the run folder as the shell sees
    it.
    """
    if wanted.command is not None and not takes_steps(wanted.command):
        return NoPreflight("its command does not take {steps}, so it cannot be asked for a single one")
    run_dir = wanted.run_dir / FOLDER
    small = replace(wanted, run=f"{wanted.run}/{FOLDER}", run_dir=run_dir, steps=1)
    spec = launch_spec(small, 1, AttemptKind.TRAIN, slot, slot_environment, environment)
    files: tuple[tuple[Path, bytes], ...] = ()
    kind = "command" if trainer is None else "trainer"
    if trainer is not None:
        document = {"seed": wanted.seed, "run": FOLDER, "trainer": one_step(trainer)}
        files = ((seen_run_dir / FOLDER / "config.yaml", json.dumps(document, indent=1).encode() + b"\n"),)
    return Job(
        name=PREFLIGHT,
        key=wanted.run,
        run=small.run,
        argv=("/bin/sh", "-c", _STEP, "preflight", kind, str(run_dir), *spec["argv"]),
        cwd=spec["cwd"],
        run_dir=run_dir,
        seen_dir=seen_run_dir / FOLDER,
        deadline_s=DEADLINE_S,
        makes="one step",
        env=spec["env"],
        home_id=wanted.home_id,
        files=files,
        cores=tuple(spec["cores"]),
    )


def one_step(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """A complete trainer block (every default written out) cut down to one step.

    Model, data, batch, optimizer and techniques stay, so memory and speed of the step are real; shares of the run that
    would leave nothing of one step (a warm-up, a dense tail, smaller images at first) go, and of the validations one
    light one remains.
    """
    small = {name: dict(value) if isinstance(value, Mapping) else value for name, value in trainer.items()}
    small.update(steps=1, log_every=1)
    samples = min(SAMPLES, small["validation"]["samples"])
    small["validation"].update(every=1, samples=samples, sampler_steps=1, eval_seeds=1)
    small["optimizer"]["warmup_steps"] = 0
    small["tread"]["dense_tail"] = 0.0
    if small.get("resolution"):
        small["resolution"] = []  # the images that need the most memory
    small["checkpoint"]["keep"] = {**small["checkpoint"]["keep"], "milestones": []}
    return small
