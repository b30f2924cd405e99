"""Small arms for tests: texts of arm files, and resolved arms without any file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from runner.records import Policy, Primary, Resources
from runner.spec.models import DEFAULT_DETECTORS, ResolvedArm, TrainerCheck

COMMAND_ARM = """\
study: trial
arm: A
seeds: [0]
command: [python3, -c, "print('step 1 loss=2')"]
metrics: {source: regex, pattern: 'step (?P<step>\\d+) loss=(?P<loss>\\S+)'}
steps: 5
resources: {gpus: 0}
"""

TRAINER: dict[str, Any] = {
    "steps": 100,
    "batch": 4,
    "optimizer": {"name": "adamw", "lr": 0.001, "warmup_steps": 5, "clip": 1.0, "momentum": 0.95},
    "objective": {"shift": 1.0},
    "data": {"source": "procedural", "path": None, "samples": 64},
    "tread": {"enabled": False, "ratio": 0.5},
    "repa": {"enabled": False, "stop": {"kind": "fixed", "start": 0.1}},
    "ema": {"half_lives": [0.05]},
    "validation": {"every": 10, "sampler_steps": 8},
    "sampler": {"native": {"kind": "dense"}},
    "checkpoint": {"keep": {"last": 2, "best": {"metric": "val/loss", "direction": "min"}, "milestones": []}},
}


def command_arm(folder: Path | str = "/nowhere", **changes: Any) -> ResolvedArm:
    """A resolved command arm named trial/A whose file lies in `folder`."""
    arm = ResolvedArm(
        file="a.yaml",
        path=f"{folder}/a.yaml",
        folder=str(folder),
        sources=(f"{folder}/a.yaml",),
        study="trial",
        arm="A",
        title="A",
        hypothesis="",
        baseline=None,
        seeds=(0,),
        kind="command",
        trainer=None,
        command=("python3", "-c", "pass"),
        metrics={"source": "jsonl", "path": "metrics.jsonl"},
        steps=10,
        primary=None,
        resources=Resources(gpus=0),
        policy=Policy(dict(DEFAULT_DETECTORS)),
        environment={"python": None, "setup": None},
        env={},
        code={"root": None, "include": []},
        origins={"arm": ("a.yaml", 2), "resources": ("base.yaml", 7), "resources.gpus": ("base.yaml", 8)},
    )
    return dataclasses.replace(arm, **changes)


def trainer_arm(overrides: dict[str, Any] | None = None, **changes: Any) -> ResolvedArm:
    """A resolved and checked trainer arm; `overrides` are dotted keys inside the trainer block."""
    config = merged(TRAINER, overrides or {})
    arm = command_arm(
        kind="trainer",
        command=None,
        metrics=None,
        trainer=config,
        steps=config["steps"],
        primary=Primary("val/loss"),
        check=TrainerCheck(steps_total=config["steps"], parameters=1000, checkpoint_mib=2.5),
    )
    return dataclasses.replace(arm, **changes)


def merged(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested dicts with dotted keys set."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    for key, value in overrides.items():
        *path, last = key.split(".")
        block = result
        for part in path:
            block[part] = dict(block[part])
            block = block[part]
        block[last] = value
    return result


def everything_below(folder: Path) -> dict[str, bytes | None]:
    """Names and contents of all that lies below a folder; None for what is no regular readable file."""
    found: dict[str, bytes | None] = {}
    for path in sorted(folder.rglob("*")):
        found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() and not path.is_symlink() else None
    return found
