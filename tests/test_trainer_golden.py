"""Thirty steps of tiny trainings must go as they were recorded: what changes a curve by accident shows here."""

from __future__ import annotations

import json

import pytest

from tests.fakes.golden_curves import CASES, FILE, STEPS, curve

RECORDED = json.loads(FILE.read_text())


def test_every_case_is_recorded_and_no_two_are_alike() -> None:
    assert RECORDED.keys() == CASES.keys()
    assert {len(losses) for losses in RECORDED.values()} == {STEPS}
    assert len({tuple(losses) for losses in RECORDED.values()}) == len(CASES)


@pytest.mark.parametrize("case", CASES)
def test_losses_follow_the_recorded_curve(case: str) -> None:
    assert curve(case) == pytest.approx(RECORDED[case], rel=1e-3)
