"""Contrasts: what is read against what, at which step, under which budget, and in which words."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from reports.budgets import times_to_quality
from reports.contention import CONTENDED, busyness
from reports.contrasts import Contrast, contrasts, word
from reports.findings import reading
from reports.pairing import seed_floor
from reports.study import AttemptView, Curve, NeighbourView, RunView, StudyView
from tests.fakes.studies import PLANS, PRIMARY, made_run, quickstart, seeded_study, with_curve, without_points


def by_arm(study: StudyView) -> dict[str, Contrast]:
    return {contrast.arm: contrast for contrast in contrasts(study)}


def replaced(study: StudyView, arm: str, seed: int, **changes: object) -> StudyView:
    def change(run: RunView) -> RunView:
        return replace(run, **changes) if (run.arm, run.seed) == (arm, seed) else run  # type: ignore[arg-type]

    return replace(study, runs=tuple(change(run) for run in study.runs))


def test_the_difference_is_that_of_the_last_values_and_not_of_the_best() -> None:
    study = quickstart()
    runs = {(run.arm, run.seed): run for run in study.runs}
    found = by_arm(study)["C"]
    ends = [runs[key].curves[PRIMARY.metric].values[-1] for key in (("C", 0), ("A", 0))]
    assert found.delta == ends[0] - ends[1]
    assert found.interval is not None
    assert found.interval.mean == pytest.approx(found.delta)
    assert found.interval.high < 0


def test_the_seed_floor_is_the_distance_of_the_baselines_seeds() -> None:
    study = quickstart()
    ends = [run.curves[PRIMARY.metric].values[-1] for run in study.runs if run.arm == "A"]
    assert by_arm(study)["C"].seed_floor == pytest.approx(abs(ends[0] - ends[1]))
    assert by_arm(study)["C"].within_seed_spread is False
    assert by_arm(study)["D"].within_seed_spread is True
    assert reading(by_arm(study)["D"]) == "within seed spread"


def test_a_difference_equal_to_the_floor_is_within_it() -> None:
    steps = {100: 0.5}
    study = quickstart()
    values = {("A", 0): 0.5, ("A", 1): 0.75, ("C", 0): 0.25}
    runs = [with_curve(run, PRIMARY.metric, {100: values[run.arm, run.seed]}) for run in study.runs if run.arm in "AC"]
    found = by_arm(replace(study, runs=tuple(runs)))["C"]
    assert (found.delta, found.seed_floor, found.within_seed_spread) == (-0.25, 0.25, True)
    assert seed_floor(runs[:1], PRIMARY.metric, next(iter(steps))) is None


def test_the_seed_floor_of_many_seeds_is_the_mean_over_pairs_and_not_their_range() -> None:
    run = quickstart().runs[0]
    seeds = [with_curve(run, PRIMARY.metric, {100: value}) for value in (0.0, 1.0, 3.0)]
    assert seed_floor(seeds, PRIMARY.metric, 100) == pytest.approx((1 + 3 + 2) / 3)


def test_an_aborted_arm_is_read_at_the_last_common_step() -> None:
    found = by_arm(quickstart())["B"]
    assert [(pair.arm_step, pair.baseline_step) for pair in found.pairs] == [(600, 600)]
    assert found.notes == ("read at step 600, the last in common: B-s0 is aborted at step 600",)


def test_one_seed_has_an_interval_over_samples_and_no_p() -> None:
    found = by_arm(quickstart())["C"]
    assert found.interval is not None
    assert (found.interval.kind, found.interval.count, found.p, found.p_holm) == ("samples", 48, None, None)
    assert found.word == "screening"


@pytest.mark.parametrize(
    ("seeds", "expected"), [(0, "screening"), (1, "screening"), (2, "screening"), (3, "indicative"), (5, "indicative"),
                            (6, "supported"), (9, "supported")],
)  # fmt: skip
def test_words_follow_the_number_of_paired_seeds(seeds: int, expected: str) -> None:
    assert word(seeds) == expected


def test_several_seeds_have_a_hierarchical_interval_and_an_exact_p() -> None:
    found = by_arm(seeded_study(6, -0.03))["B"]
    assert found.interval is not None
    assert found.interval.kind == "seeds, then samples"
    assert (found.p, found.p_holm, found.word, found.paired_seeds) == (0.03125, 0.03125, "supported", 6)
    assert reading(found) == "supported: lower, beyond seed spread"
    assert found.improves


def test_holm_counts_all_contrasts_of_the_primary() -> None:
    study = seeded_study(6, -0.03)
    again = [replace(run, arm="C", run=run.run.replace("/B", "/C")) for run in study.runs if run.arm == "B"]
    found = by_arm(replace(study, runs=(*study.runs, *again)))
    assert found["B"].p_holm == found["C"].p_holm == 0.0625
    assert reading(found["B"]).startswith("indicative: lower")


def test_unpaired_seeds_are_told_and_stay_a_screening() -> None:
    study = quickstart()
    study = replace(study, runs=tuple(replace(r, seed=7) if r.arm == "C" else r for r in study.runs))
    found = by_arm(study)["C"]
    assert (found.paired_by_seed, found.paired_seeds, found.word, found.p) == (False, 0, "screening", None)
    assert "no seed in common" in found.notes[0]


def test_different_evaluation_sets_are_never_compared() -> None:
    study = quickstart()
    metas = {800: {"eval_set": "another"}}
    found = by_arm(replaced(study, "C", 0, metas=metas))
    assert found["C"].delta is None
    assert "evaluation sets differ" in found["C"].why_not
    assert found["D"].delta is not None


def test_what_cannot_be_compared_says_why() -> None:
    study = quickstart()
    queued = replace(study, runs=tuple(without_points(r, "queued") if r.arm == "C" else r for r in study.runs))
    assert "C-s0 (queued at step 0)" in by_arm(queued)["C"].why_not
    lonely = replace(study, runs=tuple(r for r in study.runs if r.arm == "C"))
    assert by_arm(lonely)["C"].why_not == "its baseline A has no run in this study"
    runs = tuple(with_curve(r, PRIMARY.metric, {100: 0.4, 800: math.nan}) if r.arm == "C" else r for r in study.runs)
    broken = by_arm(replace(study, runs=runs))["C"]
    assert (broken.delta, broken.why_not) == (None, "the last value of C-s0 is nan")


def test_samples_that_are_not_valid_leave_the_pairing() -> None:
    study = quickstart()
    run = next(r for r in study.runs if r.arm == "C")
    scores = [replace(s, value=None, valid=False) if s.sample_id == "held-0003" else s for s in run.scores]
    scores = [replace(s, value=math.inf) if s.sample_id == "held-0004" else s for s in scores]
    found = by_arm(replaced(study, "C", 0, scores=tuple(scores)))["C"]
    assert found.interval is not None
    assert found.interval.count == 46


def test_equal_samples_compare_at_equal_samples() -> None:
    study = quickstart()
    config = {**study.runs[3].config, "trainer.batch": 32}
    found = by_arm(replaced(study, "C", 0, config=config))["C"]
    runs = {(run.arm, run.seed): dict(zip(*_curve(run), strict=True)) for run in study.runs}
    assert found.equal_samples.budget == "12,800 samples"
    assert found.equal_samples.delta == runs["C", 0][400] - runs["A", 0][800]
    assert found.equal_steps.delta == runs["C", 0][800] - runs["A", 0][800]


def test_equal_time_reads_each_side_at_its_last_validation_within_the_time() -> None:
    study = quickstart()
    runs = {(run.arm, run.seed): dict(zip(*_curve(run), strict=True)) for run in study.runs}
    found = by_arm(study)["D"].equal_time  # D needs 0.131 s a step where A needs 0.109
    assert found.delta == runs["D", 0][600] - runs["A", 0][800]
    assert found.budget == "87.2 s of training"


def test_equal_time_is_withheld_when_the_neighbours_differed() -> None:
    study = quickstart()
    alone = replace(study, runs=tuple(run for run in study.runs if (run.arm, run.seed) in {("A", 0), ("C", 0)}))
    start = study.runs[0].attempts[0].started
    assert start is not None
    busy_twice = replace(alone, neighbours=(NeighbourView("", start - 5, start + 40),))
    assert by_arm(study)["C"].equal_time.delta is not None
    assert by_arm(busy_twice)["C"].equal_time.note == CONTENDED
    elsewhere = replace(alone, neighbours=(NeighbourView("another host", start - 5, start + 40),))
    assert by_arm(elsewhere)["C"].equal_time == by_arm(alone)["C"].equal_time


def test_equal_time_is_withheld_on_different_hardware() -> None:
    study = replaced(quickstart(), "C", 0, provenance={"hardware": {"cpu": "another"}})
    assert by_arm(study)["C"].equal_time.note == "different hardware: n/a"


def test_throughput_comes_from_equally_busy_windows_only() -> None:
    study = quickstart()
    found = busyness(study)
    assert found.level == 1
    late = next(run.run for run in study.runs if (run.arm, run.seed) == ("A", 1))
    assert 0 < found.throughput[late].windows < found.throughput[late].of
    shared = [AttemptView(1, "train", "cpu0", True, 0.0, 1.0)]
    sharing = busyness(replaced(study, "C", 0, attempts=tuple(shared)))
    assert sharing.throughput[study.runs[3].run].images_per_s is None
    assert sharing.throughput[study.runs[3].run].note == f"{CONTENDED} (slots share cores)"


def test_a_run_without_such_windows_says_contended() -> None:
    study = quickstart()
    run = study.runs[3]
    moved = tuple(replace(attempt, host="far") for attempt in run.attempts)
    found = busyness(replaced(study, "C", 0, attempts=moved)).throughput[run.run]
    assert (found.images_per_s, found.note) == (None, CONTENDED)


def test_time_to_quality_needs_two_validations_in_a_row() -> None:
    study = quickstart()
    target = study.runs[0].curves[PRIMARY.metric].values[-1]
    dip = {0: 1.0, 100: target - 0.01, 200: target + 0.01, 300: target, 400: target - 0.01, 800: target + 0.02}
    runs = tuple(with_curve(run, PRIMARY.metric, dip) if run.arm == "C" else run for run in study.runs)
    found = {q.run.arm: q for q in times_to_quality(replace(study, runs=runs), busyness(study))}
    assert found["C"].step == 300
    assert found["C"].train_s == pytest.approx(300 * 0.108)
    assert found["B"].step is None
    assert "A" not in found


def test_higher_is_better_turns_the_reading_round() -> None:
    study = quickstart()
    assert study.primary is not None
    upward = replace(study, primary=replace(study.primary, direction="max"))
    found = by_arm(upward)
    assert not found["C"].improves
    assert found["B"].improves
    qualities = {q.run.arm: q.step for q in times_to_quality(upward, busyness(upward))}
    assert qualities["B"] == 0


def test_without_a_primary_there_are_no_contrasts() -> None:
    assert contrasts(replace(quickstart(), primary=None)) == ()


def test_a_curve_refuses_ragged_or_unordered_points() -> None:
    with pytest.raises(ValueError, match="equally many"):
        Curve((1, 2), (0.1,), (0.0, 1.0), (1, 1))
    with pytest.raises(ValueError, match="strictly increase"):
        Curve((2, 2), (0.1, 0.2), (0.0, 1.0), (1, 1))


def test_the_same_plan_makes_the_same_run() -> None:
    assert made_run(PLANS[0], None) == made_run(PLANS[0], None)


def _curve(run: RunView) -> tuple[tuple[int, ...], tuple[float, ...]]:
    found = run.curves[PRIMARY.metric]
    return found.steps, found.values
