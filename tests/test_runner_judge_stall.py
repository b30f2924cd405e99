"""A run that learns nothing while others do: beside three siblings, beside two, alone, and with a value at step 0."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.judge.curves import Curves
from runner.judge.stall import LEVELS, detect
from runner.records import Finding, Primary, Series, Severity, Sibling
from tests.fakes.curves import PRIMARY

TOTAL, EVERY = 5000, 250


def curve(shape: Callable[[float], float], total: int = TOTAL, every: int = EVERY, first: int | None = None) -> Series:
    """A metric whose value at share u of the budget is shape(u)."""
    steps = tuple(range(every if first is None else first, total + 1, every))
    return Series(PRIMARY.metric, steps, tuple(shape(step / total) for step in steps))


def learner(u: float, drop: float = 0.4) -> float:
    return 1.0 - drop * (1 - math.exp(-3 * u))


def flat(u: float) -> float:
    return 1.0 - 0.02 * min(1.0, u / 0.1)


def siblings(*curves: Series, total: int = TOTAL) -> list[Sibling]:
    return [Sibling(f"s/{k}", one, total) for k, one in enumerate(curves)]


LEARNERS = [curve(lambda u, drop=drop: learner(u, drop)) for drop in (0.35, 0.4, 0.45)]


def found(own: Series, others: Sequence[Sibling], direction: str = "min", total: int | None = TOTAL) -> list[Finding]:
    primary = Primary(PRIMARY.metric, direction)
    return list(detect(Curves({own.name: own}, total, primary, [], None, others), LEVELS))


def upto(series: Series, share: float, total: int = TOTAL) -> Series:
    end = sum(step <= share * total + 1e-6 for step in series.steps)
    return Series(series.name, series.steps[:end], series.values[:end])


def test_beside_three_siblings_that_learn_it_is_stopped_soon_after_two_fifths() -> None:
    (seen,) = found(curve(flat), siblings(*LEARNERS))
    assert (seen.detector, seen.severity, seen.evidence["rule"]) == ("stall", Severity.ABORT, "siblings")
    assert 0.42 * TOTAL <= seen.step <= 0.52 * TOTAL
    assert seen.evidence["siblings"] == ["s/0", "s/1", "s/2"]


def test_two_siblings_only_warn_and_one_says_nothing() -> None:
    (seen,) = found(curve(flat), siblings(*LEARNERS[:2]))
    assert seen.severity is Severity.WARN
    assert not found(curve(flat), siblings(*LEARNERS[:1]))
    assert not found(curve(flat), [])


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(lambda u: 1.0 if u < 0.38 else learner(u - 0.38, 0.6), id="a slow start"),
        pytest.param(lambda u: learner(u, 0.2), id="a laggard that moves"),
        pytest.param(lambda u: 1.0 - 0.15 * u, id="a slow one that moves all the time"),
        pytest.param(lambda u: learner(min(u, 0.4)), id="a plateau of one that had learnt"),
        pytest.param(lambda u: 1.0 - 0.1 * int(u / 0.2), id="stairs"),
    ],
)
def test_whoever_moved_is_left_alone(shape: Callable[[float], float]) -> None:
    assert not found(curve(shape), siblings(*LEARNERS))


def test_a_pause_no_longer_than_the_others_made_means_nothing() -> None:
    steps = [curve(lambda u, at=at: 1.0 if u < at else 0.7) for at in (0.3, 0.42, 0.42)]
    # Others stood still until 0.42 and then moved: standing still until 0.5 is not longer by enough.
    seen = found(curve(flat), siblings(*steps))
    assert not seen or seen[0].step > 0.5 * TOTAL


def test_a_study_in_which_nobody_moves_has_no_stall() -> None:
    assert not found(curve(flat), siblings(*[curve(flat)] * 3))


def test_worse_but_not_worse_than_all_others_is_no_stall() -> None:
    worse = [curve(lambda u: 1.2), curve(lambda u: 1.2)]
    assert not found(curve(flat), siblings(*LEARNERS[:2], *worse))


def test_siblings_count_up_to_the_same_share_of_their_own_budget() -> None:
    shapes = [lambda u, drop=drop: learner(u, drop) for drop in (0.35, 0.4, 0.45)]
    longer = [Sibling(f"s/{k}", curve(shape, 50_000, 2_500), 50_000) for k, shape in enumerate(shapes)]
    assert [one.step for one in found(curve(flat), longer)] == [
        one.step for one in found(curve(flat), siblings(*LEARNERS))
    ]


def test_siblings_that_have_not_come_as_far_are_not_asked() -> None:
    behind = [upto(one, 0.40) for one in LEARNERS]
    assert not found(curve(flat), siblings(*behind))


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
@pytest.mark.parametrize("own", [flat, learner])
def test_unit_and_direction_of_the_metric_do_not_matter(factor: float, own: Callable[[float], float]) -> None:
    def times(series: Series, by: float) -> Series:
        return Series(series.name, series.steps, tuple(by * value for value in series.values))

    plain = found(curve(own), siblings(*LEARNERS))
    scaled = [times(one, factor) for one in LEARNERS]
    assert found(times(curve(own), factor), siblings(*scaled)) == plain
    mirrored = [times(one, -factor) for one in LEARNERS]
    assert found(times(curve(own), -factor), siblings(*mirrored), "max") == plain


# ---- against its own step 0 ------------------------------------------------------------------------------------------


def from_step_0(shape: Callable[[float], float]) -> Series:
    return curve(shape, first=0)


def test_alone_a_run_that_is_no_better_than_at_step_0_is_warned_of_at_half_time() -> None:
    (seen,) = found(from_step_0(lambda u: 1.0 + 0.001 * math.sin(50 * u)), [])
    assert (seen.severity, seen.evidence["rule"], seen.evidence["siblings"]) == (Severity.WARN, "step_0", [])
    assert 0.5 * TOTAL <= seen.step <= 0.6 * TOTAL


def test_beside_siblings_that_learnt_since_their_step_0_it_is_stopped() -> None:
    others = [from_step_0(learner)]
    (seen,) = found(from_step_0(lambda u: 1.0), siblings(*others))
    assert (seen.severity, seen.evidence["rule"]) == (Severity.ABORT, "step_0")


def test_beside_siblings_that_learn_nothing_either_it_is_left_alone() -> None:
    assert not found(from_step_0(lambda u: 1.0), siblings(from_step_0(lambda u: 1.0)))


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([Series(PRIMARY.metric, (0,), (1.0,))], id="one value so far"),
        pytest.param([Series(PRIMARY.metric, (), ())], id="no value"),
        pytest.param([Series(PRIMARY.metric, (100,), (math.nan,))], id="none that is finite"),
        pytest.param([Series(PRIMARY.metric, (4750, 5000), (1.0, 0.5))], id="values later only"),
    ],
)
def test_siblings_that_can_tell_nothing_yet_leave_it_alone_so_it_is_only_warned_of(others: list[Series]) -> None:
    (seen,) = found(from_step_0(lambda u: 1.0), siblings(*others))
    assert (seen.severity, seen.evidence["siblings"]) == (Severity.WARN, [])


def test_a_run_that_scored_well_untrained_and_learns_since_is_no_stall() -> None:
    own = from_step_0(lambda u: 0.5 if u == 0 else 1.5 - 0.5 * u)
    assert not found(own, siblings(*[from_step_0(learner)] * 3))
    assert not found(own, [])


# ---- any curve -------------------------------------------------------------------------------------------------------

numbers = st.one_of(
    st.floats(),
    st.floats(0.5, 1.5),
    st.sampled_from([0.0, 1.0, -1.0, 5e-324, 1.7e308, -1.7e308, math.nan, math.inf, -math.inf]),
)
curves = st.lists(numbers, max_size=40)


@given(own=curves, others=st.lists(curves, max_size=4), first=st.sampled_from([0, 125]), total=st.integers(1, 6000))
def test_no_curve_breaks_it(own: list[float], others: list[list[float]], first: int, total: int) -> None:
    def series(values: list[float]) -> Series:
        return Series(PRIMARY.metric, tuple(first + 125 * k for k in range(len(values))), tuple(values))

    for direction in ("min", "max"):
        for seen in found(series(own), siblings(*map(series, others), total=total), direction, total):
            json.dumps(dict(seen.evidence), allow_nan=False)


levels = st.lists(st.sampled_from([1.0, 0.99, 0.95, 0.9, 0.8, 0.6]), min_size=10, max_size=21)


@given(
    own=st.one_of(levels, st.integers(10, 21).map(lambda count: [1.0] * count)),
    others=st.lists(levels.map(lambda values: sorted(values, reverse=True)), min_size=1, max_size=4),
    look=st.integers(0, 20),
)
def test_what_came_later_in_any_run_never_changes_a_decision(
    own: list[float], others: list[list[float]], look: int
) -> None:
    """All arms validate at the same shares, as in a study; whoever looks sees all of them up to one share."""

    def series(values: list[float]) -> Series:
        return Series(PRIMARY.metric, tuple(EVERY * k for k in range(len(values))), tuple(values))

    # Whose curve ends early has been stopped: it ends there for both looks.
    final = found(series(own), siblings(*map(series, others)))
    share = look * EVERY / TOTAL
    seen = found(upto(series(own), share), siblings(*(upto(series(one), share) for one in others)))
    stops = [one for one in final if one.step <= share * TOTAL and one.severity is Severity.ABORT]
    assert [one for one in seen if one.severity is Severity.ABORT] == stops
