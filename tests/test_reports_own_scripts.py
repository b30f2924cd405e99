"""The report of a study of somebody's own scripts: what was overruled, what was never read, what is no result."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.completeness import is_a_little_short, is_short
from reports.contrasts import contrasts
from reports.findings import ending, headline, reading, short_ending, short_findings, short_reading
from reports.happenings import MOST_TOLD, happenings
from reports.markdown import render
from reports.reproduction import MOST_FILES, relaunch
from reports.study import EventView, PrimaryView, RunView, StudyView, VerdictView
from runner.home import Home
from runner.records import Finding, Health, RunState, Severity, Verdict
from runner.store import changes
from runner.store.database import reading as reading_of
from runner.store.outbox import BY_THE_TRAINER
from runner.store.study_view import build_study_view
from runner.study_tables import COLUMNS, rows_of
from tests.fakes.arms import command_arm
from tests.fakes.stored_study import StoredStudy
from tests.fakes.studies import EPOCH, HOSTILE, PRIMARY, command_study, quickstart, with_curve, without_points

Spoken = tuple[str, str]
"""What an event is called, and its reason."""


def section(report: str, title: str) -> str:
    """The text of one section."""
    return report.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def text(*runs: RunView, primary: PrimaryView | None = None) -> str:
    return render(StudyView("toy", primary, {}, runs))["report.md"].replace("\\", "")


@pytest.fixture
def script() -> RunView:
    """A run of a script that did all its 40 steps, without anything that only our trainer reports."""
    run = replace(command_study().runs[0], arm="nan", baseline=None, steps_total=40, step=40, events=(), points=40)
    return replace(with_curve(run, "loss", {step: 1.0 / step for step in range(1, 41)}), provenance={})


def history(run: RunView, *spoken: Spoken) -> RunView:
    return replace(
        run, events=tuple(EventView(EPOCH + n, what, reason, number=n) for n, (what, reason) in enumerate(spoken))
    )


def overruled(run: RunView) -> RunView:
    verdicts = (
        VerdictView("non_finite", "abort", 12, "loss is nan at step 12", attempt=1),
        VerdictView("non_finite", "warn", 12, "loss is nan at step 12", attempt=2),
        VerdictView("explosion", "warn", 15, "it rose", attempt=2),
    )
    return replace(run, overridden=("non_finite",), verdicts=verdicts)


def test_an_overruled_verdict_is_told_wherever_the_run_stands(script: RunView) -> None:
    report = text(overruled(script))
    told = "nan-s0: a person overrode non_finite; the rule was off for its later attempts"
    assert f"- {told}." in section(report, "Labels")
    assert "| finished; a person overrode non_finite; the rule was off" in section(report, "Runs")
    verdicts = section(report, "Verdicts")
    assert "Overruled by a person, and off for the later attempts of the run: nan-s0: non_finite." in verdicts
    assert "| nan-s0 | 1 | 12 | non_finite | abort, overruled by a person |" in verdicts
    assert "| nan-s0 | 2 | 12 | non_finite | warn only: the rule was off |" in verdicts
    assert "| nan-s0 | 2 | 15 | explosion | warn |" in verdicts
    twice = text(replace(script, overridden=("explosion", "non_finite")))
    assert "a person overrode explosion and non_finite; the 2 rules were off" in twice
    assert "overr" not in text(script).lower()


def test_a_conclusion_that_stood_while_probes_came_and_went_is_one_row(script: RunView) -> None:
    def warned(step: int, attempt: int = 1, reason: str = "it rose") -> VerdictView:
        return VerdictView("regress", "warn", step, reason, {"z": 3.0}, attempt)

    stood = (warned(10), warned(10), warned(14), warned(20, attempt=2), warned(20, attempt=2, reason="more"))
    found = section(text(replace(script, verdicts=stood)), "Verdicts")
    assert [row.split(" | ")[1:3] for row in found.splitlines() if "| regress |" in row] == [
        ["1", "10"],
        ["2", "20"],
        ["2", "20"],
    ]


def test_an_overruled_run_stays_in_the_comparison_and_ends_by_what_ended_it() -> None:
    study = quickstart()
    runs = tuple(replace(run, overridden=("regress",)) if run.arm == "C" else run for run in study.runs)
    found = {one.arm: one for one in contrasts(replace(study, runs=runs))}
    assert found["C"].delta == {one.arm: one for one in contrasts(study)}["C"].delta
    assert found["C"].notes == ("of C-s0: a person overrode regress; the rule was off for its later attempts",)
    crashed = replace(study.runs[2], state="failed(exit 1)", reason="", overridden=("regress",))
    assert (short_ending(crashed), ending(crashed)) == ("failed at 600 (exit 1)", "failed(exit 1) at step 600")


@pytest.mark.parametrize(
    ("state", "reason", "told"),
    [
        ("failed(exit 1)", "exit code 1 at step 11: ValueError", "failed(exit 1) at step 11: ValueError"),
        ("failed(exit 1)", "exit code 1 at step 11", "failed(exit 1) at step 11"),
        ("failed(exit 1)", "exit code 12 at step 11: x", "failed(exit 1) at step 11: exit code 12: x"),
        ("failed(data)", "exit code 65 at step 11: no file", "failed(data) at step 11: exit code 65: no file"),
        ("failed(killed)", "killed by SIGKILL at step 11: why", "failed(killed) at step 11: killed by SIGKILL: why"),
        ("failed(data)", "exit code 65 at step 110: why", "failed(data) at step 11: exit code 65 at step 110: why"),
        ("aborted(non_finite)", "loss is nan at step 11", "aborted(non_finite) at step 11: loss is nan"),
        ("aborted(non_finite)", "loss is nan at step 9", "aborted(non_finite) at step 11: loss is nan at step 9"),
        ("finished", "all 11 steps done", "finished"),
    ],
)  # fmt: skip
def test_an_ending_says_its_step_and_its_exit_code_once(script: RunView, state: str, reason: str, told: str) -> None:
    assert ending(replace(script, state=state, reason=reason, step=11)) == told


def test_an_arm_that_ended_half_way_is_no_result() -> None:
    study = quickstart()
    runs = tuple(replace(r, state="failed(exit 1)", reason="ValueError") if r.arm == "B" else r for r in study.runs)
    failed = replace(study, runs=runs)
    found = {one.arm: one for one in contrasts(failed)}
    assert reading(found["B"]) == "no result (B-s0 failed): higher so far"
    assert reading(found["C"]) == "screening: lower, beyond seed spread"
    assert short_reading(found["B"]).endswith("at step 600 (no result)")
    assert "Evidence: screening (1 paired seed)." in short_findings(tuple(found.values()))
    assert "Evidence" not in short_findings([found["B"]])
    report = render(failed)["report.md"]
    first = next(line for line in section(report, "What can be said").splitlines() if line.startswith("- B against A"))
    assert "No result (B-s0 failed): higher so far. Read at step 600, the last in common: B-s0 is failed" in first
    assert "Screening" not in first
    limits = section(report, "What cannot be said")
    assert "B-s0 ended early: read at the last common step where there is one, and no result" in limits
    assert "With fewer than 3 paired seeds (C and D)" in limits


def test_a_baseline_that_failed_makes_every_arm_no_result() -> None:
    study = quickstart()
    runs = tuple(replace(run, state="failed(exit 1)") if (run.arm, run.seed) == ("A", 0) else run for run in study.runs)
    told = [reading(one) for one in contrasts(replace(study, runs=runs))]
    assert len(told) == 3
    assert all(one.startswith("no result (") and "A-s0 failed" in one for one in told)


def test_a_run_that_finished_without_a_metric_is_labelled(script: RunView) -> None:
    silent = replace(without_points(script, "finished"), arm="mute")
    report = text(silent, script)
    assert "- mute-s0: finished, but no metric of it was ever read." in section(report, "Labels")
    assert "| finished; no metric of it was ever read |" in section(report, "Runs")
    assert "never read" not in text(script, without_points(script, "failed"), without_points(script, "running"))


@pytest.mark.parametrize(
    ("steps", "total", "short", "little"),
    [
        (range(1, 12), 40, True, False),
        (range(40), 40, False, True),
        (range(0, 40, 10), 40, False, True),
        (range(0, 30, 10), 40, True, False),
        ([5], 40, True, False),
        (range(1, 41), 40, False, False),
        (range(1, 90), 40, False, False),
        (range(1, 12), 0, False, False),
    ],
)
def test_steps_that_nobody_saw_are_labelled(
    script: RunView, steps: range, total: int, short: bool, little: bool
) -> None:
    run = replace(with_curve(script, "loss", dict.fromkeys(steps, 1.0)), step=max(steps), steps_total=total)
    assert (is_short(run), is_a_little_short(run)) == (short, little)
    labels = section(text(run), "Labels")
    assert (f"- nan-s0: finished, but the last step read is {max(steps)} of {total}." in labels) == short
    assert (f"at most: nan-s0 ({max(steps)} of {total})." in labels) == little
    stopped = replace(run, state="aborted(budget)")
    assert not is_short(stopped)
    assert not is_a_little_short(stopped)


def test_names_that_were_reported_instead_of_the_primary_nearest_first(script: RunView) -> None:
    named = with_curve(with_curve(script, "val/accuracy", {1: 0.5}), "val_acc", {1: 0.5})
    found = StudyView("toy", PrimaryView("val/acc", "max", "last"), {}, (named,))
    assert headline(found, ()) == [
        "No run has reported val/acc yet: nothing can be compared.",
        "Metrics that runs did report, the nearest name first: val_acc, val/accuracy, loss.",
    ]
    many = script
    for index in range(20):
        many = with_curve(many, f"metric_{index:02}_{'x' * 60}", {1: 0.5})
    told = headline(replace(found, runs=(many,)), ())[1]
    assert "and 13 more" in told
    assert len(told) < 400, "a report cuts longer strings"
    none = headline(replace(found, runs=(without_points(script, "running"),)), ())
    assert none[1:] == ["The runs have reported no metric at all."]


def test_sections_that_no_run_has_anything_for_are_left_out_and_named(script: RunView) -> None:
    report = text(script)
    titles = set(re.findall(r"^## (.*)$", report, re.M))
    gone = ["Native beside common, averaged beside raw", "Stream use", "Text manipulation", "Samples",
            "Throughput and memory"]  # fmt: skip
    assert f"Left out, because no run reported anything for it: {', '.join(gone)}." in report
    assert not titles & set(gone)
    assert "not reported" not in report
    assert "| parameters |" not in report
    assert "| nan-s0 | 1 | train |" in section(report, "When and where the runs ran")
    whole = render(quickstart())["report.md"]
    assert set(gone) - {"Samples"} <= set(re.findall(r"^## (.*)$", whole, re.M))
    assert "no run reported anything for it: Samples." in whole
    timed = text(with_curve(script, "sys/train_s", {40: 12.34567}))
    assert "| run | in training steps |\n| --- | --- |\n| nan-s0 | 12 s |" in section(timed, "Throughput and memory")


def test_what_happened_tells_what_was_not_ordinary(script: RunView) -> None:
    run = history(
        script,
        ("queued", "new"), ("placed", "attempt 1"), ("running", ""), ("verdict:abort", "loss is nan"),
        ("stopping(non_finite)", "loss is nan"), ("aborted(non_finite)", "loss is nan (no final evaluation)"),
        ("queued", "asked by a person"), ("running", ""), ("liveness:hung", "no record for 300 s"),
        ("liveness:hung", "over"), ("lost(silent)", "no sign of life"), ("running", "it reports again"),
        ("checkpoint", "a word of the trainer"), ("extended", "extended from 40 to 50 steps"),
        ("queued", "extended from 40 to 50 steps"), ("finished", "all 50 steps done"), ("report", "written"),
    )  # fmt: skip
    told = [line.split(": ", 1)[1] for line in happenings(StudyView("toy", None, {}, (run,))).lines]
    assert told == [
        "aborted(non_finite): loss is nan (no final evaluation)", "queued: asked by a person",
        "liveness:hung: no record for 300 s", "liveness:hung: over", "lost(silent): no sign of life",
        "running: it reports again", "queued: extended from 40 to 50 steps",
    ]  # fmt: skip
    section_told = section(text(run), "What happened")
    assert "- 2026-09-21 14:13:25, nan-s0: aborted(non_finite): loss is nan (no final evaluation)" in section_told
    assert "Every run has gone its ordinary way so far." in section(text(script), "What happened")


def test_what_a_trainer_calls_its_announcement_changes_no_history(script: RunView) -> None:
    run = history(script, ("queued", "new"), ("running", ""), ("finished", ""))
    forged = [EventView(EPOCH, what, "x", number=9, announced=True) for what in ("failed", "lost", "queued", "running")]
    mixed = replace(run, events=(run.events[0], *forged, *run.events[1:], *forged))
    assert happenings(StudyView("toy", None, {}, (mixed,))) == happenings(StudyView("toy", None, {}, (run,)))


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(allow_nan=True, allow_infinity=True)), max_size=90))
def test_the_newest_are_told_in_the_order_in_which_they_were_written(written: list[tuple[int, float]]) -> None:
    base = command_study().runs[0]
    runs = tuple(
        replace(
            base, run=f"r{seed}", seed=seed,
            events=tuple(EventView(t, "warning", f"no {n}", number=n) for n, (s, t) in enumerate(written) if s == seed),
        )
        for seed in range(4)
    )  # fmt: skip
    found = happenings(StudyView("toy", None, {}, runs))
    assert [int(line.rpartition(" ")[2]) for line in found.lines] == list(range(len(written)))[-MOST_TOLD:]
    assert found.left_out == max(0, len(written) - MOST_TOLD)


def test_earlier_happenings_are_counted(script: RunView) -> None:
    report = text(history(script, *[("warning", f"no {n}") for n in range(MOST_TOLD + 2)]))
    assert "2 earlier ones are not shown." in report
    assert report.count(": warning: no") == MOST_TOLD


def named(run: RunView, *files: str) -> StudyView:
    runs = tuple(replace(run, run=file, provenance={"arm_files": [file, "/base.yaml"]}) for file in files)
    return StudyView("toy", None, {}, runs)


def test_how_to_reproduce_names_the_arm_files(script: RunView) -> None:
    assert "\nrunner launch /a/one.yaml\nrunner report toy\n" in render(named(script, "/a/one.yaml"))["report.md"]
    several = render(named(script, "/a/one.yaml", "/my arms/two.yaml", "/a/one.yaml"))["report.md"]
    assert "\nrunner launch \\\n    /a/one.yaml \\\n    '/my arms/two.yaml'\nrunner report toy\n" in several
    assert "/base.yaml" not in section(several, "How to reproduce")
    many = render(named(script, *(f"/a/{n}.yaml" for n in range(MOST_FILES + 1))))["report.md"]
    assert "The 13 arm files stand in data/provenance.csv under arm_files." in many.replace("\\", "")
    assert "runner launch ARM.yaml ..." in many
    assert "No run says which arm file it came from." in text(script)


@given(st.lists(st.text(min_size=1, max_size=30) | st.just(HOSTILE), min_size=1, max_size=4))
def test_no_name_of_a_file_leaves_the_code_block(files: list[str]) -> None:
    found = relaunch(named(command_study().runs[0], *files))
    lines = found.command.splitlines()
    assert not [line for line in lines if line.lstrip().startswith("```")]
    assert all(character.isprintable() for line in lines for character in line)
    if "ARM.yaml" not in found.command:
        assert shlex.split(found.command.replace(" \\\n", " ")) == ["runner", "launch", *dict.fromkeys(files)]


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredStudy]:
    found = StoredStudy(Home(tmp_path / "runs"))
    yield found
    found.close()


def test_the_view_holds_what_the_database_says(stored: StoredStudy) -> None:
    run = stored.run(command_arm(), overridden=["explosion"])
    finding = Finding("explosion", Severity.ABORT, 3, "it rose", {})
    verdict = Verdict(health=Health.DIVERGED, action="abort", rule="explosion", findings=(finding,))
    with stored.session.transaction() as connection:
        changes.add_verdict(connection, run, 2, verdict, 15.0)
        changes.add_event(connection, 16.0, "failed", BY_THE_TRAINER, study="trial", run=run, attempt=1, step=3)
        changes.add_event(connection, 17.0, "warning", "a nearly full disk", study="trial", run=run)
        changes.add_event(connection, 18.0, "amended", "keys were replaced", study="trial")
        changes.add_event(connection, 19.0, "amended", "of another study", study="elsewhere")
        changes.add_event(connection, 20.0, "report", "written to report.md", study="trial", data={"covers": 1})
    with reading_of(stored.home) as connection:
        view = build_study_view(connection, stored.home, "trial")
        again = build_study_view(connection, stored.home, "trial")
    (found,) = view.runs
    assert (found.overridden, found.verdicts[0].attempt) == (("explosion",), 2)
    assert [(event.what, event.announced) for event in found.events] == [("failed", True), ("warning", False)]
    assert happenings(view).lines == (
        "1970-01-01 00:00:17, A-s0: warning: a nearly full disk",
        "1970-01-01 00:00:18, the study: amended: keys were replaced",
    )
    assert render(view) == render(again)


def test_the_evidence_of_a_verdict_is_that_of_the_finding_which_decided(stored: StoredStudy) -> None:
    run = stored.run(command_arm())
    warning = Finding("regress", Severity.WARN, 3, "a little worse", {"z": 3.0})
    stop = Finding("regress", Severity.ABORT, 5, "much worse", {"z": 9.0})
    with stored.session.transaction() as connection:
        for findings, action in (((warning,), "warn"), ((warning, stop), "abort")):
            verdict = Verdict(Health.WARNED, action, "regress", findings[-1].summary, findings=findings)
            changes.add_verdict(connection, run, 1, verdict, 15.0)
    with reading_of(stored.home) as connection:
        (found,) = build_study_view(connection, stored.home, "trial").runs
    assert [(one.action, one.evidence["z"]) for one in found.verdicts] == [("warn", 3.0), ("abort", 9.0)]


def test_the_export_names_the_overruled_rules(stored: StoredStudy) -> None:
    stored.run(command_arm(), overridden=["explosion"])
    stored.run(command_arm(arm="B"))
    with reading_of(stored.home) as connection:
        rows = [dict(zip(COLUMNS["runs"], row, strict=True)) for row in rows_of(connection, "trial", "runs")]
    assert [row["overridden"] for row in rows] == ['["explosion"]', None]


def test_time_that_no_script_reports_is_not_called_contended(script: RunView) -> None:
    runs = (replace(script, run="a", arm="a"), replace(script, run="b", arm="b", baseline="a"))
    report = text(*runs, primary=PrimaryView("loss", "min", "last"))
    assert "training time not reported" in section(report, "Contrasts of the primary")
    assert "contended" not in report


def test_a_retry_is_told_and_the_ordinary_course_is_not(stored: StoredStudy) -> None:
    run = stored.run(command_arm(), state=RunState.QUEUED)
    course = [RunState.PLACED, RunState.STAGING, RunState.STARTING, RunState.RUNNING]
    with stored.session.transaction() as connection:
        changes.add_event(connection, 1.0, "queued", "new", study="trial", run=run)
        for round_, state in enumerate([*course, RunState.FAILED, RunState.QUEUED, *course, RunState.FINISHED]):
            rule = "killed" if state is RunState.FAILED else ""
            changes.move_run(connection, run, state, f"because {round_}", 2.0 + round_, rule=rule)
    with reading_of(stored.home) as connection:
        told = happenings(build_study_view(connection, stored.home, "trial")).lines
    assert [line.split(": ", 1)[1] for line in told] == ["failed(killed): because 4", "queued: because 5"]


def test_the_page_says_where_events_are_told() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "unattended.md").read_text()
    assert f"the newest {MOST_TOLD} changes" in " ".join(page.split())
    assert "\n## What happened\n" in render(replace(quickstart(), primary=PRIMARY))["report.md"]
