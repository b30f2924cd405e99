"""The front door: every bad input ends in one line with file and key, exit code 2, and nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import runner
from runner.errors import ArmatureError, SpecError, UsageError
from runner.spec import ResolvedArm, StoredStudy, environment_values, read_study_arms, study_document
from tests.fakes.arms import COMMAND_ARM, everything_below

NOBODY = 65534


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write arm files into; whatever the test does, reading must not change anything there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(lab: Path, *files: str, **options: object) -> tuple[ResolvedArm, ...]:
    before = everything_below(lab)
    try:
        return read_study_arms(files, **options)  # type: ignore[arg-type]
    finally:
        assert everything_below(lab) == before


def refused(lab: Path, *files: str, **options: object) -> str:
    with pytest.raises((SpecError, UsageError)) as caught:
        read(lab, *files, **options)
    assert isinstance(caught.value, ArmatureError)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_arms_come_in_the_order_of_the_files(lab: Path) -> None:
    (lab / "b.yaml").write_text(COMMAND_ARM.replace("arm: A", "arm: B"))
    (lab / "a.yaml").write_text(COMMAND_ARM)
    (lab / "other.yaml").write_text(COMMAND_ARM.replace("study: trial", "study: other"))
    arms = read(lab, "b.yaml", "a.yaml", "other.yaml", "./a.yaml")
    assert [arm.name for arm in arms] == ["trial/B", "trial/A", "other/A"]
    assert arms[0].path == str(lab / "b.yaml")
    assert arms[0].file == "b.yaml"


def test_bases_chain_through_folders(lab: Path) -> None:
    (lab / "base").mkdir()
    (lab / "base/root.yaml").write_text(COMMAND_ARM)
    (lab / "base/middle.yaml").write_text("extends: root.yaml\ntitle: middle\nsteps: 7\n")
    (lab / "arm.yaml").write_text("extends: base/middle.yaml\narm: B\nchanges: {steps: 9}\n")
    (arm,) = read(lab, "arm.yaml")
    assert (arm.arm, arm.title, arm.steps) == ("B", "middle", 9)
    assert arm.sources == tuple(str(lab / name) for name in ("arm.yaml", "base/middle.yaml", "base/root.yaml"))
    assert arm.origins["title"] == ("base/middle.yaml", 2)


def test_the_command_line_narrows_and_overrides(lab: Path) -> None:
    for name in "ABC":
        (lab / f"{name}.yaml").write_text(COMMAND_ARM.replace("arm: A", f"arm: {name}"))
    arms = read(lab, "A.yaml", "B.yaml", "C.yaml", sets=("steps=6",), seeds="1-2", arms="C,A")
    assert [(arm.arm, arm.seeds, arm.steps) for arm in arms] == [("A", (1, 2), 6), ("C", (1, 2), 6)]
    assert "allowed: A, B, C; did you mean 'A'?" in refused(lab, "A.yaml", "B.yaml", "C.yaml", arms="a,A")
    assert "did you mean" not in refused(lab, "A.yaml", arms="nothing")
    assert "key=value" in refused(lab, "A.yaml", sets=("steps",))
    assert "runs backwards" in refused(lab, "A.yaml", seeds="3-1")
    assert "no arm file" in refused(lab)


def test_missing_files_and_folders(lab: Path) -> None:
    (lab / "arms").mkdir()
    os.mkfifo(lab / "pipe.yaml")
    assert "nowhere.yaml: does not exist" in refused(lab, "nowhere.yaml")
    assert "is a directory" in refused(lab, "arms")
    assert "next: runner check arms/*.yaml" in refused(lab, "arms")
    assert "not a regular file" in refused(lab, "pipe.yaml")
    assert "cannot be read" in refused(lab, "a" * 300)
    assert "NUL character" in refused(lab, "a\0b")


def test_bases_that_lead_nowhere(lab: Path) -> None:
    (lab / "lost.yaml").write_text("arm: A\nextends: base/none.yaml\n")
    assert "lost.yaml:2: extends: base/none.yaml does not exist" in refused(lab, "lost.yaml")
    (lab / "self.yaml").write_text("extends: ./self.yaml\n")
    assert "self.yaml:1: extends: goes round in a circle" in refused(lab, "self.yaml")
    (lab / "one.yaml").write_text("extends: two.yaml\n")
    (lab / "two.yaml").write_text("\nextends: one.yaml\n")
    assert "two.yaml:2: extends: goes round in a circle: one.yaml -> two.yaml -> one.yaml" in refused(lab, "one.yaml")
    (lab / "list.yaml").write_text("extends: [a]\n")
    assert "a path relative to this file" in refused(lab, "list.yaml")
    (lab / "folder.yaml").write_text("extends: .\n")
    assert "is a directory" in refused(lab, "folder.yaml")
    (lab / "nul.yaml").write_text('extends: "a\\0b"\n')
    assert "nul.yaml:1: extends: is no path" in refused(lab, "nul.yaml")
    for number in range(25):
        (lab / f"c{number}.yaml").write_text(f"extends: c{number + 1}.yaml\n")
    assert "more than 20 files" in refused(lab, "c0.yaml")


def test_files_that_are_no_arm(lab: Path) -> None:
    for content, said in [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is a binary file"),
        (b"\xff\xfe\xfd", "is not UTF-8"),
        (b"[1, 2]", "is not a block of keys"),
        (b"study: [", "is not YAML"),
        (b"study: a\nstudy: b\n", "is written twice"),
        (b"study: !!python/name:os.system x\n", "tag"),
        (b"x" * 300_000, "KiB large"),
    ]:
        (lab / "bad.yaml").write_bytes(content)
        assert "bad.yaml" in refused(lab, "bad.yaml")
        assert said in refused(lab, "bad.yaml")


def test_a_file_that_another_user_may_not_read(lab: Path) -> None:
    """Root may read everything, so a child gives its rights away first."""
    (lab / "secret.yaml").write_text(COMMAND_ARM)
    (lab / "secret.yaml").chmod(0o600)
    script = (
        "import os, sys\n"
        "from runner.errors import SpecError\n"
        "from runner.spec import read_study_arms\n"
        f"if os.getuid() == 0: os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "else: os.chmod('secret.yaml', 0)\n"
        "try: read_study_arms(['secret.yaml'])\n"
        "except SpecError as error: print(error); sys.exit(error.exit_code)\n"
    )
    folder = lab
    while folder != folder.parent and folder.stat().st_uid == os.getuid():
        folder.chmod(folder.stat().st_mode | 0o055)  # the way to the file is open, only the file is not
        folder = folder.parent
    root = Path(str(runner.__file__)).parents[1]
    done = subprocess.run(
        [sys.executable, "-B", "-c", script],
        capture_output=True,
        text=True,
        cwd=lab,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 2, done.stderr
    assert "secret.yaml: cannot be read: Permission denied" in done.stdout
    assert [path.name for path in lab.iterdir()] == ["secret.yaml"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("steps: 5", "steps: 5\nstpes: 6", "stpes: no such key"),
        ("steps: 5", "steps: five", "steps: 'five' is not allowed"),
        ("steps: 5", "steps: 5\nchanges: {resources.gpu: 1}", "resources.gpu: no such key"),
        ("arm: A", "arm: a/b", "arm: 'a/b' is not allowed"),
        ("study: trial", "study: ../trial", "study: '../trial' is not allowed"),
        ("seeds: [0]", "seeds: []", "seeds: [] is not allowed"),
        ("steps: 5", "steps: 5\nbudget: {run: {max_hours: -3}}", "budget.run.max_hours: -3 is not allowed"),
        ("steps: 5", "steps: 5\nbudget: {run: {max_usd: .nan}}", "budget.run.max_usd: nan is not allowed"),
        ("steps: 5", "steps: 5\ntrainer: {steps: 5}", "command: stands beside trainer"),
        ("command:", "# command:", "has neither trainer nor command"),
        ("steps: 5", "steps: 5\nretries: -7", "retries: -7 is not allowed"),
    ],
)
def test_documents_that_make_no_arm(lab: Path, old: str, new: str, said: str) -> None:
    (lab / "a.yaml").write_text(COMMAND_ARM.replace(old, new))
    message = refused(lab, "a.yaml")
    assert said in message
    assert message.endswith("next: runner check a.yaml")


def test_two_arms_with_one_name(lab: Path) -> None:
    (lab / "a.yaml").write_text(COMMAND_ARM)
    (lab / "copy.yaml").write_text(COMMAND_ARM)
    (lab / "small.yaml").write_text(COMMAND_ARM.replace("arm: A", "arm: a"))
    assert "copy.yaml:2: arm: 'A' is also the name of the arm in a.yaml" in refused(lab, "a.yaml", "copy.yaml")
    assert "'a' is also the name" in refused(lab, "a.yaml", "small.yaml")


def test_a_baseline_is_spelled_as_the_arm_is(lab: Path) -> None:
    (lab / "a.yaml").write_text(COMMAND_ARM)
    (lab / "b.yaml").write_text(COMMAND_ARM.replace("arm: A", "arm: B") + "baseline: a\n")
    assert "b.yaml:8: baseline: 'a' differs from the arm 'A' only in case" in refused(lab, "a.yaml", "b.yaml")
    stored = [StoredStudy("trial", study_document(read(lab, "a.yaml")[0]), "old.yaml", ("A",))]
    assert "did you mean 'A'?" in refused(lab, "b.yaml", stored=stored)
    assert read(lab, "b.yaml")[0].baseline == "a"


def test_names_differ_from_stored_ones_in_more_than_case(lab: Path) -> None:
    (lab / "a.yaml").write_text(COMMAND_ARM.replace("arm: A", "arm: a"))
    (lab / "s.yaml").write_text(COMMAND_ARM.replace("study: trial", "study: Trial"))
    stored = [StoredStudy("trial", {}, "old.yaml", ("A",))]
    assert "'a' differs from 'A' (old.yaml) only in case" in refused(lab, "a.yaml", stored=stored, amend=True)
    assert "'Trial' differs from 'trial' (old.yaml) only in case" in refused(lab, "s.yaml", stored=stored, amend=True)


def test_study_level_keys_must_agree_with_each_other_and_with_what_is_stored(lab: Path) -> None:
    (lab / "a.yaml").write_text(COMMAND_ARM)
    (lab / "b.yaml").write_text(COMMAND_ARM.replace("arm: A", "arm: B") + "policy: {tail: 0.1}\n")
    message = refused(lab, "a.yaml", "b.yaml")
    assert "b.yaml:8: policy.tail: is 0.1 here and 0.04 in a.yaml" in message
    (a,) = read(lab, "a.yaml")
    stored = [StoredStudy("trial", study_document(a), "arms/old.yaml", ("A",))]
    assert read(lab, "a.yaml", stored=stored) == (a,)
    message = refused(lab, "b.yaml", stored=stored)
    assert "b.yaml" in message
    assert "arms/old.yaml" in message
    assert read(lab, "b.yaml", stored=stored, amend=True)[0].policy.tail == 0.1


def test_variables_come_from_the_shell_and_must_be_set(lab: Path) -> None:
    (lab / "a.yaml").write_text(COMMAND_ARM + "env:\n  TOKEN: {from: LAB_TOKEN}\n  MODE: fast\n")
    message = refused(lab, "a.yaml", variables={})
    assert "a.yaml:9: env.TOKEN: the variable LAB_TOKEN is not set" in message
    assert "next: export LAB_TOKEN=" in message
    (arm,) = read(lab, "a.yaml", variables={"LAB_TOKEN": "s3cret"})
    assert environment_values(arm, {"LAB_TOKEN": "s3cret"}) == {"TOKEN": "s3cret", "MODE": "fast"}
    assert "s3cret" not in repr(arm)


def test_reading_arms_loads_no_heavy_library() -> None:
    heavy = ("torch", "numpy", "sqlalchemy", "matplotlib")
    script = f"import sys, runner.spec; print([name for name in {heavy} if name in sys.modules])"
    root = Path(str(runner.__file__)).parents[1]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
