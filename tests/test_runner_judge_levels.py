"""Levels and how a replay scales them: what is said on the command line, and which thresholds it reaches."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.judge import DETECTORS, LEVEL_NAMES, findings_on
from runner.judge.curves import Curves
from runner.judge.levels import Scaling, read_scaling
from runner.records import Finding
from tests.fakes.curves import PRIMARY, series

KNOWN = ("regress.warn", "stall.gap")


def test_every_level_has_one_full_name_and_is_a_number_above_zero() -> None:
    assert len(set(LEVEL_NAMES)) == len(LEVEL_NAMES)
    assert {name.split(".")[0] for name in LEVEL_NAMES} == {name for name, one in DETECTORS.items() if one.levels}
    for detector in DETECTORS.values():
        assert all(
            isinstance(level, float) and math.isfinite(level) and level > 0 for level in detector.levels.values()
        )


def test_without_a_word_nothing_is_scaled() -> None:
    assert read_scaling((), KNOWN) == Scaling()
    levels = DETECTORS["regress"].levels
    assert Scaling().of("regress", levels) is levels


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_one_factor_for_all_and_one_for_a_name(factor: float, named: float) -> None:
    scaling = read_scaling((f"{factor!r}", f"regress.warn={named!r}"), LEVEL_NAMES)
    for name, detector in DETECTORS.items():
        scaled = scaling.of(name, detector.levels)
        assert scaled.keys() == detector.levels.keys()
        for level, value in detector.levels.items():
            assert scaled[level] == value * (named if (name, level) == ("regress", "warn") else factor)


def test_of_two_words_about_one_thing_the_later_holds() -> None:
    assert read_scaling(("2", "stall.gap=3", "0.5", "stall.gap=4"), KNOWN) == Scaling(0.5, {"stall.gap": 4.0})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "neither a number nor NAME=number"),
        ("wide", "neither a number nor NAME=number"),
        ("regress.warn=", "neither a number nor NAME=number"),
        ("regress.warn=x", "neither a number nor NAME=number"),
        ("0", "above 0"),
        ("-1", "above 0"),
        ("nan", "above 0"),
        ("inf", "above 0"),
        ("regress.warn=1e999", "above 0"),
        ("=2", "allowed: regress.warn, stall.gap"),
        ("regress=2", "allowed: regress.warn, stall.gap"),
        ("regress.warm=2", "'regress.warm' is no level"),
        ("regress.warn=1=2", "is no level"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_was_allowed(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_scaling((text,), KNOWN)


def found(scaling: Scaling) -> tuple[Finding, ...]:
    values = [1.0, 0.9, 0.85, 0.8, 0.78, 0.77, 0.79, 0.80, 0.82, 0.84]
    curves = Curves({PRIMARY.metric: series(PRIMARY.metric, values, 500)}, 5000, PRIMARY, [])
    return findings_on(curves, scaling)


def test_higher_levels_see_later_and_lower_ones_sooner() -> None:
    steps = [found(Scaling(factor))[-1].step for factor in (0.5, 1.0, 1.5)]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]
    assert not found(Scaling(1000.0))


def test_a_level_of_another_detector_changes_nothing_here() -> None:
    assert found(Scaling(named={"stall.gap": 100.0})) == found(Scaling())
