"""Synthetic studies: a seed gives the same curves, labels keep their margin, and a probe agrees with the truth."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import study_kinds, study_strangers
from benchmarks.study_chance import gumbels, normals, uniforms
from benchmarks.study_curves import PROFILES, Arm, line, study
from runner.judge.recorded import arms_from_jsonl

SEEDS = range(500, 515)


@pytest.fixture(scope="module")
def studies() -> dict[str, list[list[Arm]]]:
    return {profile: [study(seed, profile) for seed in SEEDS] for profile in PROFILES}


def arms_of(studies: dict[str, list[list[Arm]]], *profiles: str) -> list[Arm]:
    return [arm for profile in profiles or PROFILES for arms in studies[profile] for arm in arms]


def true_level(arm: Arm) -> np.ndarray:
    """What the metric is without noise, lower better, along the budget."""
    return arm.truth.metric(np.linspace(0, 1, 401))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_study_is_a_function_of_its_seed(profile: str) -> None:
    again = [[line(arm) for arm in study(7, profile)] for _ in range(2)]
    assert again[0] == again[1]
    assert again[0] != [line(arm) for arm in study(8, profile)]


def test_every_kind_of_arm_occurs(studies: dict[str, list[list[Arm]]]) -> None:
    for profile, source in (("base", study_kinds), ("shift", study_kinds), ("stranger", study_strangers)):
        seen = {arm.label.kind for arm in arms_of(studies, profile)}
        assert seen == {*source.HEALTHY, *source.SICK}


def test_studies_have_four_to_ten_arms_and_not_more_than_half_of_them_sick(
    studies: dict[str, list[list[Arm]]],
) -> None:
    for arms in (arms for profile in PROFILES for arms in studies[profile]):
        assert 4 <= len(arms) <= 10
        assert sum(arm.label.sick for arm in arms) <= len(arms) // 2
        assert len({tuple(arm.val_steps) for arm in arms}) == 1
        assert len({arm.steps_total for arm in arms}) == 1
        stalls = [arm for arm in arms if arm.label.kind == "stall"]
        assert not stalls or (len(stalls) == 1 and sum(not arm.label.sick for arm in arms) >= 3)


def test_healthy_arms_end_near_their_best_and_sick_ones_do_not(studies: dict[str, list[list[Arm]]]) -> None:
    for arm in arms_of(studies):
        level_N = true_level(arm)
        above = level_N[-1] / level_N.min() - 1
        if not arm.label.sick:
            # The slow noise is part of the margin, so the bare truth may lie a little beyond it.
            assert above < 0.025 + 4 * arm.setting.wander_sd, arm.name
        elif arm.label.kind not in ("stall", "nan", "oscillation"):
            assert above > 0.045 - 4 * arm.setting.wander_sd, arm.name


def test_a_sick_arm_is_an_ordinary_one_before_its_onset(studies: dict[str, list[list[Arm]]]) -> None:
    for arm in arms_of(studies):
        if arm.label.onset is None or arm.label.kind in ("stall", "nan"):
            continue
        begin = int(400 * arm.label.onset / arm.steps_total)
        level_N = true_level(arm)[: begin + 1]
        # Apart from a wobble, and the early hump of an average of weights, nothing is worse than what came before.
        settled_N = level_N[40:]
        assert (settled_N <= np.minimum.accumulate(settled_N) * 1.03).all(), arm.name


def test_nothing_is_finite_from_where_a_nan_arm_is_gone(studies: dict[str, list[list[Arm]]]) -> None:
    arms = [arm for arm in arms_of(studies) if arm.label.kind == "nan"]
    assert arms
    for arm in arms:
        assert arm.truth.gone is not None
        assert arm.label.onset is not None
        gone = math.ceil(arm.truth.gone * arm.steps_total)
        assert gone - 0.05 * arm.steps_total <= arm.label.onset <= gone
        for steps, values in (
            (arm.val_steps, arm.val_metric),
            (arm.log_steps, arm.train_loss),
            (arm.log_steps, arm.grad_norm),
        ):
            assert all((value is None) == (step >= gone) for step, value in zip(steps, values, strict=True))
        assert math.isnan(arm.probe(gone))
        assert math.isfinite(arm.probe(gone - 1))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), profile=st.sampled_from(PROFILES), data=st.data())
def test_a_probe_is_a_function_of_its_step_and_near_a_validation_of_the_same(
    seed: int, profile: str, data: st.DataObject
) -> None:
    arm = data.draw(st.sampled_from(study(seed, profile)))
    where = data.draw(st.integers(0, len(arm.val_steps) - 1))
    step, value = arm.val_steps[where], arm.val_metric[where]
    probed = arm.probe(step)
    assert str(probed) == str(arm.probe(step))
    if value is None:
        assert math.isnan(probed)
    else:
        # Same truth, same slow noise, another evaluation: six times the noise of both, the wild ones included.
        assert abs(math.log(probed / value)) < 6 * math.sqrt(2) * 3 * arm.setting.white_sd + 1e-5


def test_siblings_are_bumped_by_the_same_batches(studies: dict[str, list[list[Arm]]]) -> None:
    agreements = []
    for arms in studies["base"]:
        pairs = [arm for arm in arms if arm.label.kind in ("decay", "plateau", "late_rise", "laggard")][:2]
        if len(pairs) == 2:
            first, second = (np.diff(np.log(np.array(arm.train_loss, dtype=float))) for arm in pairs)
            agreements.append(np.corrcoef(first, second)[0, 1])
    assert len(agreements) > 5
    assert np.median(agreements) > 0.5


def test_the_backtest_reads_every_line(studies: dict[str, list[list[Arm]]]) -> None:
    arms = arms_of(studies)
    read = arms_from_jsonl("\n".join(line(arm) for arm in arms))
    assert [one.label is not None and one.label.sick for one in read] == [arm.label.sick for arm in arms]
    assert [one.label and one.label.onset for one in read] == [arm.label.onset for arm in arms]
    events = [[(event.step, event.event) for event in one.events] for one in read]
    assert events == [[tuple(event) for event in arm.events] for arm in arms]
    assert all(json.loads(line(arm))["label"]["kind"] == arm.label.kind for arm in arms[:5])


def test_a_profile_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: base, shift, stranger"):
        study(1, "nobody")


def test_counted_noise_is_uniform_normal_and_gumbel() -> None:
    counters_N = np.arange(200_000)
    uniform_N, normal_N = uniforms(5, counters_N), normals(5, counters_N)
    assert 0 < uniform_N.min() < uniform_N.max() < 1
    assert abs(uniform_N.mean() - 0.5) < 0.005
    assert abs(normal_N.mean()) < 0.01
    assert abs(normal_N.std() - 1) < 0.01
    assert abs(np.corrcoef(normal_N[1:], normal_N[:-1])[0, 1]) < 0.01
    assert normals(5, np.array([77]))[0] == normal_N[77]
    # Quantiles of a Gumbel number whose median is 0: log(log(2) / -log(share)).
    shares = np.array([0.01, 0.5, 0.9, 0.99, 0.999])
    expected = np.log(np.log(2) / -np.log(shares))
    assert np.quantile(gumbels(normal_N), shares) == pytest.approx(expected, abs=0.15)
