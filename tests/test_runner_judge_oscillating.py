"""A metric that leaves its best again and again: swings are stopped, bumps and noise are left alone."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.judge.curves import Curves
from runner.judge.oscillating import LEVELS, detect
from runner.records import DeclaredEvent, Finding, Primary, Series, Severity
from tests.fakes.curves import PRIMARY, series

PROBE = "val_probe/recon_lpips"


def found(
    curve: Series,
    probes: Series | None = None,
    *,
    steps_total: int | None = 5000,
    direction: str = "min",
    events: tuple[DeclaredEvent, ...] = (),
) -> tuple[Finding, ...]:
    curves = {one.name: one for one in (curve, probes) if one is not None}
    return detect(Curves(curves, steps_total, Primary(curve.name, direction), events), LEVELS)


def swinging(*heights: float, noise: float = 0.0, every: int = 100, gap: int = 3, name: str = PRIMARY.metric) -> Series:
    """Fifty validations of a curve that falls to 0.8 and, from the fifteenth on, leaves it by these shares in turn."""
    draw = random.Random(f"{heights} {noise}")
    values = [0.8 + 0.2 * math.exp(-k / 4) for k in range(1, 51)]
    for number, height in enumerate(heights):
        at = 15 + number * (2 * gap)
        for k in range(gap):
            values[at + k] *= 1 + height
    return series(name, [value * (1 + draw.gauss(0, noise)) for value in values], every)


def upto(curve: Series, step: int) -> Series:
    end = sum(at <= step for at in curve.steps)
    return Series(curve.name, curve.steps[:end], curve.values[:end])


@pytest.mark.parametrize("heights", [(), (0.04,), (0.5,), (0.04, 0.04), (0.03, 0.04, 0.04), (0.10, 0.05), (0.2, 0.1)])
@pytest.mark.parametrize("noise", [0.0, 0.002, 0.005])
def test_bumps_that_are_small_or_alone_or_shrink_are_left_alone(heights: tuple[float, ...], noise: float) -> None:
    assert not found(swinging(*heights, noise=noise))


@pytest.mark.parametrize("heights", [(0.06, 0.06), (0.06, 0.09), (0.04, 0.08), (0.03, 0.03, 0.09)])
@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_swings_that_do_not_shrink_are_stopped_at_the_one_that_shows_it(
    heights: tuple[float, ...], noise: float
) -> None:
    (seen,) = found(swinging(*heights, noise=noise))
    assert (seen.detector, seen.severity, seen.evidence["metric"]) == ("oscillating", Severity.ABORT, PRIMARY.metric)
    first_large = next(k for k, height in enumerate(heights) if k > 0 and height > 0.05)
    assert 100 * (16 + 6 * first_large) <= seen.step <= 100 * (18 + 6 * first_large)
    peaks = [height for _, height in seen.evidence["peaks"]]
    assert len(peaks) == first_large + 1
    assert peaks == [pytest.approx(100 * height, abs=1.5) for height in heights[: first_large + 1]]


def test_one_lasting_rise_is_no_oscillation() -> None:
    assert not found(series(PRIMARY.metric, [1.0 - 0.01 * k for k in range(20)] + [1.2] * 30, 100))


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_a_dense_noisy_primary_is_left_alone(noise: float) -> None:
    for seed in range(4):
        draw = random.Random(seed)
        values = [(0.5 + math.exp(-k / 800)) * math.exp(draw.gauss(0, noise)) for k in range(5000)]
        assert not found(series("loss", values)), seed


@pytest.mark.parametrize("points", [10, 20, 50])
def test_noise_of_up_to_a_hundredth_is_no_swing(points: int) -> None:
    for seed in range(60):
        draw = random.Random(f"noise {points} {seed}")
        values = [(0.8 + 0.2 * math.exp(-5 * k / points)) * (1 + draw.gauss(0, 0.01)) for k in range(points)]
        assert not found(series(PRIMARY.metric, values, 5000 // points)), seed


@pytest.mark.parametrize("heights", [(0.06, 0.09), (0.04, 0.04), (0.04, 0.08)])
def test_higher_is_better_is_the_mirror_image(heights: tuple[float, ...]) -> None:
    curve = swinging(*heights, noise=0.002)
    mirrored = Series(curve.name, curve.steps, tuple(-value for value in curve.values))
    assert found(mirrored, direction="max") == found(curve)


@pytest.mark.parametrize("factor", [2.0**-30, 2.0**30])
def test_the_unit_of_a_metric_does_not_matter(factor: float) -> None:
    curve = swinging(0.06, 0.09, noise=0.002)
    scaled = Series(curve.name, curve.steps, tuple(factor * value for value in curve.values))
    assert found(scaled) == found(curve)


def test_without_a_budget_there_is_no_verdict() -> None:
    assert not found(swinging(0.06, 0.09), steps_total=None)


@pytest.mark.parametrize("event", ["repa_off", "resolution", "routing_off"])
def test_what_follows_a_declared_change_is_no_swing(event: str) -> None:
    curve = swinging(0.06, 0.09)
    assert found(curve)
    at = (DeclaredEvent(1500, event), DeclaredEvent(2100, event))  # each just before the curve leaves its best
    assert not found(curve, events=at)
    assert found(curve, events=(DeclaredEvent(1500, "checkpoint"), DeclaredEvent(2100, "checkpoint")))


def test_the_window_after_a_change_is_three_evaluations_of_a_dense_primary_too() -> None:
    sparse = swinging(0.06, 0.09)
    dense = Series(
        sparse.name, tuple(range(51, 5001)), tuple(sparse.values[(step - 1) // 100] for step in range(51, 5001))
    )
    event = (DeclaredEvent(1500, "repa_off"), DeclaredEvent(2100, "repa_off"))
    assert found(dense)
    # Each evaluation of a dense primary is a hundredth of the budget, so three of them are half of each swing.
    assert len(found(dense, events=event)) <= len(found(dense))
    late = found(dense, events=event)
    assert not late or late[0].step > found(dense)[0].step + 50


# ---- probes ----------------------------------------------------------------------------------------------------------


def test_the_series_that_shows_the_pattern_first_decides() -> None:
    early, late = swinging(0.06, 0.09), swinging(0.03, 0.0, 0.06, 0.09)
    for regular, other in ((early, late), (late, early)):
        probes = Series(PROBE, other.steps, other.values)
        (seen,) = found(regular, probes)
        assert seen.step == found(early)[0].step
        assert seen.evidence["metric"] == (PRIMARY.metric if regular is early else PROBE)


def test_probes_that_swing_while_the_regular_validations_do_not_stop_nothing() -> None:
    swings = swinging(0.06, 0.09)
    assert not found(swinging(), Series(PROBE, swings.steps, swings.values))


def test_later_points_of_the_probes_never_undo_what_the_regular_series_showed() -> None:
    regular, other = swinging(0.06, 0.09), swinging(0.0, 0.0, 0.06, 0.09)
    probes = Series(PROBE, other.steps, other.values)
    (final,) = found(regular, probes)
    for step in range(100, 5001, 100):
        seen = found(upto(regular, step), upto(probes, step))
        assert seen == ((final,) if step >= final.step else ())


def test_an_empty_series_of_probes_is_none() -> None:
    curve = swinging(0.06, 0.09)
    assert found(curve, Series(PROBE, (), ())) == found(curve)


# ---- any curve -------------------------------------------------------------------------------------------------------

numbers = st.one_of(
    st.floats(),
    st.floats(0.5, 1.5),
    st.sampled_from([0.0, 1.0, -1.0, 5e-324, 1.7e308, -1.7e308, math.nan, math.inf, -math.inf]),
)


@given(
    regular=st.lists(numbers, max_size=60),
    probes=st.lists(numbers, max_size=60),
    gap=st.integers(1, 120),
    steps_total=st.one_of(st.none(), st.integers(1, 6000)),
    direction=st.sampled_from(["min", "max"]),
    event=st.integers(0, 3000),
    look=st.integers(0, 6000),
)
def test_no_curve_breaks_it_and_any_prefix_agrees_with_hindsight(
    regular: list[float],
    probes: list[float],
    gap: int,
    steps_total: int | None,
    direction: str,
    event: int,
    look: int,
) -> None:
    curve, other = series(PRIMARY.metric, regular, gap), series(PROBE, probes, max(1, gap // 2))
    events = (DeclaredEvent(event, "repa_off"),)
    final = found(curve, other, steps_total=steps_total, direction=direction, events=events)
    seen = found(upto(curve, look), upto(other, look), steps_total=steps_total, direction=direction, events=events)
    assert seen == tuple(one for one in final if one.step <= look)
    for one in final:
        json.dumps(dict(one.evidence), allow_nan=False)


@given(st.lists(st.sampled_from([0.8, 0.81, 0.83, 0.86, 0.9, 1.0]), min_size=8, max_size=50), st.integers(1, 50))
def test_any_prefix_of_a_rough_curve_agrees_with_hindsight(values: list[float], count: int) -> None:
    curve = series(PRIMARY.metric, values, 100)
    final = found(curve)
    assert found(upto(curve, 100 * count)) == tuple(one for one in final if one.step <= 100 * count)
