"""The arms of the repository: every file works, the quickstart is what it claims, and the README has every key."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from runner.home import Home
from runner.plan import Capacity, make_plan
from runner.snapshot import preview
from runner.spec import ResolvedArm, read_study_arms
from runner.spec.command import expand
from runner.spec.lint import blocking, lint
from runner.spec.models import DETECTOR_NAMES
from runner.spec.schema import ArmBlock
from runner.spec.yaml12 import parse_value
from trainer.config import AsymFlowConfig, TrainerConfig

ARMS = Path(__file__).parents[1] / "arms"
QUICKSTART = [ARMS / f"{name}.yaml" for name in ("a_baseline", "b_tread_adamw", "c_tread_muon", "d_full_stack")]
EXTRAS = [ARMS / "extras" / f"{name}.yaml" for name in ("any_script", "hot_lr")]
COLLAPSE = [ARMS / f"extras/collapse/{name}.yaml" for name in ("a_small", "b_small", "c_small", "a_large", "b_large")]
LARGE = {ARMS / "portrait_1024", ARMS / "speedrun"}  # these have test files of their own
KEY = re.compile(r"`([a-z_0-9]+(?:\.[a-z_0-9]+)*)`")


@pytest.fixture(scope="module")
def arms() -> dict[str, ResolvedArm]:
    """Every arm of the repository, by name, as the real trainer completes it."""
    return {arm.name: arm for arm in read_study_arms([*QUICKSTART, *EXTRAS])}


def trainer(arm: ResolvedArm) -> Any:
    assert arm.trainer is not None
    return arm.trainer


def test_no_arm_file_is_forgotten() -> None:
    others = [path for path in ARMS.rglob("*.yaml") if path.parent.name != "base" and not LARGE & {*path.parents}]
    assert sorted([*QUICKSTART, *EXTRAS, *COLLAPSE]) == sorted(others)


def test_the_quickstart_is_sized_as_described(arms: dict[str, ResolvedArm]) -> None:
    for name in "ABCD":
        arm = arms[f"portrait-quickstart/{name}"]
        config = trainer(arm)
        assert (arm.steps, config["batch"], config["accumulation"], config["log_every"]) == (800, 16, 1, 1)
        assert config["data"]["source"] == "procedural"
        assert [config["data"][key] for key in ("size", "samples", "held_out")] == [32, 4096, 48]
        assert [config["model"][key] for key in ("width", "depth", "heads", "patch")] == [64, 6, 4, 4]
        optimizer = [config["optimizer"][key] for key in ("lr", "warmup_steps", "weight_decay", "clip")]
        assert optimizer == [2e-3, 50, 0.01, 1.0]
        assert config["optimizer"]["final_lr_share"] == 0.01
        assert list(config["ema"]["half_lives"]) == [0.05, 0.20]
        assert [config["validation"][key] for key in ("every", "samples", "sampler_steps")] == [100, 48, 8]
        assert config["checkpoint"]["keep"]["best"] == {"metric": "val/recon_rmse", "direction": "min"}
        assert arm.primary is not None
        assert (arm.primary.metric, arm.primary.direction, arm.primary.select) == ("val/recon_rmse", "min", "last")
        assert dict(arm.policy.detectors) == {"non_finite": "abort", "explosion": "abort", "regress": "warn"}
        assert arm.resources.gpus == 0
    check = arms["portrait-quickstart/A"].check
    assert check is not None
    assert check.parameters == pytest.approx(670_000, rel=0.05)


def test_the_quickstart_arms_differ_as_they_say(arms: dict[str, ResolvedArm]) -> None:
    a, b, c, d = (arms[f"portrait-quickstart/{name}"] for name in "ABCD")
    assert [arm.seeds for arm in (a, b, c, d)] == [(0, 1), (0,), (0,), (0,)]
    assert [arm.baseline for arm in (a, b, c, d)] == [None, "A", "A", "A"]
    assert [trainer(arm)["tread"]["enabled"] for arm in (a, b, c, d)] == [False, True, True, True]
    assert [trainer(arm)["optimizer"]["name"] for arm in (a, b, c, d)] == ["adamw", "adamw", "muon", "muon"]
    assert [trainer(arm)["repa"]["enabled"] for arm in (a, b, c, d)] == [False, False, False, True]
    assert [trainer(arm)["sampler"]["native"]["kind"] for arm in (a, b, c, d)] == ["nested_cfg", *["self_guidance"] * 3]
    assert {trainer(arm)["sampler"]["native"]["scale"] for arm in (b, c, d)} == {3.0}
    assert [trainer(b)["tread"][key] for key in ("first", "last", "ratio")] == [1, 4, 0.5]
    repa = trainer(d)["repa"]
    assert (repa["after_block"], repa["stop"]) == (1, {"kind": "linear", "start": 0.10, "end": 0.25})


def test_the_comparison_is_fair(arms: dict[str, ResolvedArm]) -> None:
    remarks = lint([arm for arm in arms.values() if arm.name != "portrait-quickstart/hot_lr"])
    assert blocking(remarks) == ()
    assert [remark.message.partition(" (")[0] for remark in remarks if remark.rule == "F01"] == [
        "C differs from A in 2 factors", "D differs from A in 3 factors",
    ]  # fmt: skip
    assert not any("add an arm" in remark.message for remark in remarks)


def test_the_hot_arm_belongs_to_the_same_study(arms: dict[str, ResolvedArm]) -> None:
    hot = arms["portrait-quickstart/hot_lr"]
    assert hot.baseline == "A"
    assert (trainer(hot)["optimizer"]["lr"], trainer(hot)["optimizer"]["clip"]) == (1.0, None)
    assert hot.policy == arms["portrait-quickstart/A"].policy


def test_the_study_of_collapse_is_the_quickstart_looked_at_closely(arms: dict[str, ResolvedArm]) -> None:
    close = {arm.name: arm for arm in read_study_arms(COLLAPSE)}
    assert blocking(lint(list(close.values()))) == ()
    for arm in close.values():
        assert arm.seeds == (0, 1, 2)
        assert set(arm.policy.detectors.values()) == {"shadow"}
        # No checkpoint is pruned: the scores of collapse_cells need each of them.
        assert trainer(arm)["checkpoint"]["keep"]["last"] > arm.steps / trainer(arm)["validation"]["every"]
    differing = ("data", "validation", "checkpoint", "indicators")
    for letter in "ABC":
        ours, theirs = trainer(close[f"collapse-small/{letter}"]), trainer(arms[f"portrait-quickstart/{letter}"])
        # Arm A of the quickstart also has a native guidance, which trains nothing.
        excused = {*differing, "sampler"} if letter == "A" else set(differing)
        assert {key for key in ours if ours[key] != theirs[key]} <= excused


def test_five_runs_on_two_slots(arms: dict[str, ResolvedArm]) -> None:
    chosen = [arms[f"portrait-quickstart/{name}"] for name in "ABCD"]
    plan = make_plan(chosen, dict.fromkeys(arms, "code"), capacity=Capacity(cpu_slots=2))
    assert [run.name.rpartition("/")[2] for run in plan.runs] == ["A-s0", "B-s0", "C-s0", "D-s0", "A-s1"]
    assert 0 < plan.disk_mib < 1024


def run_script(arm: ResolvedArm, tmp_path: Path) -> tuple[list[int], list[float]]:
    """What a run of the script prints, through the arm's own command and pattern."""
    assert arm.command is not None
    assert arm.metrics is not None
    assert preview(arm, Home(tmp_path / "runs")).files == ("any_script.py",)
    argv = expand(arm.command, seed=0, run_dir=str(tmp_path), arm_dir=arm.folder, python=sys.executable)
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=tmp_path)
    found = [match for line in done.stdout.splitlines() if (match := re.search(arm.metrics["pattern"], line))]
    return [int(match["step"]) for match in found], [float(match["loss"]) for match in found]


def test_the_script_knows_nothing_of_us_and_learns(arms: dict[str, ResolvedArm], tmp_path: Path) -> None:
    arm = arms["any-script/small-steps"]
    steps, losses = run_script(arm, tmp_path)
    assert steps == list(range(1, arm.steps + 1))
    assert losses[-1] < 0.02 < losses[0]
    source = (ARMS / "extras/any_script.py").read_text()
    assert set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)) == {"argparse", "random"}
    assert "RUNNER" not in source
    assert len(source.splitlines()) <= 32


def test_its_exploding_variant_needs_no_other_file(tmp_path: Path) -> None:
    text = (ARMS / "extras/any_script.yaml").read_text().replace("\\\n#    ", "")
    written = re.search(r"--set arm=(\S+) +--set '(command=[^']+)'", text)
    assert written is not None
    (arm,) = read_study_arms([ARMS / "extras/any_script.yaml"], sets=(f"arm={written[1]}", written[2]))
    assert arm.arm == "too-fast"
    _, losses = run_script(arm, tmp_path)
    assert losses[-1] > 1e100


def keys_of(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Every dotted key that holds a value."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        inner = [
            each for each in (field.annotation, *getattr(field.annotation, "__args__", ()))
            if isinstance(each, type) and issubclass(each, BaseModel)
        ]  # fmt: skip
        if inner:
            yield from keys_of(inner[0], f"{key}.")
        else:
            yield key


def test_the_readme_has_every_key_and_no_other() -> None:
    rows = [
        line
        for line in (ARMS / "README.md").read_text().splitlines()
        if line.startswith("| `") and ".yaml`" not in line
    ]
    documented = {key for row in rows for key in KEY.findall(row.split("|")[1])}
    known = {*keys_of(ArmBlock, ""), *keys_of(TrainerConfig, "trainer."), "extends", "changes"}
    known |= {f"policy.detectors.{name}" for name in DETECTOR_NAMES}
    blocks = {key.rpartition(".")[0] for key in known} | {"trainer"}
    assert known - documented - {"trainer"} == set()
    assert documented - known - blocks == set()


def test_the_readme_states_the_defaults_of_the_trainer() -> None:
    defaults = dict(flat(TrainerConfig(steps=1).model_dump(mode="json"), "trainer."))
    defaults |= flat(AsymFlowConfig().model_dump(mode="json"), "trainer.objective.asymflow.")  # a block that may be off
    for row in (ARMS / "README.md").read_text().splitlines():
        columns = row.split("|")
        if not row.startswith("| `trainer.") or "keep.best" in row or "sampler.native" in row:
            continue
        keys = KEY.findall(columns[1])
        stated = re.findall(r"`([^`]+)`", columns[3]) or [columns[3].strip()]
        for key, value in zip(keys, stated * len(keys) if len(stated) == 1 else stated, strict=False):
            if value != "*required*":
                assert parse_value(value, "README.md") == defaults[key], key


def flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from flat(inner, f"{key}{name}.")
        else:
            yield f"{key}{name}", inner
