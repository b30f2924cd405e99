"""The first arm files: they work as they are written, and nothing is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.errors import HomeError, UsageError
from runner.home import Home
from runner.snapshot import preview
from runner.spec import read_study_arms
from runner.spec.lint import lint
from runner.starter import init
from tests.fakes.arms import everything_below


def test_what_is_written_is_a_study_of_two_arms(tmp_path: Path) -> None:
    folder = tmp_path / "My lab (2)"
    files = init(folder, "src/go.py")
    assert [path.name for path in files] == ["a_baseline.yaml", "b_variant.yaml"]
    arms = read_study_arms(files)
    assert [(arm.name, arm.baseline) for arm in arms] == [("My-lab-2/A", None), ("My-lab-2/B", "A")]
    assert arms[0].command == (
        "python3",
        "{arm_dir}/src/go.py",
        "--lr",
        "0.05",
        "--seed",
        "{seed}",
        "--steps",
        "{steps}",
    )
    assert [remark.rule for remark in lint(arms)] == ["F12"]
    (folder / "src").mkdir()
    (folder / "src/go.py").write_text("")
    assert preview(arms[1], Home(tmp_path / "runs")).files == ("src/go.py",)


def test_it_explains_where_to_put_what(tmp_path: Path) -> None:
    text = init(tmp_path)[0].read_text()
    for word in (
        "{arm_dir}",
        "{run_dir}",
        "{seed}",
        "{steps}",
        "{gpus}",
        "train.py",
        "runner check",
        "jsonl",
        "csv",
        "tensorboard",
    ):
        assert word in text


@pytest.mark.parametrize("name", ["a_baseline.yaml", "b_variant.yaml"])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    before = everything_below(tmp_path)
    with pytest.raises(UsageError, match="exists already and is kept"):
        init(tmp_path)
    assert everything_below(tmp_path) == before


def test_a_link_to_nowhere_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "b_variant.yaml").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError):
        init(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("script", ["/etc/x.py", "../x.py", 'a"b.py', "a\nb.py", "{x}.py"])
def test_a_script_is_a_plain_path_below_the_folder(tmp_path: Path, script: str) -> None:
    with pytest.raises(UsageError, match="plain path"):
        init(tmp_path, script)
    assert list(tmp_path.iterdir()) == []


def test_a_study_has_a_name(tmp_path: Path) -> None:
    assert read_study_arms(init(tmp_path, study="other"))[0].study == "other"
    with pytest.raises(UsageError, match="no name for a study"):
        init(tmp_path / "new", study="a/b")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="cannot be written"):
        init(tmp_path / "file" / "lab")
