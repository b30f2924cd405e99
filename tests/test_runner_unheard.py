"""What a run that ended well did not say is told; a mistyped name is no success."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.records import Primary
from runner.unheard import nearest_first, unheard
from tests.fakes.arms import command_arm
from tests.fakes.lab import Lab

JSONL = {"source": "jsonl", "path": "metric.jsonl"}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path, draws_reports=False)
    yield found
    found.clean_up()


def test_a_mistyped_path_is_told_with_what_is_there_instead() -> None:
    said = unheard(command_arm(metrics=JSONL), (), ["attempt-1", "config.yaml", "metrics.jsonl", "samples"])
    assert said == (
        "it ended well, and no metric was read: there is no metric.jsonl (metrics.path); "
        "its folder holds metrics.jsonl, samples"
    )
    empty = unheard(command_arm(metrics=JSONL), (), ["attempt-1", "config.yaml"])
    assert empty is not None
    assert empty.endswith("it wrote no file into its folder")


def test_a_file_without_records_and_a_pattern_without_a_match_are_told_apart() -> None:
    unreadable = unheard(command_arm(metrics=JSONL), (), ["metric.jsonl"])
    assert unreadable is not None
    assert "metric.jsonl is there, and nothing in it is a jsonl record" in unreadable
    unmatched = unheard(command_arm(metrics={"source": "regex", "pattern": "(?P<step>x)"}), (), [])
    assert unmatched is not None
    assert "no line of its output matches metrics.pattern" in unmatched


def test_a_primary_that_never_came_is_told_with_the_nearest_names_first() -> None:
    arm = command_arm(primary=Primary("val/accuracy", "max"))
    assert unheard(arm, {"loss", "val/acc"}, ()) == (
        "its primary val/accuracy was never reported; reported: val/acc, loss"
    )
    assert unheard(arm, {"loss", "val/accuracy"}, ()) is None
    assert unheard(command_arm(), {"loss"}, ()) is None
    assert nearest_first("loss", ["zeta", "alpha"]) == ["alpha", "zeta"]


def test_a_silent_script_is_finished_and_nobody_takes_that_for_a_success(lab: Lab) -> None:
    lab.run("launch", lab.arm("mute", "print('hello')"), lab.arm("good"))
    runs = lab.status()
    mute, good = runs["mute-s0"], runs["good-s0"]
    assert (mute["state"], mute["health"]) == ("finished", "warned")
    assert mute["reason"] == "exit code 0, and no metric of it was ever read"
    assert any("no line of its output matches" in warning for warning in mute["warnings"])
    assert (good["state"], good["health"], good["warnings"]) == ("finished", "ok", [])
    text = lab.run("status").stdout
    assert "no metric of it was ever read" in text
