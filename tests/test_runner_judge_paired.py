"""The same samples, twice: an exact test of pairs against its definition, and what it does to an abort."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.judge import judge
from runner.judge.paired import FEWEST_PAIRS, UNITS, differences, sign_flip_p
from runner.records import Primary, Severity, Verdict
from tests.fakes.curves import ABORT_ALL, PRIMARY, series

pairs = st.lists(st.floats(-10, 10).filter(lambda value: value == 0 or abs(value) > 1e-6), min_size=10, max_size=12)


def enumerated(values: list[float]) -> float:
    """The share of all choices of signs whose sum is at least the one seen."""
    seen = math.fsum(values)
    sums = [
        math.fsum(sign * abs(value) for sign, value in zip(signs, values, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(values))
    ]
    return sum(one >= seen - 1e-9 for one in sums) / len(sums)


@given(st.lists(st.integers(-UNITS, UNITS), min_size=9, max_size=11))
def test_whole_units_give_what_enumeration_gives(units: list[int]) -> None:
    values = [float(UNITS), *map(float, units)]
    assert sign_flip_p(values) == enumerated(values)


@given(pairs)
def test_other_numbers_give_it_up_to_their_rounding_to_units(values: list[float]) -> None:
    found, largest = sign_flip_p(values), max(map(abs, values))
    assert found is not None
    if largest == 0:
        assert found == 1.0
        return
    # Each difference moves by half a unit at most, so the whole sum by half a unit for each.
    slack = len(values) * largest / UNITS
    seen = math.fsum(values)
    sums = [
        math.fsum(sign * abs(value) for sign, value in zip(signs, values, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(values))
    ]
    assert sum(one >= seen + slack for one in sums) / len(sums) <= found
    assert found <= sum(one >= seen - slack for one in sums) / len(sums)


@given(pairs)
def test_order_and_scale_do_not_matter_and_the_mirror_is_the_rest(values: list[float]) -> None:
    found = sign_flip_p(values)
    assert found is not None
    assert 0 < found <= 1
    assert sign_flip_p(values[::-1]) == found
    assert sign_flip_p([4.0 * value for value in values]) == found
    mirrored = sign_flip_p([-value for value in values])
    assert mirrored is not None
    assert found + mirrored >= 1 - 1e-12  # what lies exactly at the sum is counted by both


@given(pairs, st.integers(0, 11))
def test_one_more_pair_that_is_worse_never_makes_it_look_better(values: list[float], at: int) -> None:
    """Of a pair that was better and is worse by as much."""
    at %= len(values)
    worse = [abs(value) if index == at else value for index, value in enumerate(values)]
    first, second = sign_flip_p(values), sign_flip_p(worse)
    assert first is not None
    assert second is not None
    assert second <= first


def test_few_pairs_convince_nobody_and_equal_ones_of_nothing() -> None:
    assert sign_flip_p([1.0] * (FEWEST_PAIRS - 1)) is None
    assert sign_flip_p([1.0] * FEWEST_PAIRS) == 2.0**-FEWEST_PAIRS
    assert sign_flip_p([0.0] * 25) == 1.0


@pytest.mark.parametrize("size", [5e-324, 1e-300, 1e300, 1.7e308])
def test_no_size_of_a_difference_breaks_it(size: float) -> None:
    assert sign_flip_p([size] * 12) == 2.0**-12


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=10, max_size=20))
def test_any_finite_differences_have_a_p(values: list[float]) -> None:
    found = sign_flip_p(values)
    assert found is not None
    assert 0 < found <= 1


def test_only_samples_that_both_have_as_numbers_are_paired() -> None:
    before = {"c": 1.0, "a": 2.0, "b": 3.0, "nan": math.nan, "gone": 1.0, "far": -1.7e308}
    after = {"a": 2.5, "b": 1.0, "c": 1.0, "nan": 1.0, "new": 1.0, "far": 1.7e308}
    assert differences(before, after) == [0.5, -2.0, 0.0]
    assert differences(before, after, -1.0) == [-0.5, 2.0, 0.0]


# ---- in the judge ----------------------------------------------------------------------------------------------------

VALUES = [1.0, 0.9, 0.84, 0.80, 0.78, 0.77, 0.800, 0.801, 0.802, 0.802]
BEST_STEP, ABORTED_AT = 3000, 4500


def scores(shift: float, sign: float = 1.0, *, spread: float = 0.02) -> Mapping[int, Mapping[str, float]]:
    """25 samples at each checkpoint, whose mean rises by `shift` after the best and each sample by it ± `spread`."""
    draw = random.Random("samples")
    at_best = {f"{k:02}": draw.uniform(0.5, 1.0) for k in range(25)}
    later = {name: sign * (value + shift + draw.gauss(0, spread)) for name, value in at_best.items()}
    at_best = {name: sign * value for name, value in at_best.items()}
    return {500 * k: (at_best if 500 * k <= BEST_STEP else later) for k in range(1, 11)}


def judged(paired: Mapping[int, Mapping[str, float]], direction: str = "min") -> Verdict:
    sign = -1.0 if direction == "max" else 1.0
    curves = {PRIMARY.metric: series(PRIMARY.metric, [sign * value for value in VALUES], 500)}
    primary = Primary(PRIMARY.metric, direction)
    return judge(curves, steps_total=5000, primary=primary, policy=ABORT_ALL, events=[], paired=paired)


@pytest.mark.parametrize("direction", ["min", "max"])
def test_a_rise_that_the_same_samples_do_not_show_is_only_warned_of(direction: str) -> None:
    sign = -1.0 if direction == "max" else 1.0
    alone = judged({}, direction)
    assert (alone.action, alone.findings[-1].step) == ("abort", ABORTED_AT)
    assert "paired_p" not in alone.findings[-1].evidence
    chance = judged(scores(0.0, sign), direction)
    assert (chance.action, chance.rule) == ("warn", "regress")
    assert chance.findings[0].evidence["paired_p"] > 0.01
    shown = judged(scores(0.03, sign), direction)
    assert (shown.action, shown.findings[-1].step) == ("abort", ABORTED_AT)
    assert shown.findings[-1].evidence["paired_p"] <= 0.001


def test_samples_that_improved_speak_against_an_abort() -> None:
    assert judged(scores(-0.03)).action == "warn"


def test_scores_of_too_few_samples_or_of_other_steps_change_nothing() -> None:
    few = {step: dict(list(found.items())[:9]) for step, found in scores(0.0).items()}
    elsewhere = {step + 1: found for step, found in scores(0.0).items()}
    for paired in (few, elsewhere, {BEST_STEP: scores(0.0)[BEST_STEP]}):
        assert judged(paired).findings == judged({}).findings


def test_scores_never_change_when_a_warning_is_given() -> None:
    warned = {
        next(one.step for one in judged(paired).findings if one.severity is Severity.WARN)
        for paired in ({}, scores(0.0), scores(0.03))
    }
    assert len(warned) == 1
