"""Intervals and tests: against brute force, against scipy, against the published definition, by simulated coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from reports.intervals import hierarchical_bootstrap, holm, paired_bootstrap, sign_flip

finite = st.floats(-100, 100).map(lambda value: round(value, 6))


@given(st.lists(finite, min_size=1, max_size=9))
def test_sign_flip_is_the_share_of_all_sign_patterns(differences: list[float]) -> None:
    observed = abs(math.fsum(differences))
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns]
    expected = sum(value >= observed - 1e-9 for value in sums) / len(patterns)
    assert sign_flip(differences) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("seeds", "smallest"), [(1, 1.0), (2, 0.5), (3, 0.25), (6, 0.03125)])
def test_sign_flip_cannot_go_below_two_in_two_to_the_n(seeds: int, smallest: float) -> None:
    assert sign_flip([0.1 + 0.01 * seed for seed in range(seeds)]) == smallest


def test_sign_flip_has_no_answer_without_seeds_or_with_too_many() -> None:
    assert sign_flip([]) is None
    assert sign_flip([1.0] * 21) is None


def test_holm_matches_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_never_lowers_a_value(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= after <= 1 for p, after in zip(p_values, adjusted, strict=True))
    by_p = [after for _, after in sorted(zip(p_values, adjusted, strict=True))]
    assert by_p == sorted(by_p)
    assert min(adjusted) == pytest.approx(min(1.0, len(p_values) * min(p_values)))


@given(st.lists(finite, min_size=2, max_size=30), finite, st.floats(0.01, 50))
def test_the_interval_holds_its_mean_and_moves_with_the_data(values: list[float], shift: float, scale: float) -> None:
    found = paired_bootstrap(values, "key", resamples=300)
    moved = paired_bootstrap([scale * value + shift for value in values], "key", resamples=300)
    assert found is not None
    assert moved is not None
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.mean == pytest.approx(math.fsum(values) / len(values))
    assert moved.mean == pytest.approx(scale * found.mean + shift, abs=1e-6)


def test_bca_agrees_with_scipy_on_skewed_data() -> None:
    values = np.random.default_rng(3).exponential(size=48)
    found = paired_bootstrap(values.tolist(), "skewed", resamples=20_000)
    generator = np.random.default_rng(4)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", random_state=generator)
    assert found is not None
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.02)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.02)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(8)
    hits = 0
    for trial in range(300):
        found = paired_bootstrap(generator.normal(0.3, 1.0, 40).tolist(), f"trial {trial}", resamples=500)
        assert found is not None
        hits += found.low <= 0.3 <= found.high
    assert 0.90 <= hits / 300 <= 0.98


def test_resampling_depends_on_the_key_alone() -> None:
    values = [0.1, -0.3, 0.7, 0.2, 0.05]
    assert paired_bootstrap(values, "a") == paired_bootstrap(values, "a")
    assert paired_bootstrap(values, "a") != paired_bootstrap(values, "b")


def test_equal_differences_give_a_point() -> None:
    found = paired_bootstrap([0.25] * 6, "same")
    assert found is not None
    assert (found.low, found.mean, found.high) == (0.25, 0.25, 0.25)
    assert not found.includes_zero


def test_too_little_data_gives_no_interval() -> None:
    assert paired_bootstrap([0.4], "one") is None
    assert hierarchical_bootstrap([[0.1, 0.2]], "one seed") is None
    assert hierarchical_bootstrap([[0.1], []], "an empty seed") is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        paired_bootstrap([0.1, bad], "bad")
    with pytest.raises(ValueError, match="must be finite"):
        sign_flip([0.1, bad])


def test_seeds_that_disagree_widen_the_hierarchical_interval() -> None:
    within = np.random.default_rng(1).normal(0, 0.01, 48)
    agree = hierarchical_bootstrap([(within + 0.1).tolist()] * 4, "agree")
    disagree = hierarchical_bootstrap([(within + shift).tolist() for shift in (-0.1, 0.0, 0.2, 0.3)], "disagree")
    pooled = paired_bootstrap(np.concatenate([within + s for s in (-0.1, 0.0, 0.2, 0.3)]).tolist(), "pooled")
    assert agree is not None
    assert disagree is not None
    assert pooled is not None
    assert agree.mean == pytest.approx(disagree.mean)
    assert disagree.high - disagree.low > 5 * (agree.high - agree.low)
    assert disagree.high - disagree.low > 2 * (pooled.high - pooled.low)
