"""The stopping rules that people use today, on the same recorded curves: the real libraries, each in its environment.

Lightning, Ray Tune and Optuna see what they always see, the values of the regular validations, and answer for each arm
with the step at which they stop it. Each is a script in stopping_peers/, fed with JSON lines.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from benchmarks.peers import python_of
from benchmarks.study_curves import Arm

SCRIPTS = Path(__file__).resolve().parent / "stopping_peers"
REQUIREMENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # The bound on torch keeps an install without CUDA small, as in pyproject.toml.
        "lightning": ("pytorch-lightning==2.6.6", "torch>=2.13,<2.14"),
        "ray": ("ray[tune]==2.60.0",),
        "optuna": ("optuna==5.0.0",),
    }
)


@dataclass(frozen=True)
class Stop:
    """What a peer's rule did with one arm: the step at which it stopped it, None for never."""

    rule: str
    study: str
    arm: int
    step: int | None


def stops(peer: str, studies: Sequence[Sequence[Arm]]) -> list[Stop]:
    """What the rules of one peer do with every arm. Raises RuntimeError with its last words when the script fails."""
    python = python_of(peer, *REQUIREMENTS[peer])
    names = ("study", "arm", "steps_total", "direction", "val_steps", "val_metric")
    lines = (json.dumps({name: getattr(arm, name) for name in names}) for arms in studies for arm in arms)
    done = subprocess.run(
        [python, str(SCRIPTS / f"{peer}_rules.py")], input="\n".join(lines), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{peer}'s rules failed: {done.stderr[-2000:]}")
    return [Stop(**json.loads(line)) for line in done.stdout.splitlines()]
