"""What an arm may say about rescues and autopsies, how the trainer is asked about it, and what was stored before."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import SpecError
from runner.records import Policy, Rescue
from runner.spec import read_study_arms
from runner.spec.models import document, from_json, study_document, to_json
from runner.spec.rescue import BadChange, check_change, origin_of, rescued_name, with_changes
from tests.fakes.arms import COMMAND_ARM
from tests.test_runner_spec_resolve import TRAINER_ARM, refused, resolved

RESCUE = """\
policy:
  detectors: {regress: rescue}
  autopsy_s: 60
  rescue:
    from: last
    max: 2
    changes:
      trainer.optimizer.name: muon
      trainer.optimizer.lr: 3e-4
"""


def test_the_policy_reaches_the_arm_its_documents_and_back() -> None:
    arm = resolved(TRAINER_ARM + RESCUE)
    changes = {"trainer.optimizer.name": "muon", "trainer.optimizer.lr": 3e-4}
    assert arm.policy.rescue == Rescue("last", changes, 2)
    assert (arm.policy.autopsy_s, arm.policy.detectors["regress"]) == (60, "rescue")
    assert arm.rescue_trainer is not None
    assert arm.rescue_trainer["optimizer"] == {"lr": 3e-4, "name": "muon"}
    assert arm.trainer is not None
    assert arm.trainer["optimizer"] == {"lr": 1e-3}
    assert arm.rescue_trainer["checkpoint"] == arm.trainer["checkpoint"]
    written = {"from": "last", "changes": changes, "max": 2}
    assert document(arm, 0)["policy"]["rescue"] == study_document(arm)["policy"]["rescue"] == written
    assert from_json(json.loads(json.dumps(to_json(arm)))) == arm


def test_what_was_stored_before_there_were_rescues_still_loads() -> None:
    old = to_json(resolved(TRAINER_ARM))
    del old["rescue_trainer"]
    old["policy"] = {key: old["policy"][key] for key in ("detectors", "tail")}
    arm = from_json(old)
    assert arm.policy == Policy(old["policy"]["detectors"], 0.04)
    assert arm.rescue_trainer is None
    assert study_document(arm)["policy"] == {
        "detectors": old["policy"]["detectors"],
        "rescue": {"from": "best", "changes": {}, "max": 1},
        "tail": 0.04,
        "autopsy_s": 900,
    }


def test_only_our_trainer_can_be_rescued() -> None:
    error = refused(COMMAND_ARM + "policy: {detectors: {regress: rescue}}\n")
    assert (error.where.key, error.allowed) == ("policy.detectors.regress", "shadow, warn, abort")
    assert resolved(COMMAND_ARM + "policy: {rescue: {changes: {trainer.optimizer.lr: 1e-4}}}\n").rescue_trainer is None


@pytest.mark.parametrize(
    ("change", "said", "close"),
    [
        ("optimizer.lr: 1", "a rescue changes how the trainer goes on", "trainer.optimizer.lr"),
        ("trianer.optimizer.lr: 1", "a rescue changes how the trainer goes on", "trainer.optimizer.lr"),
        ("seeds: [1]", "a rescue changes how the trainer goes on", None),
        ("trainer.steps: 5", "trainer.steps stays as it was", None),
        ("trainer.model.width: 128", "trainer.model stays as it was", None),
        ("trainer: {data: {size: 64}}", "trainer.data stays as it was", None),
        ("trainer: 5", "5 is no block of keys", None),
        ("trainer..lr: 5", "'trainer..lr' has an empty part", None),
        ("trainer.optimizer.lr.peak: 5", "lr is a value, there is no key below it", None),
    ],
)
def test_a_change_that_no_rescue_can_make_is_named_with_its_line(change: str, said: str, close: str | None) -> None:
    error = refused(TRAINER_ARM + f"policy:\n  rescue:\n    changes:\n      {change}\n")
    assert error.where.line == 11
    assert error.where.key.startswith("policy.rescue.changes.")
    assert said in error.problem
    assert error.nearest == close


def test_a_rescued_run_needs_a_name_that_is_free() -> None:
    assert refused(TRAINER_ARM, sets=("arm=A-rescue1",)).where.key == "arm"
    long = (f"arm={'A' * 57}",)
    assert refused(TRAINER_ARM + RESCUE, sets=long).problem.endswith("A-rescue2, of 65 characters")
    assert resolved(TRAINER_ARM, sets=long).arm == "A" * 57
    assert resolved(TRAINER_ARM + RESCUE, sets=(f"arm={'A' * 56}",)).arm == "A" * 56


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True), st.integers(1, 99), st.integers(1, 99))
def test_every_rescue_of_a_chain_knows_where_it_comes_from(arm: str, first: int, second: int) -> None:
    once = rescued_name(arm, first)
    assert origin_of(once) == (origin_of(arm)[0], first)
    assert rescued_name(once, second) == rescued_name(arm, second)


def test_changes_are_merged_as_those_of_an_arm() -> None:
    trainer = {"steps": 5, "optimizer": {"lr": 1.0, "name": "adamw"}, "ema": {"half_lives": [0.05]}}
    changes = {"trainer.optimizer.lr": 0.3, "trainer": {"tread": {"enabled": True}}, "trainer.ema.half_lives": [0.1]}
    assert with_changes(trainer, changes) == {
        "steps": 5,
        "optimizer": {"lr": 0.3, "name": "adamw"},
        "ema": {"half_lives": [0.1]},
        "tread": {"enabled": True},
    }
    assert trainer["optimizer"] == {"lr": 1.0, "name": "adamw"}
    once = with_changes(trainer, changes)
    assert with_changes(once, changes) == once
    with pytest.raises(BadChange, match=r"allowed: trainer\.… without steps"):
        check_change("notify.on", [])


ARM = "study: small\narm: A\nseeds: [0]\nresources: {gpus: 0}\ntrainer: {steps: 10, batch: 2}\n"


def read(folder: Path, text: str) -> Any:
    (folder / "a.yaml").write_text(ARM + text)
    return read_study_arms([folder / "a.yaml"])[0]


def test_the_trainer_is_asked_about_the_rescued_run_before_anything_is_written(tmp_path: Path) -> None:
    arm = read(tmp_path, RESCUE)
    assert (arm.trainer["optimizer"]["name"], arm.rescue_trainer["optimizer"]["name"]) == ("adamw", "muon")
    assert arm.rescue_trainer["validation"] == arm.trainer["validation"]  # complete, as the trainer wrote it out
    assert arm.check.steps_total == 10
    with pytest.raises(SpecError) as caught:
        read(tmp_path, RESCUE.replace("optimizer.name: muon", "optimizer.nome: muon"))
    error = caught.value
    assert (error.where.line, error.where.key) == (13, "policy.rescue.changes.trainer.optimizer.nome")
    assert error.nearest == "name"
    assert read(tmp_path, "policy: {autopsy_s: 0}\n").rescue_trainer is None


def test_a_mistake_in_the_arm_itself_is_not_blamed_on_its_rescue(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        read(tmp_path, RESCUE + "changes: {trainer.optimizer.wurmup_steps: 5}\n")
    assert caught.value.where.key == "trainer.optimizer.wurmup_steps"


def test_a_rescue_is_no_part_of_what_a_run_is() -> None:
    from runner.spec.identity import identity

    plain, rescuing = resolved(TRAINER_ARM), resolved(TRAINER_ARM + RESCUE)
    assert identity(plain, 0, "c") == identity(rescuing, 0, "c")
    assert dataclasses.replace(plain, policy=rescuing.policy, rescue_trainer=None) != rescuing
