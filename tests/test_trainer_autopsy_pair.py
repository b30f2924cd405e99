"""Which two checkpoints are compared, and how many samples fit into the time."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.autopsy.measure import Budget
from trainer.autopsy.pair import Kept, choose_pair
from trainer.errors import UsageError

ALL = (100, 200, 300, 400)


def kept(
    steps: Collection[int] = ALL, finite: Collection[int] | None = None, values: dict[int, float] | None = None
) -> Kept:
    """Checkpoints of which some are scored; lower is better."""
    scored = {step: float(step) for step in steps} if values is None else values

    def best_of(among: Collection[int]) -> int | None:
        return min((step for step in among if step in scored), key=lambda step: scored[step], default=None)

    return Kept(steps, steps if finite is None else finite, tuple(scored), best_of)


def test_the_best_and_the_newest() -> None:
    pair = choose_pair(kept(values={100: 3.0, 200: 1.0, 300: 2.0, 400: 5.0}))
    assert (pair.best, pair.stop, pair.notes, pair.why_not) == (200, 400, (), "")


def test_the_newest_that_is_the_best_is_compared_with_the_best_before_it() -> None:
    pair = choose_pair(kept(values={100: 3.0, 200: 1.0, 300: 2.0, 400: 0.5}))
    assert (pair.best, pair.stop) == (200, 400)
    assert "step 400 is itself the best one" in pair.notes[0]


def test_without_a_best_the_oldest_with_a_score_is_taken() -> None:
    found = Kept(ALL, ALL, (200, 300), lambda among: None)
    pair = choose_pair(found)
    assert (pair.best, pair.stop) == (200, 400)
    assert "oldest kept one with a score" in pair.notes[0]
    with pytest.raises(UsageError, match="no finite checkpoint before step 400 has a score; name one with --best"):
        choose_pair(Kept(ALL, ALL, (400,), lambda among: None))


def test_what_is_named_is_taken() -> None:
    pair = choose_pair(kept(), best=200, stop=300)
    assert (pair.best, pair.stop, pair.notes) == (200, 300, ())


def test_a_stop_without_finite_weights_is_replaced() -> None:
    pair = choose_pair(kept(finite=(100, 200, 300)))
    assert (pair.best, pair.stop) == (100, 300)
    assert "step 400 are not finite: step 300" in pair.notes[0]
    pair = choose_pair(kept(finite=(100, 200, 300)), best=300)
    assert "weights of step 400 are not finite" in pair.why_not


@pytest.mark.parametrize(
    ("found", "options", "says"),
    [
        (kept(()), {}, "kept: none"),
        (kept((100,)), {}, "needs two checkpoints"),
        (kept(), {"best": 150}, "--best 150: no checkpoint of that step is kept; kept: 100, 200, 300, 400"),
        (kept(finite=(200, 400)), {"best": 100}, "--best 100: that checkpoint does not have finite weights; finite: "),
        (kept(finite=()), {}, "no checkpoint has finite weights"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(found: Kept, options: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        choose_pair(found, **options)


@given(
    st.sets(st.integers(0, 20), min_size=1, max_size=6), st.data(), st.dictionaries(st.integers(0, 20), st.floats(0, 1))
)
def test_whatever_is_there_the_pair_is_kept_ordered_and_usable(
    steps: set[int], data: st.DataObject, values: dict[int, float]
) -> None:
    finite = data.draw(st.sets(st.sampled_from(sorted(steps))))
    named = st.none() | st.integers(0, 20)
    try:
        pair = choose_pair(kept(steps, finite, values), data.draw(named), data.draw(named))
    except UsageError:
        return
    assert pair.best < pair.stop
    assert {pair.best, pair.stop} <= steps
    assert pair.best in finite
    assert (pair.stop in finite) == (not pair.why_not)


def test_samples_come_in_whole_and_stop_before_the_time_is_up() -> None:
    left: list[float | None] = [None]
    budget = Budget(lambda: left[0])
    assert budget.next_count(0, 48, None) == 8
    assert budget.next_count(8, 48, 0.5) == 8
    assert budget.next_count(46, 48, 0.5) == 2
    assert budget.next_count(48, 48, 0.5) == 0
    left[0] = 3.3
    assert budget.next_count(0, 48, None) == 2
    assert budget.next_count(0, 1, None) == 1
    assert budget.next_count(2, 48, 0.5) == 5
    assert budget.next_count(2, 48, 3.0) == 0
    assert budget.next_count(2, 48, 0.0) == 8
    left[0] = -1.0
    assert budget.next_count(0, 48, None) == 2
    assert budget.next_count(2, 48, 0.5) == 0
