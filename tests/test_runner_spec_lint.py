"""The fairness rules: each fires on an unfair comparison, says the numbers, and keeps quiet on a fair one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.study import LintView
from runner.errors import UsageError
from runner.spec.factors import factors
from runner.spec.lint import RULES, blocking, early_share, lint, parse_allow, seed_word
from runner.spec.models import ResolvedArm
from tests.fakes.arms import command_arm, trainer_arm

A = trainer_arm(seeds=(0, 1))


def variant(name: str, overrides: dict[str, Any], **changes: Any) -> ResolvedArm:
    """A trainer arm read against A, whose `changes` are the overrides."""
    own = tuple((f"trainer.{key}", value) for key, value in overrides.items())
    return trainer_arm(overrides, **{"arm": name, "baseline": "A", "changes": own, **changes})


def remarks(rule: str, *arms: ResolvedArm, **options: Any) -> list[LintView]:
    return [remark for remark in lint(arms, **options) if remark.rule == rule]


B = variant("B", {"tread.enabled": True})
C = variant("C", {"tread.enabled": True, "optimizer.name": "muon"})


def test_a_fair_comparison_has_only_the_note_on_seeds() -> None:
    assert [(remark.rule, remark.severity, remark.message) for remark in lint([A, B])] == [
        ("F12", "N", "trial: 1 paired seed: screening")
    ]
    assert blocking(lint([A, B])) == ()


def test_f01_counts_factors_and_names_the_one_to_isolate() -> None:
    (remark,) = remarks("F01", A, C)
    assert remark.severity == "W"
    assert remark.message == "C differs from A in 2 factors (TREAD, optimizer); add an arm that isolates TREAD"
    (remark,) = remarks("F01", A, B, C)
    assert remark.message.endswith("each is isolated elsewhere: TREAD by B - A, optimizer by C - B")
    assert remarks("F01", A, B) == []


def test_factors_group_keys_and_skip_what_only_watches() -> None:
    watching = {"validation.every": 50, "sampler.native": {"kind": "self_guidance"}, "checkpoint.keep": {"last": 9}}
    assert factors(A, trainer_arm(watching)) == ()
    assert factors(A, trainer_arm({"tread.ratio": 0.1})) == ()
    assert factors(A, trainer_arm({"tread.ratio": 0.1, "tread.enabled": True, "optimizer.lr": 1.0})) == (
        "TREAD", "learning rate",
    )  # fmt: skip
    one = command_arm(command=("x", "--lr", "1", "a"), env={"M": "1"})
    assert factors(one, dataclasses.replace(one, command=("x", "--lr", "2", "b"), steps=99)) == (
        "--lr", "argument 3", "length of training",
    )  # fmt: skip
    assert factors(one, dataclasses.replace(one, command=("x",), env={})) == ("command", "env M")
    assert factors(A, one) == ("env M", "program")


def test_f02_different_common_samplers_block() -> None:
    (remark,) = remarks("F02", A, variant("B", {"validation.sampler_steps": 16}))
    assert (remark.severity, remark.message) == ("E", "B is scored with 16 Euler steps, A with 8 Euler steps")
    (remark,) = remarks("F02", A, variant("B", {"objective.shift": 3.0}))
    assert remark.message == "B is scored with 8 Euler steps shifted by 3, A with 8 Euler steps"
    assert remarks("F02", A, trainer_arm({"validation.sampler_steps": 16}, study="other")) == []


def test_f05_held_out_ids_among_training_ids_block() -> None:
    (remark,) = remarks("F05", A, B, training_ids_in_eval={"trial/B": 3, "trial/A": 0})
    assert (remark.severity, remark.message) == ("E", "B: 3 eval ids are training ids")


@pytest.mark.parametrize(
    ("half_life", "severity"), [(0.05, None), (0.10, None), (0.2, "W"), (0.45, "W"), (0.6, "E"), (1.0, "E")]
)
def test_f06_an_ema_that_remembers_the_beginning(half_life: float, severity: str | None) -> None:
    found = remarks("F06", trainer_arm({"ema.half_lives": [half_life, 0.9]}))
    assert [remark.severity for remark in found] == ([] if severity is None else [severity])


@given(st.floats(0.02, 1.0), st.integers(5, 60))
def test_the_early_share_is_that_of_a_simulated_average(half_life: float, tenth: int) -> None:
    updates = 10 * tenth
    decay = 0.5 ** (1.0 / (half_life * updates))
    weights = [(1 - decay) * decay ** (updates - n) / (1 - decay**updates) for n in range(1, updates + 1)]
    assert sum(weights) == pytest.approx(1.0)
    assert early_share(half_life) == pytest.approx(sum(weights[:tenth]), rel=1e-6, abs=1e-12)


def test_f07_a_long_warm_up() -> None:
    (remark,) = remarks("F07", trainer_arm({"optimizer.warmup_steps": 30}))
    assert (remark.severity, remark.message) == ("W", "A: warm-up is 30% of the run")
    assert remarks("F07", trainer_arm({"optimizer.warmup_steps": 20})) == []


def test_f12_seeds() -> None:
    (note,) = remarks("F12", dataclasses.replace(A, seeds=(0, 1, 2)), dataclasses.replace(B, seeds=(0, 1, 2)))
    assert note.message == "trial: 3 paired seeds: indicative"
    note, warning = remarks("F12", A, dataclasses.replace(B, seeds=(1, 2, 3)))
    assert note.message == "trial: 1 paired seed: screening"
    assert (warning.severity, warning.message) == ("W", "unpaired seeds: B has 2, 3 and its baseline A has not")
    (_, lonely) = remarks("F12", B)
    assert (lonely.severity, lonely.message) == ("N", "B is read against A, which is not among these arms")
    assert [seed_word(count) for count in (0, 1, 2, 3, 5, 6)] == [*["screening"] * 3, *["indicative"] * 2, "supported"]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"tread.ratio": 0.3}, "trainer.tread.ratio"),
        ({"repa.stop": {"kind": "linear", "start": 0.3}, "tread.enabled": True}, "trainer.repa.stop.kind"),
        ({"optimizer.momentum": 0.9}, "trainer.optimizer.momentum"),
        ({"data.path": "/x"}, "trainer.data.path"),
    ],
)
def test_f17_a_key_that_changes_nothing_blocks(overrides: dict[str, Any], key: str) -> None:
    found = remarks("F17", A, variant("B", overrides))
    assert {remark.severity for remark in found} == {"E"}
    assert any(f"{key} is set but changes nothing" in remark.message for remark in found)


def test_f17_an_arm_that_repeats_its_baseline() -> None:
    (remark,) = remarks("F17", A, variant("B", {}))
    assert remark.message == "B changes nothing: it resolves to the same run as its baseline A"
    one = command_arm(folder="/a", arm="A")
    other = command_arm(folder="/a", arm="B", baseline="A")
    assert len(remarks("F17", one, other)) == 1
    assert remarks("F17", one, command_arm(folder="/b", arm="B", baseline="A")) == []


def test_keys_that_belong_to_what_is_switched_on_are_alive() -> None:
    alive = {"tread.enabled": True, "tread.ratio": 0.3, "optimizer.name": "muon", "optimizer.momentum": 0.9}
    assert remarks("F17", A, variant("B", alive)) == []


def test_an_allowed_rule_carries_its_reason_and_blocks_no_more() -> None:
    arms = [A, variant("B", {"tread.ratio": 0.3, "validation.sampler_steps": 4})]
    assert {remark.rule for remark in blocking(lint(arms))} == {"F02", "F17"}
    allowed = lint(arms, parse_allow(["F17=A/A test", " F02 = b=c "]))
    assert blocking(allowed) == ()
    assert {remark.allowed for remark in allowed if remark.rule == "F02"} == {"b=c"}


@pytest.mark.parametrize("text", ["F99=x", "F02", "F02=", "F02= ", "=x", "f02=x"])
def test_allow_names_a_rule_and_a_reason(text: str) -> None:
    with pytest.raises(UsageError):
        parse_allow([text])


def test_every_rule_is_one_of_the_list() -> None:
    broken = variant(
        "B", {"tread.ratio": 0.3, "ema.half_lives": [0.9], "optimizer.warmup_steps": 50, "optimizer.lr": 1.0}
    )
    broken = dataclasses.replace(broken, seeds=(7,), trainer={**broken.trainer, "validation": {"sampler_steps": 1}})
    found = lint([A, dataclasses.replace(broken)], training_ids_in_eval={"trial/B": 1})
    assert {remark.rule for remark in found} == set(RULES)
    assert [remark.rule for remark in found] == sorted(remark.rule for remark in found)


def test_a_technique_of_its_own_is_one_factor_whatever_it_is_made_of() -> None:
    model = {"width": 64, "adaln": {"kind": "per_block", "rank": 8}}
    base = trainer_arm({"model": model, "precision": {"compute": "bf16", "fp8": {"enabled": False, "filter": "auto"}}})
    shared = {"model": {**model, "adaln": {"kind": "shared", "rank": 4}}}
    fp8 = {"precision": {"compute": "bf16", "fp8": {"enabled": True, "filter": "all"}}}
    rest = {"model": model, "precision": {"compute": "bf16", "fp8": {"enabled": False, "filter": "auto"}}}
    assert factors(base, trainer_arm({**rest, **shared})) == ("shared adaLN",)
    assert factors(base, trainer_arm({**rest, **fp8})) == ("FP8",)
