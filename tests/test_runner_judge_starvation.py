"""Second moments that starve, gradients they do not know, updates too large for their weights: a warning, no more."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.judge import judge
from runner.judge.curves import Curves
from runner.judge.starvation import LEVELS, RULES, detect
from runner.records import Finding, Policy, Series, Severity, Verdict
from tests.fakes.curves import ABORT_ALL, series

STARVED, STALE, FAR = (
    "opt/second_moment_routed_to_dense",
    "opt/blocks.3/rms_ratio",
    "opt/blocks.3/update_to_weight",
)
NAMES = (STARVED, STALE, FAR)


def found(*curves: Series, steps_total: int | None = 5000) -> tuple[Finding, ...]:
    return detect(Curves({one.name: one for one in curves}, steps_total, None, []), LEVELS)


def verdict(*curves: Series, policy: Policy = ABORT_ALL, steps_total: int | None = 5000) -> Verdict:
    return judge({one.name: one for one in curves}, steps_total=steps_total, primary=None, policy=policy, events=[])


def noisy(name: str, level: float = 1.0, count: int = 99, seed: int = 0) -> Series:
    draw = random.Random(f"{name} {seed}")
    return series(name, [level * math.exp(draw.gauss(0, 0.2)) for _ in range(count)], 50)


def ill(name: str, begins: int = 60, count: int = 99) -> Series:
    """Quiet until sample `begins`, then as bad as its rule has to see."""
    bad = {STARVED: 0.01, STALE: 5.0, FAR: 9.0}[name]
    every = 5 if name == STALE else 1  # rare, for what is usual is what most of the last fifty are
    values = [bad if k >= begins and (k - begins) % every == 0 else 1.0 + 0.01 * (k % 3) for k in range(count)]
    return series(name, values, 50)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_a_quiet_optimizer_is_left_alone(name: str, seed: int) -> None:
    assert not found(noisy(name, seed=seed))


@pytest.mark.parametrize("name", NAMES)
def test_each_sign_warns_soon_and_never_aborts(name: str) -> None:
    (seen,) = found(ill(name))
    assert (seen.detector, seen.severity) == ("starvation", Severity.WARN)
    assert 61 * 50 <= seen.step <= 72 * 50
    assert seen.evidence["metric"] == name
    assert seen.evidence["rule"] in RULES
    judged = verdict(ill(name))
    assert (judged.action, judged.rule) == ("warn", "starvation")


def test_one_wild_point_of_any_sign_is_none() -> None:
    for name in NAMES:
        wild = [1.0 + 0.01 * (k % 3) for k in range(99)]
        wild[70] = 0.01 if name == STARVED else 100.0
        assert not found(series(name, wild, 50)), name


def test_of_several_blocks_the_first_speaks() -> None:
    early, late = ill(FAR, begins=40), ill(STALE, begins=60)
    (seen,) = found(late, early)
    assert seen.evidence["metric"] == FAR


def test_a_block_is_held_against_itself_so_no_scale_matters() -> None:
    for name in NAMES:
        curve = ill(name)
        for factor in (2.0**-20, 2.0**20):
            scaled = Series(name, curve.steps, tuple(factor * value for value in curve.values))
            assert [one.step for one in found(scaled)] == [one.step for one in found(curve)]


def test_moments_that_are_not_warm_yet_and_other_names_are_not_read() -> None:
    cold = series(FAR, [1.0] * 12 + [100.0] * 10, 10)  # all within the first twentieth of 5000
    assert not found(cold)
    values = ill(FAR).values
    for name in ("train/update_to_weight", "opt/blocks.3/gradient_noise", "update_to_weight"):
        assert not found(series(name, values, 50))


@pytest.mark.parametrize("name", NAMES)
def test_what_any_prefix_shows_is_what_hindsight_shows(name: str) -> None:
    curve = ill(name)
    (final,) = found(curve)
    for count in range(1, len(curve.steps) + 1):
        seen = found(Series(name, curve.steps[:count], curve.values[:count]))
        assert seen == ((final,) if curve.steps[count - 1] >= final.step else ())


@given(
    st.sampled_from(NAMES),
    st.lists(
        st.one_of(st.floats(), st.sampled_from([0.0, 1.0, -1.0, 5e-324, 1.7e308, math.nan, math.inf])), max_size=90
    ),
    st.one_of(st.none(), st.integers(1, 200)),
)
def test_no_numbers_break_it(name: str, values: list[float], steps_total: int | None) -> None:
    for seen in found(series(name, values), steps_total=steps_total):
        assert seen.severity is Severity.WARN
        json.dumps(dict(seen.evidence), allow_nan=False)


# ---- probes ----------------------------------------------------------------------------------------------------------


def cut(curve: Series, count: int) -> Series:
    return Series(curve.name, curve.steps[:count], curve.values[:count])


def test_probes_are_asked_for_while_the_sign_stands_and_no_longer() -> None:
    values = [1.0 + 0.01 * (k % 3) for k in range(60)] + [0.01] * 10 + [1.0] * 29
    curve = series(STARVED, values, 50)
    asked = [verdict(cut(curve, count)).probe_every_steps for count in range(1, 96)]
    assert asked[:64] == [None] * 64
    assert asked[64:70] == [100] * 6
    assert asked[70:] == [None] * 25
    assert verdict(curve).action == "warn"  # it stays in the verdict


def test_no_probes_in_the_tail_nor_for_a_shadow_nor_without_a_budget() -> None:
    early, late = ill(STARVED, count=94), ill(STARVED, count=98)
    assert verdict(early).probe_every_steps == 100
    assert verdict(late).probe_every_steps is None  # 4900 of 5000
    assert verdict(early, policy=Policy({"starvation": "shadow"})).probe_every_steps is None
    assert verdict(early, policy=Policy({"starvation": "warn"})).probe_every_steps == 100
    assert verdict(early, steps_total=None).probe_every_steps is None
