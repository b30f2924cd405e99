"""Which runs are the same run. Pure.

A run is identified by what can change its result: the whole training configuration without checkpoint.keep (or the
command, its metrics and steps), the seed, the environment, names and literal values of env, the references of data, the
code, and the initial checkpoint. Titles, policies, budgets and machines are not part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from runner.spec.models import TRAINER, ResolvedArm


def identity(arm: ResolvedArm, seed: int, code_hash: str, initial_checkpoint: Mapping[str, Any] | None = None) -> str:
    """SHA-256 (hex) over everything that can change the result of this arm with this seed.

    `initial_checkpoint` is {run, step}: the 8 hex digits of the run whose weights it begins with; None for new ones.
    """
    return _digest(
        {
            "work": _work(arm),
            "seed": seed,
            "environment": dict(arm.environment),
            "env": {name: value if isinstance(value, str) else dict(value) for name, value in arm.env.items()},
            "code": code_hash,
            "initial_checkpoint": None if initial_checkpoint is None else dict(initial_checkpoint),
            # Runs from before there was any keep their names.
            **({"data": dict(arm.data)} if arm.data else {}),
        }
    )


def run_id(identity_hash: str, generation: int) -> str:
    """The 8 hex digits that name a run; `generation` counts from 1."""
    return _digest([identity_hash, generation])[:8]


def canonical(value: Any) -> str:
    """JSON text that is the same for equal values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _work(arm: ResolvedArm) -> Mapping[str, Any]:
    if arm.kind != TRAINER:
        assert arm.command is not None
        metrics = None if arm.metrics is None else dict(arm.metrics)
        return {"command": list(arm.command), "metrics": metrics, "steps": arm.steps}
    assert arm.trainer is not None
    trainer = dict(arm.trainer)
    if isinstance(checkpoint := trainer.get("checkpoint"), Mapping):
        trainer["checkpoint"] = {key: value for key, value in checkpoint.items() if key != "keep"}
    return {"trainer": trainer}


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()
