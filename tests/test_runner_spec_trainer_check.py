"""Asking the trainer: one process for all arms, mistakes mapped back to file and line, help when it is missing."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from runner.errors import InfrastructureError, SpecError
from runner.spec import ResolvedArm, read_study_arms, trainer_check
from tests.fakes.arms import COMMAND_ARM, command_arm, everything_below, trainer_arm

TRAINER_ARM = """\
study: small
arm: A
seeds: [0]
resources: {gpus: 0}
trainer:
  steps: 10
  batch: 2
  validation: {every: 5}
changes:
  trainer.optimizer.warmup_steps: 2
"""


def python_that(folder: Path, answer: str, log: Path | None = None) -> str:
    """An interpreter that finds everything installed and answers `-m trainer check` with `answer`."""
    script = folder / "python"
    noted = f'echo "$@" >> {log}; ' if log else ""
    script.write_text(
        f"#!/bin/sh\n{noted}case \"$1\" in -c) exit 0;; esac\ncat > /dev/null\ncat <<'END'\n{answer}\nEND\n"
    )
    script.chmod(0o755)
    return str(script)


def asking(python: str, *arms: ResolvedArm) -> tuple[ResolvedArm, ...]:
    environment = {"python": python, "setup": None}
    return trainer_check.check_trainer_arms(
        [dataclasses.replace(arm, environment=environment, check=None) for arm in arms]
    )


def answered(**values: object) -> dict[str, object]:
    return {"ok": True, "errors": [], "steps_total": 12, **values}


def test_arms_are_asked_about_together_and_completed(tmp_path: Path) -> None:
    answer = [
        {"id": "trial/A#0", **answered(config={"steps": 12}, parameters=7, checkpoint_mib=1.5, notes=["n"])},
        {"id": "trial/B#1", **answered()},
    ]
    log = tmp_path / "log"
    python = python_that(tmp_path, json.dumps(answer), log)
    one, command, other = asking(python, trainer_arm(), command_arm(arm="C"), trainer_arm(arm="B"))
    assert one.trainer == {"steps": 12}
    assert one.steps == 12
    assert one.check is not None
    assert (one.check.parameters, one.check.checkpoint_mib, one.check.notes) == (7, 1.5, ("n",))
    assert command.check is None
    assert other.trainer == trainer_arm().trainer
    assert [line for line in log.read_text().splitlines() if "check" in line] == ["-m trainer check --json"]


def test_a_refusal_points_at_the_file(tmp_path: Path) -> None:
    error = {"path": "optimizer.lrr", "message": "no such key", "allowed": ["lr", "clip"], "nearest": "lr"}
    answer = [{"id": "trial/A#0", "ok": False, "errors": [error, error]}]
    arm = trainer_arm(origins={"arm": ("a.yaml", 1), "trainer": ("b.yaml", 3), "trainer.optimizer": ("b.yaml", 9)})
    with pytest.raises(SpecError) as caught:
        asking(python_that(tmp_path, json.dumps(answer)), arm)
    assert str(caught.value) == (
        "b.yaml:9: trainer.optimizer.lrr: no such key (and 1 more); allowed: lr, clip; did you mean 'lr'?; "
        "next: runner check a.yaml"
    )


@pytest.mark.parametrize("answer", ["", "no json", "{}", "[]", '[{"id": "other", "ok": true}]', "[1]"])
def test_an_answer_that_is_none(tmp_path: Path, answer: str) -> None:
    with pytest.raises(InfrastructureError, match="no usable answer"):
        asking(python_that(tmp_path, answer), trainer_arm())


def test_a_python_that_cannot_be_started() -> None:
    with pytest.raises(SpecError, match="cannot be started") as caught:
        asking("/nowhere/python", trainer_arm())
    assert caught.value.where.key == "environment.python"


def test_a_trainer_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    with pytest.raises(SpecError, match="not installed") as caught:
        asking(str(bare), trainer_arm())
    assert caught.value.next_command == f"{bare} -m pip install 'armature[trainer]'"
    monkeypatch.setattr(trainer_check, "trainer_package", lambda: tmp_path / "trainer")
    with pytest.raises(SpecError, match="not installed") as caught:
        asking(sys.executable, trainer_arm())
    assert caught.value.next_command == "pip install 'armature[trainer]'"
    assert caught.value.exit_code == 2


def test_command_arms_ask_nobody() -> None:
    arm = command_arm(environment={"python": "/nowhere/python", "setup": None})
    assert trainer_check.check_trainer_arms([arm]) == (arm,)


def test_the_real_trainer_completes_an_arm(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(TRAINER_ARM)
    (tmp_path / "b.yaml").write_text(COMMAND_ARM)
    arm, command = read_study_arms([tmp_path / "a.yaml", tmp_path / "b.yaml"])
    assert arm.steps == 10
    assert arm.check is not None
    assert arm.check.steps_total == 10
    assert arm.check.parameters is not None
    assert arm.check.parameters > 0
    trainer = dict(arm.trainer or {})
    assert trainer["optimizer"]["warmup_steps"] == 2
    assert trainer["optimizer"]["name"] == "adamw"
    assert trainer["checkpoint"]["keep"]["best"] == {"metric": "val/recon_lpips", "direction": "min"}
    assert command.kind == "command"


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "close"),
    [
        ("batch: 2", "bacth: 2", 7, "trainer.bacth", "batch"),
        ("batch: 2", "batch: -2", 7, "trainer.batch", None),
        ("warmup_steps: 2", "warmup_step: 2", 10, "trainer.optimizer.warmup_step", "warmup_steps"),
        ("warmup_steps: 2", "warmup_steps: 50", 10, "trainer.optimizer.warmup_steps", None),
        ("steps: 10\n", "device: cpu\n", 5, "trainer.steps", None),
    ],
)
def test_the_real_trainer_refuses_with_file_and_line(
    tmp_path: Path, old: str, new: str, line: int, key: str, close: str | None
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(TRAINER_ARM.replace(old, new))
    before = everything_below(tmp_path)
    with pytest.raises(SpecError) as caught:
        read_study_arms([file])
    assert everything_below(tmp_path) == before
    assert (caught.value.where.file, caught.value.where.line, caught.value.where.key) == (str(file), line, key)
    assert close is None or caught.value.nearest == close
