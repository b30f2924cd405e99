"""What a set-up command reads of the frozen code, and when its environment may be used again."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from runner.spec.models import ResolvedArm
from runner.staging.environment import MOST_BYTES, Named, folder_of, key, key_of, named_files, python_of, words
from tests.fakes.arms import command_arm


def arm(setup: str | None = "pip install -r requirements.txt", python: str | None = None) -> ResolvedArm:
    return command_arm(environment={"python": python, "setup": setup})


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Frozen code whose arm lies in the folder `lab`."""
    lab = tmp_path / "lab"
    (lab / "package").mkdir(parents=True)
    (lab / "requirements.txt").write_text("-r base.txt\n  --constraint=../shared.txt # why\ntorch\n")
    (lab / "base.txt").write_text("-rbase.txt\nnumpy\n")
    (lab / "install.sh").write_text("pip install x\n")
    (tmp_path / "shared.txt").write_text("torch<3\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path.parent / "outside.txt").write_text("not ours\n")
    return tmp_path


LISTS = ["lab/base.txt", "lab/requirements.txt", "shared.txt"]


@pytest.mark.parametrize(
    ("setup", "files"),
    [
        ("pip install -r requirements.txt", LISTS),
        ("pip install -rrequirements.txt", LISTS),
        ("pip install --requirement=requirements.txt", LISTS),
        ("pip install -r 'requirements.txt' && echo done", LISTS),
        ('pip install -r "$PWD/requirements.txt"', LISTS),
        ("pip install -r ./requirements.txt;true", LISTS),
        ("sh install.sh", ["lab/install.sh"]),
        ("./install.sh>log", ["lab/install.sh"]),
        ("cd ..\npip install -r ../shared.txt", ["shared.txt"]),
        ("pip install numpy", []),
        ("pip install -r ../../outside.txt /etc/passwd", []),
        ("python3 -m venv $RUNNER_ENVIRONMENT; . $RUNNER_ENVIRONMENT/bin/activate", []),
    ],
)
def test_the_files_that_a_command_names(code: Path, setup: str, files: list[str]) -> None:
    found = named_files(setup, code, "lab")
    assert sorted(found.files) == files
    assert found.whole is ("cd .." in setup)  # a folder is named, so any of the code may matter
    assert all((code / name).read_bytes() == content for name, content in found.files.items())


@pytest.mark.parametrize(
    "setup", ["pip install .", "pip install -e .[dev]", "pip install ./package", "true && pip install ."]
)
def test_a_folder_that_a_command_names_means_all_of_the_code(code: Path, setup: str) -> None:
    assert named_files(setup, code, "lab").whole


def test_a_large_file_counts_as_the_whole_code(code: Path) -> None:
    with (code / "lab" / "wheels.bin").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    assert named_files("pip install wheels.bin", code, "lab") == Named({}, True)


def test_what_changes_the_key() -> None:
    named = Named({"requirements.txt": b"torch"})
    known = key(arm(), named, "code")
    assert key(dataclasses.replace(arm(), title="other", seeds=(1, 2)), named, "other code") == known
    assert key(arm(python="{environment}/bin/python"), named, "code") == known  # what is meant by default
    others = [
        key(arm("pip install -r requirements.txt -q"), named, "code"),
        key(arm(python="{environment}/bin/python3.12"), named, "code"),
        key(arm(), Named({"requirements.txt": b"torch<3"}), "code"),
        key(arm(), Named({"other.txt": b"torch"}), "code"),
        key(arm(), Named({}, True), "code"),
        key(arm(), Named({}, True), "other code"),
    ]
    assert len({known, *others}) == 7


def test_the_key_of_an_arm_follows_its_files(code: Path) -> None:
    known = key_of(arm(), code, "lab", "hash")
    assert key_of(arm(None), code, "lab", "hash") is None
    assert key_of(arm(), code, "lab", "other") == known
    (code / "lab" / "install.sh").write_text("changed\n")
    assert key_of(arm(), code, "lab", "hash") == known
    (code / "shared.txt").write_text("changed\n")
    assert key_of(arm(), code, "lab", "hash") != known


def test_the_interpreter_on_a_host() -> None:
    made = folder_of("/home/u/staging", "ab" * 32)
    assert made == "/home/u/staging/environments/" + "ab" * 16
    assert python_of(arm(), made) == f"{made}/bin/python"
    assert python_of(arm(python="{environment}/python"), made) == f"{made}/python"
    assert python_of(arm(python="/opt/conda/bin/python"), made) == "/opt/conda/bin/python"
    assert python_of(arm(None), None) == sys.executable
    assert python_of(arm(None), None, "python3") == "python3"
    assert python_of(arm(None, "/usr/bin/python3"), None) == "/usr/bin/python3"


def test_words_of_a_shell() -> None:
    assert words("a 'b c' -rx --y=z") == ("a", "b", "c", "-rx", "x", "--y", "z")
