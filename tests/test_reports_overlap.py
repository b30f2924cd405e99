"""Which compared runs trained at the same time: exact for ended runs, careful with live ones, in the report by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.markdown import render
from reports.overlap import apart, overlaps
from reports.study import AttemptView, EventView, RunView, StudyView
from tests.fakes.studies import quickstart, seeded_study

Span = tuple[float | None, float | None]


made = cache(quickstart)


def study_of(baseline: Sequence[Span], arm: Sequence[Span], kind: str = "train") -> StudyView:
    """Runs A-s0 and D-s0, which is read against it, with these training processes."""
    study = made()
    return replace(study, runs=(with_spans(study.runs[0], baseline, kind), with_spans(study.runs[4], arm, kind)))


def with_spans(run: RunView, spans: Sequence[Span], kind: str) -> RunView:
    attempts = tuple(AttemptView(n, kind, "cpu0", False, start, end) for n, (start, end) in enumerate(spans, 1))
    return replace(run, attempts=attempts)


@pytest.mark.parametrize(
    ("baseline", "arm", "common_s", "share", "apart_s"),
    [
        ([(0, 10)], [(5, 25)], 5, 0.5, None),
        ([(0, 10)], [(10, 20)], 0, 0, 0),
        ([(0, 10)], [(12.5, 20)], 0, 0, 2.5),
        ([(12.5, 20)], [(0, 10)], 0, 0, 2.5),
        ([(0, 10), (30, 40)], [(9, 31)], 2, 0.1, None),
        ([(0, 10), (30, 40)], [(12, 28)], 0, 0, 2),
        ([(0, None)], [(5, 25)], None, None, None),
        ([(0, None)], [(5, None)], None, None, None),
        ([(0, 10)], [(12, None)], 0, None, 2),
        ([(0, 10)], [(8, 3)], 0, None, 0),  # its clock was set back: it took no time, so it met nothing
    ],
)
def test_common_time_and_pauses(
    baseline: list[Span], arm: list[Span], common_s: float | None, share: float | None, apart_s: float | None
) -> None:
    (found,) = overlaps(study_of(baseline, arm))
    assert (found.run.arm, found.baseline.arm) == ("D", "A")
    assert (found.common_s, found.share, found.apart_s) == (common_s, share, apart_s)
    assert (found in apart([found])) is (apart_s is not None)


def test_what_never_trained_has_no_time_in_common() -> None:
    assert overlaps(study_of([(0, 10)], [])) == ()
    assert overlaps(study_of([(0, 10)], [(None, None)])) == ()
    assert overlaps(study_of([(0, 10)], [(0, 10)], kind="evaluate")) == ()


def test_only_runs_of_one_seed_that_are_read_against_each_other_are_named() -> None:
    study = seeded_study(3, 0.01)
    assert [(one.run.seed, one.baseline.seed) for one in overlaps(study)] == [(0, 0), (1, 1), (2, 2)]
    alone = replace(study, runs=tuple(run for run in study.runs if (run.arm, run.seed) in (("A", 0), ("B", 1))))
    assert overlaps(alone) == ()


spans = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 15)).map(lambda drawn: (float(drawn[0]), float(sum(drawn)))),
    min_size=1,
    max_size=3,
)


@given(spans, spans, st.integers(-(10**6), 10**6))
def test_overlap_is_symmetric_and_knows_no_date(
    one: list[tuple[float, float]], two: list[tuple[float, float]], shift: int
) -> None:
    moved = [[(start + shift, end + shift) for start, end in each] for each in (one, two)]
    (found,), (back,), (later,) = (overlaps(study_of(*pair)) for pair in ((one, two), (two, one), moved))
    assert (found.common_s, found.shorter_s, found.apart_s) == (back.common_s, back.shorter_s, back.apart_s)
    assert (found.common_s, found.shorter_s, found.apart_s) == (later.common_s, later.shorter_s, later.apart_s)
    assert (found.apart_s is None) or found.common_s == 0
    assert found.common_s is not None
    assert found.common_s >= 0


def test_the_report_names_them_with_the_pause_and_the_limit() -> None:
    report = render(study_of([(0, 10)], [(12.5, 20)]))["report.md"]
    assert "Runs of one seed that did not overlap in time: A-s0 and D-s0 (2.5 s apart)." in report
    limits = report.partition("## What cannot be said")[2].partition("##")[0]
    assert "D-s0 (against A-s0) did not train at the same time as what it is read against" in limits
    assert "| D-s0 | A-s0 | 0 s | 0 % |" in report


def test_the_report_of_runs_that_met_or_never_started_says_so() -> None:
    met = render(study_of([(0, 10)], [(5, 25)]))["report.md"]
    assert "Every run that has started overlapped in time with the run of its seed" in met
    assert "| D-s0 | A-s0 | 5 s | 50 % |" in met
    assert "did not train at the same time" not in met
    live = render(study_of([(0, 10)], [(5, None)]))["report.md"]
    assert "| D-s0 | A-s0 | still running | n/a |" in live
    none = render(study_of([(0, 10)], []))["report.md"]
    assert "No two runs of one seed that are read against each other have started." in none


def test_a_longer_budget_that_was_given_later_is_a_label() -> None:
    study = quickstart()
    told = EventView(1.0, "extended", "extended from 400 to 800 steps: a new attempt | goes on", 400)
    foreign = EventView(2.0, "extended", "announced by the trainer", 3, announced=True)
    run = replace(study.runs[0], events=(told, foreign))
    report = render(replace(study, runs=(run, *study.runs[1:])))["report.md"]
    assert "- A-s0 was extended from 400 to 800 steps: a new attempt \\| goes on (asked at step 400)." in report
    assert "announced by the trainer" not in report
