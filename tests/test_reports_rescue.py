"""A rescued run in the report: named with its parent wherever either stands, and no evidence of its own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from reports.contrasts import contrasts
from reports.findings import reading
from reports.lineage import dependence, dependent, origin, rescue, rescues
from reports.markdown import render
from reports.study import EventView, OriginView, RunView, StudyView, VerdictView
from runner.store.database import reading as database
from runner.store.study_view import build_study_view
from runner.study_tables import COLUMNS, rows_of
from tests.fakes.acting import Acting
from tests.fakes.studies import quickstart, rescued_study
from tests.test_runner_rescue import sick

made = cache(rescued_study)
CHANGED = "with trainer.optimizer.lr = 0.001"


def report_of(study: StudyView) -> str:
    return render(study)["report.md"].replace("\\", "")


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def run_of(study: StudyView, arm: str) -> RunView:
    return next(run for run in study.runs if run.arm == arm)


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_both_runs_name_each_other_with_step_and_changes() -> None:
    study = made()
    parent, child = run_of(study, "B"), run_of(study, "B-rescue1")
    assert origin(child) == f"goes on from step 300 of B-s0 ({parent.run}) {CHANGED}"
    assert rescue(study, parent) == f"goes on as B-rescue1-s0 ({child.run}) from step 300"
    assert dependence(child) == "its first 300 steps are those of B-s0, no independent evidence"
    assert (origin(parent), rescue(study, child), dependence(parent)) == ("", "", "")
    assert dependent(study) == ["B-rescue1-s0 (300 steps of B-s0)"]


def test_the_table_of_runs_and_the_list_of_early_ends_show_it() -> None:
    study = made()
    text = report_of(study)
    rows = {row.split(" | ")[0].lstrip("| "): row for row in section(text, "Runs").splitlines()}
    assert origin(run_of(study, "B-rescue1")) in rows["B-rescue1-s0"]
    assert rescue(study, run_of(study, "B")) in rows["B-s0"]
    assert rescue(study, run_of(study, "B")) in section(text, "Ended early, failed or superseded")


def test_the_verdicts_show_what_became_of_the_run() -> None:
    study = made()
    found = section(report_of(study), "Verdicts")
    (sentence,) = rescues(study)
    assert sentence.startswith("B-rescue1-s0 (")
    assert sentence.endswith(f"{CHANGED}. That run is aborted(regress) at step 600.")
    assert f"- {sentence}\n\n| run |" in found
    assert "| rescue, as B-rescue1-s0 |" in found


def test_a_rescue_that_did_not_come_is_not_announced() -> None:
    study = made()
    alone = replace(study, runs=tuple(run for run in study.runs if run.arm != "B-rescue1"))
    found = section(report_of(alone), "Verdicts")
    assert "| rescue |" in found
    assert "rescue1" not in found


def test_an_overruled_rescue_is_told_as_an_overruled_abort_is() -> None:
    study = made()
    parent = replace(run_of(study, "B"), overridden=("regress",))
    later = VerdictView("regress", "warn", 700, "still up", attempt=2)
    parent = replace(parent, verdicts=(*parent.verdicts, later))
    text = section(report_of(replace(study, runs=(study.runs[0], parent))), "Verdicts")
    assert "| rescue, overruled by a person |" in text
    assert "| warn only: the rule was off |" in text


def test_a_parent_outside_the_study_is_named_all_the_same() -> None:
    study = made()
    child = run_of(study, "B-rescue1")
    (sentence,) = rescues(replace(study, runs=(study.runs[0], child)))
    assert sentence == f"B-rescue1-s0 ({child.run}) {origin(child)}."


def test_changes_that_somebody_wrote_are_text_and_nothing_else() -> None:
    study = made()
    hostile = (("trainer.optimizer.lr", "<img src=x>|"), ("trainer.repa", {"enabled": False}))
    parent = OriginView("ab12cd34", "B-s0", 300, hostile)
    runs = tuple(replace(run, parent=parent) if run.parent is not None else run for run in study.runs)
    text = render(replace(study, runs=runs))["report.md"]
    assert "<img" not in text
    assert "&lt;img src=x&gt;\\|" in text
    assert 'trainer.repa = {"enabled": false}' in text
    bare = replace(parent, changes=())
    assert origin(replace(runs[0], parent=bare)).endswith("of B-s0 (ab12cd34) with nothing changed")


def test_what_happened_holds_the_rescue() -> None:
    study = made()
    event = EventView(1_790_000_100.0, "rescue", "goes on as B-rescue1", 300, 7)
    parent = replace(run_of(study, "B"), events=(event,))
    runs = tuple(parent if run.run == parent.run else run for run in study.runs)
    assert "rescue at step 300: goes on as B-rescue1" in section(report_of(replace(study, runs=runs)), "What happened")


# ---- what it is worth ------------------------------------------------------------------------------------------------


def test_it_is_an_arm_of_its_own_labelled_as_dependent() -> None:
    study = made()
    found = {one.arm: one for one in contrasts(study)}
    assert list(found) == ["B", "B-rescue1", "C", "D"]
    mine = found["B-rescue1"]
    assert (mine.baseline, mine.paired_seeds, mine.word) == ("A", 1, "screening")
    assert mine.delta == pytest.approx(-0.0105, abs=0.01)
    assert mine.notes == ("of B-rescue1-s0: its first 300 steps are those of B-s0, no independent evidence",)
    assert not any("no independent evidence" in note for arm in ("B", "C", "D") for note in found[arm].notes)
    untouched = {one.arm: one for one in contrasts(quickstart())}
    assert all(found[arm].delta == untouched[arm].delta for arm in untouched)
    assert "Rescued runs share their first steps" in section(report_of(study), "What cannot be said")
    assert "Rescued runs" not in report_of(quickstart())


def test_a_rescued_baseline_is_read_against_what_it_comes_from_and_moves_no_seed_floor() -> None:
    study = rescued_study("A")
    found = {one.arm: one for one in contrasts(study)}
    untouched = {one.arm: one for one in contrasts(quickstart())}
    assert found["A-rescue1"].baseline == "A"
    assert "its first 300 steps are those of A-s0" in found["A-rescue1"].notes[0]
    assert {arm: found[arm].seed_floor for arm in untouched} == {a: untouched[a].seed_floor for a in untouched}


def test_of_two_that_stopped_nothing_is_concluded() -> None:
    study = rescued_study(stop=500)
    mine = next(one for one in contrasts(study) if one.arm == "B-rescue1")
    assert reading(mine).startswith("no result (B-rescue1-s0 aborted)")


def test_the_data_file_holds_parent_and_step() -> None:
    study = made()
    rows = {row["arm"]: row for row in csv.DictReader(io.StringIO(render(study)["data/runs.csv"]))}
    assert (rows["B-rescue1"]["parent"], rows["B-rescue1"]["parent_step"]) == (run_of(study, "B").run, "300")
    assert {(rows[arm]["parent"], rows[arm]["parent_step"]) for arm in "ABCD"} == {("", "")}
    assert rows["A"]["code_hash"] == "9d2c51aa"


# ---- from the database -----------------------------------------------------------------------------------------------


@pytest.fixture
def acting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Acting]:
    found = Acting(tmp_path, monkeypatch)
    yield found
    found.clean_up()


def test_the_stored_rescue_becomes_a_view_and_a_row(acting: Acting) -> None:
    sick(acting)
    acting.rounds(lambda: acting.run("T-rescue1-s0")["step"] > 32)
    for name in ("T-s0", "T-rescue1-s0"):
        validation = acting.folder(name) / "validation" / "step_000030"
        validation.mkdir(parents=True, exist_ok=True)
        (validation / "meta.json").write_text(json.dumps({"train_ids_overlap": 3, "eval_set": "5e1f00aa"}))
        (validation / "scores.csv").write_text("")
    with database(acting.home) as connection:
        study = build_study_view(connection, acting.home, "lab")
        rows = [dict(zip(COLUMNS["runs"], row, strict=True)) for row in rows_of(connection, "lab", "runs")]
    parent, child = study.runs
    assert (parent.arm, parent.parent) == ("T", None)
    changes = (("trainer.optimizer.name", "muon"), ("trainer.optimizer.lr", 3e-4))
    assert child.parent == OriginView(parent.run, "T-s0", 30, changes)
    assert (child.arm, child.baseline) == ("T-rescue1", "T")
    (remark,) = [remark for remark in study.lint if remark.rule == "F05"]
    assert "rescue1" not in remark.message
    assert [(row["arm"], row["parent"], row["parent_step"]) for row in rows] == [
        ("T", None, None),
        ("T-rescue1", parent.run, 30),
    ]
    assert f"goes on from step 30 of T-s0 ({parent.run})" in report_of(study)
