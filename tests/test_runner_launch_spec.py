"""What a supervisor is told to start."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioning.base import Slot
from runner.launch_spec import Launchable, launch_spec
from runner.records import AttemptKind

WANTED = Launchable(
    home_id="h", run="s/A-s0", seed=0, run_dir=Path("/r"), code_root=Path("/c"), arm_dir=Path("/a"), python="python",
    command=None, env={}, evaluation_limit_s=60.0, autopsy_limit_s=60.0, steps=10,
)  # fmt: skip


@pytest.mark.parametrize(("gpus", "processes"), [(0, []), (1, []), (3, ["--processes", "3"])])
def test_a_trainer_uses_all_gpus_of_its_slot(gpus: int, processes: list[str]) -> None:
    slot = Slot("gpu0", (0,), tuple(f"GPU-{index}" for index in range(gpus)))
    argv = launch_spec(WANTED, 2, AttemptKind.TRAIN, slot, {}, {}, resume=True)["argv"]
    assert argv[argv.index("--resume") + 1 :] == processes
    for kind in (AttemptKind.EVALUATE, AttemptKind.AUTOPSY):
        assert "--processes" not in launch_spec(WANTED, 2, kind, slot, {}, {})["argv"]
