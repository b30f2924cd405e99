"""One real step of a run before it counts: a real trainer and a real script, in small and in a folder of their own."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provisioning.base import Slot
from provisioning.local_shell import LocalShell
from runner.detach import SUPERVISOR
from runner.launch_spec import Launchable
from runner.spec import read_study_arms
from runner.staging import jobs
from runner.staging.jobs import Done, Failed, Job
from runner.staging.preflight import NoPreflight, one_step, preflight
from tests.fakes.arms import everything_below
from trainer.check import check

ROOT = Path(__file__).parents[1]
SLOT = Slot("cpu0", (min(os.sched_getaffinity(0)),))
THREADS = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TINY: dict[str, Any] = {
    "steps": 400,
    "batch": 2,
    "model": {"width": 16, "depth": 3, "heads": 2, "patch": 8},
    "data": {"samples": 16, "held_out": 12},
    "validation": {"every": 50, "samples": 12, "sampler_steps": 8},
    "optimizer": {"name": "muon", "warmup_steps": 50},
    "tread": {"enabled": True, "first": 1, "last": 1, "dense_tail": 0.6},
    "checkpoint": {"keep": {"last": 2, "best": {"metric": "val/loss"}, "milestones": [100]}},
}


@pytest.fixture
def shell() -> Iterator[LocalShell]:
    found = LocalShell(str(SUPERVISOR))
    yield found
    found.close()


def wanted(tmp_path: Path, command: list[str] | None) -> Launchable:
    return Launchable(
        home_id="home",
        run="trial/A-s0-0123abcd",
        seed=5,
        run_dir=tmp_path / "run",
        code_root=ROOT,
        arm_dir=tmp_path,
        python=sys.executable,
        command=command,
        env={"TOKEN": "s3cret"},
        evaluation_limit_s=1.0,
        autopsy_limit_s=1.0,
        steps=400,
    )


def prepared(tmp_path: Path, command: list[str] | None, trainer: dict[str, Any] | None = None) -> Job:
    found = preflight(wanted(tmp_path, command), trainer, SLOT, THREADS, {"PATH": os.environ["PATH"]}, tmp_path / "run")
    assert isinstance(found, Job), found
    return found


def ended(shell: LocalShell, job: Job, within_s: float = 60.0) -> Done | Failed:
    jobs.begin(shell, job)
    deadline = time.monotonic() + within_s
    while not isinstance(found := jobs.state(shell, job), Done | Failed):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def complete(block: dict[str, Any]) -> dict[str, Any]:
    answer = check("x", block)
    assert answer["ok"], answer["errors"]
    return dict(answer["config"])


def test_the_trainer_makes_one_step_and_leaves_its_logs_only(shell: LocalShell, tmp_path: Path) -> None:
    job = prepared(tmp_path, None, complete(TINY))
    assert "s3cret" not in repr(job)
    found = ended(shell, job)
    assert found == Done(), found
    left = everything_below(tmp_path / "run")
    lines = (left["preflight/attempt-1/metrics.jsonl"] or b"").decode().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert {line["step"] for line in metrics if line["kind"] == "train"} == {1}
    assert any(line["kind"] == "val" and "val/recon_rmse" in line for line in metrics)
    stays = ("preflight/attempt-1", "preflight/config.yaml")
    assert [name for name in left if not name.startswith(stays)] == ["preflight"]


def test_a_second_try_writes_beside_the_first(shell: LocalShell, tmp_path: Path) -> None:
    script = tmp_path / "x.py"
    script.write_text(
        "import os, sys; open(sys.argv[1] + '/weights', 'w'); print(sys.argv[2]); sys.exit(int(sys.argv[3]))"
    )
    job = prepared(tmp_path, ["python3", "{arm_dir}/x.py", "{run_dir}", "{steps}", "4"])
    failed = ended(shell, job)
    assert isinstance(failed, Failed)
    assert failed.reason == "preflight: exit code 4: 1"
    assert not failed.may_pass  # by itself it would only fail once more; a person may ask for it again
    assert isinstance(ended(shell, dataclasses.replace(job, number=2)), Failed)
    assert sorted(os.listdir(tmp_path / "run" / "preflight")) == ["attempt-1", "attempt-2"]


def test_a_command_gets_one_step_and_a_folder_of_its_own(shell: LocalShell, tmp_path: Path) -> None:
    code = "from os import *; print(environ['RUNNER_STEPS'], environ['RUNNER_RUN_DIR'], environ['TOKEN'][:2], getcwd())"
    job = prepared(tmp_path, ["python3", "-c", code, "{steps}"])
    assert ended(shell, job) == Done()
    said = (tmp_path / "run" / "preflight" / "attempt-1" / "stdout.log").read_text()
    assert said == f"1 {tmp_path}/run/preflight s3 {tmp_path}\n"
    assert job.launch_spec()["cores"] == list(SLOT.cores)


def test_a_command_that_takes_no_steps_has_none_and_it_says_why(tmp_path: Path) -> None:
    found = preflight(wanted(tmp_path, ["python3", "x.py"]), None, SLOT, THREADS, {}, tmp_path)
    assert isinstance(found, NoPreflight)
    assert "{steps}" in found.why


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"optimizer": {"warmup_steps": 400}},
        {"tread": {"enabled": True, "dense_tail": 0.99}},
        {"repa": {"enabled": True, "stop": {"kind": "linear", "start": 0.2, "end": 0.3}}},
        {"repa": {"enabled": True, "stop": {"kind": "gradient_cosine"}}},
        {"sampler": {"native": {"kind": "nested_cfg"}}},
        {"validation": {"every": 1000, "samples": 2}},
        {"checkpoint": {"keep": {"milestones": [100, 400]}}},
        {"data": {"source": "folder", "path": "/data/faces"}},
        {"ema": {"half_lives": [0.05, 0.2], "every": 10}},
    ],
)
def test_one_step_of_any_usable_configuration_is_usable(change: dict[str, Any]) -> None:
    block = {"steps": 400, **change}
    if block.get("repa") or block.get("tread"):
        block["model"] = {"depth": 6}
    full = complete(block)
    small = complete(one_step(full))
    assert small["steps"] == 1
    for kept in ("model", "data", "batch", "accumulation", "device", "streams", "objective", "repa", "ema"):
        assert small[kept] == full[kept]
    assert small["optimizer"] == {**full["optimizer"], "warmup_steps": 0}
    assert full["steps"] == 400


def test_one_step_of_every_arm_of_the_repository_is_usable() -> None:
    files = [path for path in sorted((ROOT / "arms").rglob("*.yaml")) if path.parent.name != "base"]
    arms = [arm for arm in read_study_arms(files) if arm.trainer is not None]
    assert len(arms) >= 9
    for arm in arms:
        assert arm.trainer is not None
        assert complete(one_step(arm.trainer))["model"] == arm.trainer["model"]
