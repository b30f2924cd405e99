"""Seconds into money: nothing is given back when a clock is set back, and nothing is charged twice."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.base import Slot
from provisioning.ledger import Rate, Spent, Usage, affordable_s, share_of, spent, used_s

times = st.floats(0.0, 2e9)
durations = st.floats(0.0, 1e7)


def test_hours_and_dollars_are_sums_over_the_stretches() -> None:
    whole, half = Rate(3.0), Rate(3.0, 0.5)
    assert spent([(3600.0, whole), (7200.0, half), (1800.0, Rate())]) == Spent(hours=3.5, usd=6.0)
    assert spent([]) == Spent(0.0, 0.0)


@pytest.mark.parametrize(
    ("usage", "expected_s"),
    [
        (Usage(None), 0.0),
        (Usage(100.0), 50.0),
        (Usage(100.0, 130.0), 30.0),
        (Usage(200.0), 0.0),  # the clock was set back after the start
        (Usage(100.0, 40.0), 0.0),
    ],
)
def test_a_stretch_lasts_from_its_start_to_its_end_or_to_now(usage: Usage, expected_s: float) -> None:
    assert used_s(usage, 150.0) == expected_s


def test_a_live_stretch_goes_on_by_the_steady_clock_while_the_wall_clock_is_behind() -> None:
    live = Usage(1000.0)
    assert used_s(live, now=1600.0) == 600.0
    assert used_s(live, now=100.0, known_s=600.0, passed_s=5.0) == 605.0
    assert used_s(Usage(1000.0, 100.0), now=100.0, known_s=605.0, passed_s=5.0) == 605.0


@given(times, st.lists(st.tuples(times, durations), max_size=20), st.none() | times)
def test_whatever_the_wall_clock_does_nothing_is_given_back(
    started: float, looks: list[tuple[float, float]], ended: float | None
) -> None:
    known_s = 0.0
    for now, passed_s in looks:
        found_s = used_s(Usage(started), now, known_s=known_s, passed_s=passed_s)
        assert found_s >= known_s + passed_s
        assert found_s >= now - started
        known_s = found_s
    assert used_s(Usage(started, ended), 0.0, known_s=known_s) >= known_s


@given(st.floats(0.0, 1e5), st.floats(0.01, 100.0), st.floats(0.01, 1.0))
def test_what_money_buys_costs_that_money(left_usd: float, price: float, share: float) -> None:
    rate = Rate(price, share)
    assert spent([(affordable_s(left_usd, rate), rate)]).usd == pytest.approx(left_usd)


def test_what_is_free_lasts_for_ever_and_what_is_spent_buys_nothing() -> None:
    assert affordable_s(0.0, Rate()) == math.inf
    assert affordable_s(-2.0, Rate(1.0)) == 0.0


def test_a_slot_is_its_share_of_the_gpus_or_of_the_slots() -> None:
    small, large = Slot("gpu0", (0,), ("a",)), Slot("gpu1", (1,), ("b", "c", "d"))
    assert (share_of(small, [small, large]), share_of(large, [small, large])) == (0.25, 0.75)
    assert share_of(small, []) == 1.0
    cores = [Slot(f"cpu{number}", (number,)) for number in range(4)]
    assert sum(share_of(slot, cores) for slot in cores) == 1.0


@pytest.mark.parametrize(("price", "share"), [(-1.0, 1.0), (math.nan, 1.0), (math.inf, 1.0), (1.0, 1.1), (1.0, -0.1)])
def test_an_impossible_rate_is_refused(price: float, share: float) -> None:
    with pytest.raises(ValueError, match="allowed"):
        Rate(price, share)
