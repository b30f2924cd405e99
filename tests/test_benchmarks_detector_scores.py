"""Figures of a stopping rule: what counts as recognised, as too early, as saved, and how sure a rate is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from benchmarks.detector_scores import Outcome, by_kind, scores, upper_bound, worst_cases
from benchmarks.detectors import DEVELOPMENT_SEEDS, FINAL_SEEDS, OURS, case, measure, named_study, table


def outcome(
    *, onset: int | None = None, stopped: int | None = None, named: int | None = None, kind: str = "k"
) -> Outcome:
    return Outcome(f"1/base/{onset}", kind, onset, 1000, stopped, stopped if named is None else named)


def test_a_stop_after_the_onset_is_recognised_and_saves_the_rest() -> None:
    found = scores([outcome(onset=400, stopped=600), outcome(onset=0)])
    assert (found["recall"], found["aborted"], found["before_onset"]) == (50, 50, 0)
    assert (found["delay_median"], found["delay_p90"]) == (20, 20)
    assert found["saved"] == pytest.approx(100 * 400 / 1600)


def test_a_stop_before_the_onset_saves_nothing_and_is_no_recognition() -> None:
    found = scores([outcome(onset=400, stopped=399)])
    assert (found["recall"], found["before_onset"], found["saved"], found["delay_median"]) == (0, 100, 0, None)


def test_a_verdict_alone_recognises_and_saves_nothing() -> None:
    found = scores([outcome(onset=400, named=990)])
    assert (found["recall"], found["aborted"], found["saved"]) == (100, 0, 0)


def test_a_stop_at_the_last_step_is_no_abort() -> None:
    assert scores([outcome(onset=400, stopped=1000)])["aborted"] == 0


def test_a_healthy_arm_that_was_stopped_is_counted_and_named() -> None:
    told = [outcome(stopped=500, kind="spike"), outcome(named=990, kind="late"), *[outcome(kind="decay")] * 98]
    found = scores(told)
    assert (found["false_aborts"], found["false_aborts_percent"], found["false_verdicts"]) == (1, 1.0, 1)
    assert 1.0 < found["false_aborts_bound"] < 5.0
    worst = worst_cases(told)
    assert [one["kind"] for one in worst["false_aborts"]] == ["spike"]
    assert [one["kind"] for one in worst["false_verdicts"]] == ["late"]
    assert list(by_kind([*told, outcome(onset=5, kind="stall")])) == ["stall", "decay", "late", "spike"]


def test_every_mistake_is_listed_once() -> None:
    told = [outcome(onset=4), outcome(onset=400, stopped=3), outcome(onset=4, stopped=9), outcome(stopped=3), outcome()]
    assert {name: len(cases) for name, cases in worst_cases(told).items()} == {
        "false_aborts": 1,
        "false_verdicts": 0,
        "before_onset": 1,
        "missed": 1,
    }


@settings(max_examples=60, deadline=None)
@given(trials=st.integers(1, 5000), data=st.data())
def test_the_bound_is_clopper_and_pearson_s(trials: int, data: st.DataObject) -> None:
    events = data.draw(st.integers(0, min(trials, 60)))
    expected = 1.0 if events == trials else float(beta.ppf(0.95, events + 1, trials - events))
    assert upper_bound(events, trials) == pytest.approx(expected, abs=1e-6)


def test_impossible_counts_have_no_bound() -> None:
    with pytest.raises(ValueError, match="3 events in 2 trials"):
        upper_bound(3, 2)


def test_seeds_to_work_on_and_seeds_of_record_are_apart() -> None:
    assert not set(DEVELOPMENT_SEEDS) & set(FINAL_SEEDS)


@pytest.mark.long
def test_the_judge_is_measured_on_a_few_studies() -> None:
    result = measure(range(600, 700), 0.01, peers=())
    for told in result["profiles"].values():
        for figures in told["rules"].values():
            assert figures["healthy"] >= 10
            assert figures["sick"] >= 5
            assert figures["recall"] >= 80
        kinds = told["kinds"][OURS[0]].values()
        assert sum(one["healthy"] + one["sick"] for one in kinds) == figures["healthy"] + figures["sick"]
    assert table(result).count(OURS[0]) == 3
    assert result["profiles"]["base"]["rules"][OURS[1]]["probes_per_sick"] == 0


def test_one_case_can_be_looked_at() -> None:
    kinds = [arm.label.kind for arm in named_study("600/base")]
    shown = case("600/base/0")
    assert shown.startswith(f"600/base/0: {kinds[0]}")
    assert all(name in shown for name in OURS)


@pytest.mark.parametrize("name", ["", "600", "600/base", "600/base/77", "600/nobody/0", "x/base/0"])
def test_a_case_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"allowed|has arms"):
        case(name)
