"""From paired scores to causes: the identity of the shares, what is blamed and what is spared, and the words for it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.autopsy.shares import (
    EMA_DENSE,
    EMA_GUIDED,
    RAW_DENSE,
    RAW_ROUTED,
    Cell,
    Finding,
    Means,
    Paired,
    estimate,
    find,
)

scores = st.floats(min_value=0.01, max_value=2.0)
pairs = st.builds(Means, scores, scores)
cells = st.sampled_from([RAW_DENSE, EMA_DENSE, EMA_GUIDED, RAW_ROUTED])


def samples(cell: Means, count: int = 24, spread: float = 0.01) -> dict[str, Means]:
    """Samples around a mean, of which some are harder at both steps alike and some change more than others."""
    offsets = [spread * ((index * 7) % count - (count - 1) / 2) / count for index in range(count)]
    wobble = [0.1 * spread * math.sin(index) for index in range(count)]
    return {
        f"s{index}": Means(cell.best + offsets[index], cell.stop + offsets[index] + wobble[index])
        for index in range(count)
    }


def planted(raw: Means, ema: Means, guided: Means, routed: Means | None = None) -> Finding:
    made = {RAW_DENSE: samples(raw), EMA_DENSE: samples(ema), EMA_GUIDED: samples(guided)}
    return find(made | ({RAW_ROUTED: samples(routed)} if routed else {}), "min")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(pairs, pairs, pairs), min_size=1, max_size=12), st.sampled_from(["min", "max"]))
def test_the_shares_sum_to_the_change_of_the_guided_average(found: list[tuple[Means, ...]], direction: str) -> None:
    made: Paired = {
        cell: {f"s{index}": row[place] for index, row in enumerate(found)}
        for place, cell in enumerate((RAW_DENSE, EMA_DENSE, EMA_GUIDED))
    }
    finding = find(made, direction)
    assert finding.total is not None
    assert [share.cause for share in finding.shares] == ["weights", "averaging", "guidance"]
    summed = math.fsum(share.estimate.mean for share in finding.shares)
    assert summed == pytest.approx(finding.deltas[EMA_GUIDED].mean, abs=1e-12)
    assert finding.total == finding.deltas[EMA_GUIDED]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(pairs, pairs, pairs, pairs), min_size=2, max_size=8), st.sets(cells), st.integers(0, 7))
def test_samples_without_a_score_leave_every_share_on_the_same_others(
    found: list[tuple[Means, ...]], broken: set[Cell], which: int
) -> None:
    made = {
        cell: {f"s{index}": row[place] for index, row in enumerate(found)}
        for place, cell in enumerate((RAW_DENSE, EMA_DENSE, EMA_GUIDED, RAW_ROUTED))
    }
    name = f"s{which % len(found)}"
    for cell in broken:
        made[cell][name] = Means(0.5, math.nan)
    finding = find(made, "min")
    summed = broken - {RAW_ROUTED}
    assert finding.total is not None
    assert finding.total.samples == len(found) - bool(summed)
    in_sum = [share for share in finding.shares if share.cause != "routing"]
    assert {share.estimate.samples for share in in_sum} == {finding.total.samples}
    assert math.fsum(share.estimate.mean for share in in_sum) == pytest.approx(finding.total.mean, abs=1e-12)
    assert {cell for cell, count in finding.invalid.items() if count} == broken


@pytest.mark.parametrize(
    ("found", "blamed"),
    [
        (planted(Means(0.20, 0.20), Means(0.19, 0.19), Means(0.18, 0.18)), ()),
        (planted(Means(0.20, 0.26), Means(0.19, 0.25), Means(0.18, 0.24)), ("weights",)),
        (planted(Means(0.20, 0.20), Means(0.19, 0.27), Means(0.18, 0.26)), ("averaging",)),
        (planted(Means(0.20, 0.20), Means(0.19, 0.19), Means(0.18, 0.26)), ("guidance",)),
        (planted(Means(0.20, 0.26), Means(0.19, 0.31), Means(0.18, 0.30)), ("weights", "averaging")),
        (planted(Means(0.20, 0.20), Means(0.19, 0.19), Means(0.18, 0.18), Means(0.22, 0.30)), ("routing",)),
        # The average was ahead of noisy weights and is caught up with: nothing has fallen, nothing is harmed.
        (planted(Means(0.30, 0.19), Means(0.20, 0.19), Means(0.19, 0.18)), ()),
        # The average stands still while the weights get on: its score has not fallen, and it does harm.
        (planted(Means(0.30, 0.15), Means(0.20, 0.20), Means(0.20, 0.20)), ("averaging",)),
        # Guidance helped and hurts now, although all has become better.
        (planted(Means(0.30, 0.15), Means(0.29, 0.14), Means(0.25, 0.18)), ("guidance",)),
        # Below 1 % of the best score.
        (planted(Means(0.20, 0.2015), Means(0.19, 0.1915), Means(0.18, 0.1815)), ()),
    ],
)  # fmt: skip
def test_what_is_blamed(found: Finding, blamed: tuple[str, ...]) -> None:
    assert found.blamed == blamed


def test_where_higher_is_better_a_lower_score_is_worse() -> None:
    made = {
        RAW_DENSE: samples(Means(0.8, 0.6)),
        EMA_DENSE: samples(Means(0.8, 0.6)),
        EMA_GUIDED: samples(Means(0.8, 0.6)),
    }
    assert find(made, "max").blamed == ("weights",)
    assert find(made, "min").blamed == ()
    assert find(made, "max").deltas[RAW_DENSE].mean == pytest.approx(0.2, abs=0.001)


def test_a_cell_that_was_not_drawn_has_no_share() -> None:
    found = find({RAW_DENSE: samples(Means(0.2, 0.2)), EMA_DENSE: samples(Means(0.2, 0.3))}, "min")
    assert [share.cause for share in found.shares] == ["weights", "averaging"]
    assert found.blamed == ("averaging",)
    assert found.total == found.deltas[EMA_DENSE]


def test_nothing_is_blamed_on_one_sample() -> None:
    one = {cell: {"s": Means(0.2, 0.9)} for cell in (RAW_DENSE, EMA_DENSE, EMA_GUIDED)}
    found = find(one, "min")
    assert found.blamed == ()
    assert math.isnan(found.shares[0].estimate.low)


def test_no_finite_score_means_no_share() -> None:
    broken = {cell: {"s": Means(0.2, math.inf)} for cell in (RAW_DENSE, EMA_DENSE)}
    found = find(broken, "min")
    assert (found.shares, found.total, found.deltas) == ((), None, {})
    assert found.invalid == {RAW_DENSE: 1, EMA_DENSE: 1}


def test_an_interval_is_the_same_again_and_narrows_with_more_samples() -> None:
    few, many = [0.0, 0.2] * 4, [0.0, 0.2] * 64
    assert estimate(few) == estimate(list(few))
    assert estimate(few).low < 0.1 < estimate(few).high
    assert estimate(many).high - estimate(many).low < 0.4 * (estimate(few).high - estimate(few).low)
    assert estimate([0.1] * 5).low == pytest.approx(0.1)
    with pytest.raises(ValueError, match="no value"):
        estimate([])


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    """Skewed samples of 24: a percentile bootstrap is known to be a little too narrow, not much."""
    import numpy as np

    source = np.random.default_rng(0)
    inside = sum(
        found.low <= 1.0 <= found.high for found in (estimate(source.exponential(1.0, 24).tolist()) for _ in range(200))
    )
    assert 0.86 <= inside / 200 <= 0.97
