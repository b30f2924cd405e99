"""Autopsies in the report: what was found stands there soberly, and a file of another shape breaks nothing."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from reports.autopsy import UNREADABLE, autopsies
from reports.markdown import render
from reports.study import StudyView
from runner.store.study_view import _autopsy as read_autopsy
from tests.fakes.studies import HOSTILE, autopsied_study, made_autopsy, quickstart

PARSER = MarkdownIt("commonmark").enable("table")


def section(study: StudyView) -> str:
    """The part of the report about autopsies."""
    return render(study)["report.md"].partition("## Autopsies\n")[2].partition("\n## ")[0]


def holding(content: Any) -> StudyView:
    study = quickstart()
    return replace(study, runs=(replace(study.runs[0], autopsy=content), *study.runs[1:]))


def test_without_an_autopsy_there_is_no_section() -> None:
    files = render(quickstart())
    assert "Autops" not in files["report.md"]
    assert "data/autopsy.csv" not in files


def test_the_section_stands_under_the_verdicts_and_says_what_was_found() -> None:
    report = render(autopsied_study())["report.md"]
    assert report.index("## Verdicts") < report.index("## Autopsies") < report.index("## Fairness")
    found = section(autopsied_study())
    for text in (
        "### B-s0: steps 400 and 600, this checkpoint pair, these 48 samples",
        "To blame: guidance.",
        "| guidance | +0.029 | +0.025 to +0.033 | blamed |",
        "| routing (apart from the sum) | +0 | -0.004 to +0.004 | not blamed |",
        "| sum | +0.031 | +0.027 to +0.035 |",
        "| ema | guided | 0.231 | 0.262 | +0.031 | +0.027 to +0.035 |",
        "| 3 | 0.235 | 0.267 | +0.03 |",
        "self_guidance (scale 3)",
        "not what a method does",
    ):
        assert text in found, text
    assert "is better);" in found
    assert "significant" not in found


def test_a_share_that_is_spared_says_why() -> None:
    shares = made_autopsy()["shares"]
    shares[1] = {**shares[1], "above_limit": True}
    assert "not blamed: an advantage that shrank" in section(autopsied_study(shares=shares))


def test_what_could_not_be_had_is_told() -> None:
    cells = [{**one, "best": None, "stop": None, "delta": None} for one in made_autopsy()["cells"]]
    missing = [{"what": "routed", "why": "this run trains without routing"}]
    found = section(autopsied_study(cells=cells, not_available=missing, notes=["step 40 stands in"]))
    assert "| raw | routed | n/a | n/a | n/a | n/a |" in found
    assert "- n/a: routed: this run trains without routing" in found
    assert "- step 40 stands in" in found


def test_an_autopsy_that_compared_nothing_is_one_paragraph() -> None:
    nothing = {"cells": [], "shares": [], "total": None, "w_sweep": [], "blamed": [], "threshold": None}
    found = section(autopsied_study(**nothing, conclusion="Nothing could be compared."))
    assert "Nothing could be compared." in found
    assert "|" not in found
    assert "data/autopsy.csv" not in render(autopsied_study(**nothing))


def test_the_numbers_are_in_a_data_file() -> None:
    files = render(autopsied_study())
    rows = list(csv.DictReader(io.StringIO(files["data/autopsy.csv"])))
    assert [row["part"] for row in rows] == ["cell"] * 9 + ["w"] * 2 + ["share"] * 4 + ["sum"]
    guidance = next(row for row in rows if row["cause"] == "guidance")
    assert (guidance["blamed"], float(guidance["delta"])) == ("1", 0.029)
    assert (rows[0]["best_step"], rows[0]["stop_step"], rows[0]["metric"]) == ("400", "600", "recon_rmse")
    assert "data/autopsy.csv" in files["report.md"]


def test_a_long_conclusion_is_not_cut_and_a_hostile_one_is_text() -> None:
    assert "all of it" in section(autopsied_study(conclusion="word " * 300 + "all of it"))
    html = PARSER.render(section(autopsied_study(conclusion=HOSTILE, eval_set=HOSTILE, notes=[HOSTILE])))
    assert "<script" not in html
    assert "<img" not in html
    assert "<h1>" not in html


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"steps": 3},
        made_autopsy(steps={"best": "x", "stop": 600}),
        made_autopsy(steps={"best": 400}),
        made_autopsy(cells=[1]),
        made_autopsy(cells={"a": 1}),
        made_autopsy(shares=[{}]),
        made_autopsy(total={"mean": "high"}),
        made_autopsy(conclusion=None),
        made_autopsy(notes=[["deep"]]),
        made_autopsy(averages=[]),
        made_autopsy(threshold=True),
        made_autopsy(seconds=10**400),
    ],
)
def test_another_shape_is_said_and_breaks_nothing(content: dict[str, Any]) -> None:
    assert UNREADABLE in render(holding(content))["report.md"]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_value_in_any_place_makes_a_section(data: st.DataObject) -> None:
    anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
    content = made_autopsy()
    key = data.draw(st.sampled_from(sorted(content)))
    content[key] = data.draw(anything | st.lists(anything, max_size=2))
    (found,) = autopsies(holding(content))
    assert found.title


def test_the_file_of_the_run_folder_is_read(tmp_path: Path) -> None:
    assert read_autopsy(tmp_path) is None
    (tmp_path / "autopsy").mkdir()
    path = tmp_path / "autopsy" / "autopsy.json"
    path.write_text(json.dumps(made_autopsy()))
    assert read_autopsy(tmp_path) == made_autopsy()
    for broken in ("{", "[]", "3", ""):
        path.write_text(broken)
        assert read_autopsy(tmp_path) == {}
    path.write_bytes(b"\xff\xfe{")
    assert read_autopsy(tmp_path) == {}
