"""The text of a report: the same bytes every time, complete, sober, and deaf to hostile strings."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from reports.figure_plan import figure_plan
from reports.markdown import render
from reports.study import StudyView
from tests.fakes.studies import (
    HOSTILE,
    PRIMARY,
    command_study,
    degenerate_studies,
    hostile_study,
    quickstart,
    seeded_study,
    with_curve,
)

ROOT = Path(__file__).parents[1]
PARSER = MarkdownIt("commonmark").enable("table")
FILES = {
    "report.md", "data/points.csv", "data/scores.csv", "data/runs.csv", "data/contrasts.csv", "data/streams.csv",
    "data/provenance.csv",
    "data/text_manipulation.csv",
}  # fmt: skip


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_same_view_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib\nfrom reports.markdown import render\nfrom tests.fakes.studies import quickstart\n"
        "print(hashlib.sha256(repr(sorted(render(quickstart()).items())).encode()).hexdigest())"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={**environment, "PYTHONHASHSEED": seed}, cwd="/", check=True,
            capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(digests) == 1
    assert render(quickstart()) == render(quickstart())


def test_the_folder_of_the_images_is_not_in_the_text(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = render(quickstart(tmp_path / "a")), render(quickstart(tmp_path / "b"))
    assert first == second
    assert not any(str(tmp_path) in text for text in first.values())


def test_all_files_are_there_and_points_have_the_public_columns() -> None:
    study = quickstart()
    files = render(study)
    assert set(files) == FILES
    assert files["data/points.csv"].startswith("run,attempt,name,step,value,time\n")
    assert files["data/scores.csv"].startswith(
        "run,step,weights,sampler,metric,sample_id,eval_seed,value,valid,reason\n"
    )
    points = rows(files["data/points.csv"])
    assert len(points) == sum(run.points for run in study.runs)
    curve = study.runs[3].curves[PRIMARY.metric]
    mine = [p for p in points if p["run"] == study.runs[3].run and p["name"] == PRIMARY.metric]
    assert [float(p["value"]) for p in mine] == list(curve.values)
    assert [float(p["time"]) for p in mine] == list(curve.times)


def test_values_that_are_not_finite_keep_their_names_in_the_data() -> None:
    study = quickstart()
    values = {0: math.nan, 100: math.inf, 200: -math.inf}
    runs = (with_curve(study.runs[0], PRIMARY.metric, values), *study.runs[1:])
    points = rows(render(replace(study, runs=runs))["data/points.csv"])
    mine = [p["value"] for p in points if p["run"] == study.runs[0].run and p["name"] == PRIMARY.metric]
    assert mine == ["nan", "inf", "-inf"]


def test_the_headline_is_sober() -> None:
    report = render(quickstart())["report.md"]
    head = report.partition("## Runs")[0]
    assert "C against A: val/recon_rmse -0.049 (lower is better); seed floor 0.0121; 1 paired seed. Screening" in head
    assert "Within seed spread." in head
    assert "an abort is not a score" in head
    assert "significant" not in report
    assert "which method is better" in head
    # The word is only used for the direction of a metric, and to say what a screening does not show.
    assert set(re.findall(r"\w+ is better", report)) == {"lower is better", "method is better"}


def test_final_and_best_stand_side_by_side_and_the_aborted_run_is_not_hidden() -> None:
    report = render(quickstart())["report.md"]
    assert "| 0.3368 (step 600) | 0.2346 (step 400) |" in report
    assert report.count("aborted(regress) at step 600: val/recon_rmse rose") >= 2
    assert "portrait-quickstart/D-s0-0a1b2c3d: superseded by a newer generation" in report


def test_what_a_sceptic_asks_for_is_in_the_report() -> None:
    report = render(quickstart())["report.md"]
    for text in (
        '| trainer.optimizer.name | "adamw" | "muon" | yes |',
        "backbone random (seed 0)",
        "say nothing about DINO",
        "lr shared, not swept",
        "stream not used",
        "moves the image more than a paraphrase",
        "this checkpoint pair, these 48 samples",
        "Runs of one seed that did not overlap in time: A-s0 and D-s0",
        "F08 (W): muon vs adamw at one lr, neither swept (allowed, because: the quickstart sweeps nothing)",
        "| commit | 4f1c2d3e | all |",
        "runner report portrait-quickstart",
    ):
        assert text in report


def test_an_undeclared_difference_and_a_change_without_effect_are_told() -> None:
    study = quickstart()
    odd = replace(
        study.runs[3],
        config={**study.runs[3].config, "trainer.optimizer.lr": 9.0},
        changes=(*study.runs[3].changes, ("trainer.repa.enabled", False)),
    )
    report = render(replace(study, runs=(*study.runs[:3], odd, *study.runs[4:])))["report.md"]
    assert "| trainer.optimizer.lr | 0.002 | 9.0 | no |" in report
    assert "Declared without effect on the resolved configuration: trainer.repa.enabled." in report


def test_the_text_shows_the_packages_that_matter_or_differ() -> None:
    study = quickstart()
    many = {"torch": "2.13.0", **{f"package-{index}": "1.0" for index in range(40)}}
    runs = [replace(run, provenance={**run.provenance, "packages": many}) for run in study.runs]
    runs[0] = replace(runs[0], provenance={**runs[0].provenance, "packages": {**many, "package-7": "2.0"}})
    files = render(replace(study, runs=tuple(runs)))
    assert "| packages: torch | 2.13.0 | all |" in files["report.md"]
    assert "| packages: package-7 | 2.0 | A-s0 |" in files["report.md"]
    assert "package-8" not in files["report.md"]
    assert "39 more in data/provenance.csv" in files["report.md"]
    assert len(rows(files["data/provenance.csv"])) > 45


def test_several_seeds_bring_p_values_and_the_word() -> None:
    report = render(seeded_study(6, -0.03))["report.md"]
    assert "supported: lower, beyond seed spread | 0.0312 | 0.0312 |" in report
    assert "6 seeds, then samples" in report
    assert "is a screening" not in report


def test_hostile_strings_become_text() -> None:
    study = hostile_study()
    report = render(study)["report.md"]
    html = PARSER.render(report)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", report)
    assert set(re.findall(r"<(/?\w+)", html)) <= {
        f"{slash}{tag}" for slash in ("", "/") for tag in
        ("h1", "h2", "h3", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "img", "em", "code", "pre")
    }  # fmt: skip
    assert set(re.findall(r'src="([^"]*)"', html)) == {f.name for f in figure_plan(study) if not f.why_not}
    assert set(re.findall(r"<h1>(.*?)</h1>", html)) == {PARSER.renderInline(render_name(report))}
    tables = re.findall(r"(?:^\|.*\n)+", report, re.M)
    for block in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "runner report STUDY\n" in report


def render_name(report: str) -> str:
    return report.splitlines()[0].removeprefix("# ")


def test_hostile_strings_survive_in_the_data() -> None:
    found = rows(render(hostile_study())["data/runs.csv"])
    assert found[0]["reason"] == HOSTILE


@pytest.mark.parametrize("name", sorted(degenerate_studies()))
def test_a_study_that_lacks_something_still_has_a_report(name: str) -> None:
    study = degenerate_studies()[name]
    files = render(study)
    report = files["report.md"]
    assert set(files) == FILES
    assert "None" not in report.replace("- None.", "")
    left_out = report.partition("Left out, because no run reported anything for it: ")[2]
    sections = {"figures/protocols.png": "Native beside common", "figures/samples.png": "Samples"}
    for planned in figure_plan(study):
        assert (f"]({planned.name})" in report) == (not planned.why_not)
        is_left_out = planned.name in sections and sections[planned.name] in left_out
        told = f"{planned.question}): {planned.why_not}" in report.replace("\\", "")
        assert told == (bool(planned.why_not) and not is_left_out)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no runs", "No run has reported val/recon_rmse yet: nothing can be compared."),
        ("command arms", "The study declares no primary metric, so its arms are not ranked"),
        ("queued", "No run has reported val/recon_rmse yet"),
        ("all failed", "failed at step 0: config: no such key"),
        ("one run", "No arm names a baseline"),
        ("running", "A-s0, A-s1, B-s0, C-s0 and D-s0 are not done: these numbers will change."),
        ("no seed pair", "Without a second seed of A no seed floor is known"),
        ("ends in nan", "the last value of C-s0 is nan"),
        ("primary never reported", "The study selects each run by its own best value, which flatters noisy curves"),
    ],
)
def test_what_is_missing_is_said(name: str, told: str) -> None:
    assert told in render(degenerate_studies()[name])["report.md"]


def test_a_command_study_names_what_differs() -> None:
    study: StudyView = command_study()
    report = render(study)["report.md"]
    assert "its baseline slow" not in report
    assert "| command |" in report
