"""Frozen code: what goes in, what stays behind and why, and that a copy is complete or not there."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from runner import code_files, snapshot
from runner.errors import HomeError, InfrastructureError, SpecError
from runner.home import Home
from runner.snapshot import Seen, preview, take
from runner.spec.models import ResolvedArm
from tests.fakes.arms import COMMAND_ARM, command_arm, everything_below, trainer_arm


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A folder with an arm file and a script."""
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "a.yaml").write_text(COMMAND_ARM)
    (folder / "train.py").write_text("print('step 1 loss=2')\n")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "runs")


def arm_in(lab: Path, **changes: object) -> ResolvedArm:
    return command_arm(lab, command=("python3", "{arm_dir}/train.py"), **changes)


def with_code(lab: Path, root: str | None = None, *include: str) -> ResolvedArm:
    return arm_in(lab, code={"root": root, "include": list(include)})


def reasons(lab: Path, home: Home, *include: str) -> dict[str, str]:
    return {left.path: left.reason for left in preview(with_code(lab, None, *include), home).left_out}


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@localhost", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_a_preview_writes_nothing_and_take_does_what_it_says(lab: Path, home: Home) -> None:
    before = everything_below(lab.parent)
    seen = preview(arm_in(lab), home)
    assert everything_below(lab.parent) == before
    taken = take(arm_in(lab), home)
    assert taken == seen
    assert (taken.root, taken.arm_dir, taken.files) == (f".snapshots/{taken.hash}", ".", ("train.py",))
    assert everything_below(home.root / taken.root) == {"train.py": b"print('step 1 loss=2')\n"}
    assert [path.name for path in home.snapshots.iterdir()] == [taken.hash]


def test_the_hash_knows_names_and_contents_and_nothing_else(lab: Path, home: Home) -> None:
    first = preview(arm_in(lab), home).hash
    os.utime(lab / "train.py", (1, 1))
    (lab / "train.py").chmod(0o755)
    (lab / "README.md").write_text("words")
    (lab / "b.yaml").write_text("extends: a.yaml\narm: B\n")
    assert preview(arm_in(lab), home).hash == first
    (lab / "more.py").write_text("")
    second = preview(arm_in(lab), home).hash
    (lab / "more.py").rename(lab / "less.py")
    assert len({first, second, preview(arm_in(lab), home).hash}) == 3


def test_a_frozen_copy_does_not_follow_later_edits(lab: Path, home: Home) -> None:
    old = take(arm_in(lab), home)
    (lab / "train.py").write_text("print('other')\n")
    new = take(arm_in(lab), home)
    assert old.hash != new.hash
    assert b"step 1" in (home.root / old.root / "train.py").read_bytes()


def test_taking_twice_keeps_the_first_copy_and_notices_tampering(lab: Path, home: Home) -> None:
    taken = take(arm_in(lab), home)
    copy = home.root / taken.root / "train.py"
    stamp = copy.stat().st_ino
    (home.root / taken.root / "result.txt").write_text("a run wrote this")
    assert take(arm_in(lab), home) == taken
    assert copy.stat().st_ino == stamp
    copy.write_text("changed")
    with pytest.raises(InfrastructureError, match="changed after it was stored"):
        take(arm_in(lab), home)


def test_what_stays_behind_is_listed_with_the_reason(lab: Path, home: Home) -> None:
    for name, content in {
        "notes.md": "x", "LICENSE": "x", ".env": "K=1", ".env.local": "K=1", "server.pem": "x", "a.key": "x",
        "id_rsa": "x", ".netrc": "x", "hosts.yaml": "x", "cache.pyc": "x", "b.yaml": "arm: B\nextends: a.yaml\n",
        "base.yml": "trainer:\n  steps: 1\nseeds: [0]\n", "model.yaml": "trainer: x\nlayers: 3\n", "data.txt": "x",
    }.items():  # fmt: skip
        (lab / name).write_text(content)
    for folder in (".aws", "__pycache__", ".git", "venv", "sub"):
        (lab / folder).mkdir()
        (lab / folder / "inner.py").write_text("x")
    (lab / "venv/pyvenv.cfg").write_text("")
    (lab / "large.bin").write_bytes(b"x" * (code_files.MAX_FILE_BYTES + 1))
    os.mkfifo(lab / "pipe")
    found = reasons(lab, home)
    secret, cache = "may hold secrets", "a cache or version control"
    assert found == {
        "notes.md": "text for people", "LICENSE": "text for people", ".env": secret, ".env.local": secret,
        "server.pem": secret, "a.key": secret, "id_rsa": secret, ".netrc": secret, "hosts.yaml": secret, ".aws": secret,
        "cache.pyc": cache, "__pycache__": cache, ".git": cache, "a.yaml": "an arm file", "b.yaml": "an arm file",
        "base.yml": "an arm file", "venv": "a virtual environment", "large.bin": "larger than 10 MiB",
        "pipe": "not a regular file",
    }  # fmt: skip
    assert preview(arm_in(lab), home).files == ("data.txt", "model.yaml", "sub/inner.py", "train.py")


def test_the_home_and_its_like_are_never_code(lab: Path) -> None:
    inside = Home(lab / "runs")
    (lab / "runs").mkdir()
    (lab / "runs/some.txt").write_text("x")
    (lab / "old-runs/.snapshots").mkdir(parents=True)
    assert reasons(lab, inside)["runs"] == "a home of the runner"
    assert reasons(lab, inside)["old-runs"] == "a home of the runner"
    with pytest.raises(SpecError, match="is the home of the runner itself"):
        preview(arm_in(lab), Home(lab))


def test_links_are_followed_to_files_inside_only(lab: Path, home: Home) -> None:
    (lab.parent / "outside.txt").write_text("private")
    (lab / "inside.py").symlink_to("train.py")
    (lab / "out.txt").symlink_to("../outside.txt")
    (lab / "folder").symlink_to("/etc")
    (lab / "broken").symlink_to("nothing")
    (lab / ".env").write_text("K=1")
    (lab / "harmless.txt").symlink_to(".env")
    found = reasons(lab, home)
    reason = "a link that does not lead to a file inside"
    outside = ("out.txt", "folder", "broken")
    assert {name: found[name] for name in outside} == dict.fromkeys(outside, reason)
    assert found["harmless.txt"] == "may hold secrets"
    taken = take(arm_in(lab), home)
    copy = home.root / taken.root / "inside.py"
    assert copy.read_text() == (lab / "train.py").read_text()
    assert not copy.is_symlink()


def test_what_git_ignores_stays_behind(lab: Path, home: Home) -> None:
    (lab.parent / ".gitignore").write_text("*.log\ndata/\n")
    (lab / "x.log").write_text("x")
    (lab / "data").mkdir()
    (lab / "data/set.bin").write_text("x")
    (lab / "kept.log").write_text("tracked before it was ignored")
    (lab / "new.py").write_text("untracked and not ignored")
    assert reasons(lab, home) == {"a.yaml": "an arm file"}
    git(lab.parent, "init")
    git(lab.parent, "add", "-f", "lab/kept.log", "lab/train.py")
    assert reasons(lab, home) == {"a.yaml": "an arm file", "x.log": "ignored by git", "data": "ignored by git"}
    assert preview(arm_in(lab), home).files == ("kept.log", "new.py", "train.py")


def test_a_folder_that_git_ignores_as_a_whole_is_code_all_the_same(lab: Path, home: Home) -> None:
    git(lab.parent, "init")
    (lab.parent / ".gitignore").write_text("lab/\n")
    assert preview(arm_in(lab), home).files == ("train.py",)


def test_a_broken_repository_is_noted(lab: Path, home: Home) -> None:
    (lab / ".git").write_text("gitdir: /nowhere\n")
    (note,) = preview(arm_in(lab), home).notes
    assert "git could not be asked" in note


def test_includes_bring_text_and_what_lies_elsewhere(lab: Path, home: Home) -> None:
    (lab / "notes.md").write_text("x")
    shared = lab.parent / "shared"
    shared.mkdir()
    (shared / "lib.py").write_text("x")
    (shared / "other.yaml").write_text("arm: Z\nstudy: y\n")
    (shared / ".env").write_text("K=1")
    taken = take(with_code(lab, None, "../shared", "*.md", "a.yaml"), home)
    assert taken.files == ("lab/a.yaml", "lab/notes.md", "lab/train.py", "shared/lib.py", "shared/other.yaml")
    assert taken.arm_dir == "lab"
    assert {left.path: left.reason for left in taken.left_out} == {"shared/.env": "may hold secrets"}


@pytest.mark.parametrize(
    ("include", "said"),
    [("none.txt", "names nothing"), ("*.none", "names nothing"), (".env", "may hold secrets"), ("/**x/**", "pattern")],
)
def test_an_include_that_cannot_be_taken(lab: Path, home: Home, include: str, said: str) -> None:
    (lab / ".env").write_text("K=1")
    with pytest.raises(SpecError, match=said):
        preview(with_code(lab, None, include), home)


def test_a_root_above_the_arm_keeps_its_place(lab: Path, home: Home) -> None:
    (lab.parent / "lib.py").write_text("x")
    taken = take(with_code(lab, ".."), home)
    assert taken.files == ("lab/train.py", "lib.py")
    assert taken.arm_dir == "lab"


def test_a_root_beside_the_arm_leaves_a_place_for_it(lab: Path, home: Home) -> None:
    (lab.parent / "src").mkdir()
    (lab.parent / "src/go.py").write_text("x")
    arm = dataclasses.replace(with_code(lab, "../src"), command=("python3", "{arm_dir}/../src/go.py"))
    taken = take(arm, home)
    assert taken.files == ("src/go.py",)
    assert (home.root / taken.root / taken.arm_dir).is_dir()
    with pytest.raises(SpecError, match="is not a folder"):
        preview(with_code(lab, "../none"), home)


def test_the_script_must_be_among_the_code(lab: Path, home: Home) -> None:
    missing = dataclasses.replace(arm_in(lab), command=("python3", "{arm_dir}/trian.py"))
    with pytest.raises(SpecError, match=r"trian\.py is not in the code that will run: there is no such file"):
        preview(missing, home)
    (lab / ".env.py").write_text("")
    left_out = dataclasses.replace(arm_in(lab), command=("{arm_dir}/.env.py",))
    with pytest.raises(SpecError, match="may hold secrets"):
        take(left_out, home)
    assert not home.root.exists()


def test_too_much_code_is_refused_with_the_largest_files(
    lab: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "MAX_TOTAL_BYTES", 2 * 1024**2)
    (lab / "big.bin").write_bytes(b"x" * (3 * 1024**2))
    with pytest.raises(SpecError, match=r"3 MiB in 2 files; the largest: big\.bin \(3\.0 MiB\), train\.py"):
        take(arm_in(lab), home)
    monkeypatch.setattr(code_files, "MAX_FILES", 1)
    with pytest.raises(SpecError, match="more than 1 files"):
        preview(arm_in(lab), home)
    assert not home.root.exists()


def test_scripts_stay_executable_whatever_their_mode(lab: Path, home: Home) -> None:
    (lab / "run.sh").write_text("#!/bin/sh\n")
    root = home.root / take(arm_in(lab), home).root
    assert (root / "run.sh").stat().st_mode & 0o777 == 0o700
    assert (root / "train.py").stat().st_mode & 0o777 == 0o600


def test_a_copy_that_fails_leaves_nothing(lab: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(HomeError, match="No space left on device"):
        take(arm_in(lab), home)
    assert list(home.snapshots.iterdir()) == []


def test_two_launches_at_once_share_one_copy(lab: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    other = take(arm_in(lab), home)
    finished = home.root / other.root
    away = home.root / "away"
    finished.rename(away)
    copy_file = snapshot._copy_file

    def copy_while_the_other_finishes(*arguments: object) -> None:
        copy_file(*arguments)  # type: ignore[arg-type]
        away.rename(finished)

    monkeypatch.setattr(snapshot, "_copy_file", copy_while_the_other_finishes)
    assert take(arm_in(lab), home) == other
    assert [path.name for path in home.snapshots.iterdir()] == [other.hash]


def test_a_trainer_arm_freezes_the_trainer_beside_the_runner(home: Home) -> None:
    taken = take(trainer_arm(), home)
    assert taken.arm_dir == "."
    assert "trainer/__main__.py" in taken.files
    assert all(name.startswith("trainer/") for name in taken.files)
    assert not any(name.endswith((".pyc", ".md")) for name in taken.files)


def test_the_arms_of_a_launch_share_one_walk_and_each_leaves_out_its_own_file(
    lab: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five hundred arms in one folder are five hundred neighbours of each."""
    lists: list[Path] = []
    real = os.listdir
    monkeypatch.setattr("runner.code_files.os.listdir", lambda path: lists.append(Path(path)) or real(path))
    own = [lab / f"odd{number}.cfg" for number in range(5)]  # no one would know them for arm files by their looks
    for path in own:
        path.write_text("x")
    arms = [arm_in(lab, sources=(str(path),)) for path in own]
    seen = Seen()
    alone = [preview(arm, home) for arm in arms]
    lists.clear()
    together = [preview(arm, home, seen) for arm in arms]
    assert together == alone
    assert len(lists) == len(set(lists))
    for path, found in zip(own, together, strict=True):
        assert path.name not in found.files
        assert {other.name for other in own} - {path.name} <= set(found.files)


def test_a_link_to_an_arm_file_is_no_code_either(lab: Path, home: Home) -> None:
    (lab / "arm.cfg").write_text("x")
    (lab / "latest.cfg").symlink_to("arm.cfg")
    arm = arm_in(lab, sources=(str(lab / "arm.cfg"), str(lab / "latest.cfg")))
    assert preview(arm, home).files == ("train.py",)
