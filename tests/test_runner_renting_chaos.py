"""Seeded schedules of everything that can go wrong: nothing is left rented, nothing is rented twice, no spacing is
broken, nothing foreign is touched, and the bill is ours. The long set is `python -m benchmarks.renting`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.renting_case import play

SEEDS, AT_ONCE = 60, 10
CALM_S = 3000.0


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(first, marks=pytest.mark.long) for first in range(AT_ONCE, SEEDS, AT_ONCE))]
)
def test_nothing_stays_rented_whatever_happens(first: int, tmp_path: Path) -> None:
    played = [play(seed, tmp_path, CALM_S) for seed in range(first, first + AT_ONCE)]
    # Schedules that never rented, worked or died would prove nothing.
    assert sum(one.rents for one in played) >= AT_ONCE
    assert sum(one.finished for one in played) >= AT_ONCE
    assert sum(one.deaths for one in played) >= 1
    assert any(one.billed_usd > 0.0 for one in played)
