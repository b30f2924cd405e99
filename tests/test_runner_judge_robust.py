"""The statistics and the choice of the best point, against what they are defined to be."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation, theilslopes

from runner.judge.best import best_point
from runner.judge.evaluations import evaluations
from runner.judge.recovery import is_recovering
from runner.judge.robust import difference_mad, mad, median, theil_sen
from runner.records import Series
from tests.fakes.curves import series

numbers = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40)


@given(numbers)
def test_median_and_deviation_agree_with_scipy(values: list[float]) -> None:
    assert median(values) == pytest.approx(float(np.median(values)))
    assert mad(values, median(values)) == pytest.approx(float(median_abs_deviation(values)))


@given(numbers)
def test_the_slope_agrees_with_scipy(values: list[float]) -> None:
    x = [3 * k + (k % 2) for k in range(len(values))]
    assert theil_sen(x, values) == pytest.approx(float(theilslopes(values, x).slope))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_difference_deviation_recovers_the_noise_below_a_trend(order: int) -> None:
    draw = random.Random(order)
    values = [5 - 0.002 * k + 1e-6 * k**2 + draw.gauss(0, 0.1) for k in range(4000)]
    assert difference_mad(values, order) == pytest.approx(0.1, rel=0.1)


def test_a_parabola_is_quiet_to_third_differences() -> None:
    assert difference_mad([float(k * k) for k in range(20)], 3) == 0


def test_best_is_the_first_of_equals_after_a_tenth_of_the_run() -> None:
    curve = Series("m", (0, 50, 100, 200, 300, 400), (0.1, 0.2, 0.5, 0.4, 0.4, 0.6))
    assert best_point(curve, "min", 1000) == (200, 0.4)
    assert best_point(curve, "max", 1000) == (400, 0.6)
    assert best_point(curve, "min", None) == (0, 0.1)
    assert best_point(curve, "min", 10_000) is None


def test_best_passes_over_what_is_not_finite() -> None:
    curve = Series("m", (100, 200, 300), (math.nan, -math.inf, 0.4))
    assert best_point(curve, "min", 1000) == (300, 0.4)
    assert best_point(Series("m", (), ()), "min", 1000) is None


def test_validations_at_their_usual_distance_are_each_an_evaluation() -> None:
    curve = series("m", [0.9, 0.8, math.nan, 0.7, 0.6], 500)
    found = [(point.step, point.value, point.is_decided) for point in evaluations(curve, 5000)]
    assert found[1:] == [(1000, 0.8, True), (2000, 0.7, True), (2500, 0.6, True)]


def test_points_within_a_hundredth_of_the_budget_are_pooled() -> None:
    curve = series("m", [float(k) for k in range(1000)])
    pools = list(evaluations(curve, 1000 * 10))
    assert len(pools) == 10
    assert all(point.is_decided for point in pools)
    assert pools[0].value == pytest.approx(49.5, abs=1)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 60), st.one_of(st.none(), st.just(400)))
def test_the_evaluations_of_a_prefix_are_a_prefix_of_the_evaluations(
    gaps: list[int], count: int, steps_total: int | None
) -> None:
    steps = tuple(sum(gaps[: k + 1]) for k in range(len(gaps)))
    whole = list(evaluations(Series("m", steps, tuple(map(float, gaps))), steps_total))
    part = list(evaluations(Series("m", steps[:count], tuple(map(float, gaps[:count]))), steps_total))
    assert part == whole[: len(part)]


@pytest.mark.parametrize(("decay", "comes_back"), [(10, True), (25, True), (200, False), (-50, False)])
def test_a_trend_that_leads_back_in_time_is_a_recovery(decay: int, comes_back: bool) -> None:
    excess = [8 * math.exp(-k / decay) for k in range(15)]
    assert is_recovering(excess, allowed=0.6, horizon=60, over=15) is comes_back


def test_after_its_time_a_recovery_has_to_be_shown() -> None:
    draw = random.Random(4)
    noisy = [3 * math.exp(draw.gauss(0, 0.3)) for _ in range(20)]
    assert is_recovering(noisy, allowed=0.6, horizon=60, over=20)
    assert not is_recovering(noisy, allowed=0.6, horizon=60, over=61)
