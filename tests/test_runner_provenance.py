"""Where a run came from, and that no secret gets in."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

from runner.home import Home
from runner.provenance import collect
from runner.snapshot import preview
from tests.fakes.arms import command_arm


def provenance(folder: Path, variables: dict[str, str] | None = None, **changes: object) -> dict[str, object]:
    arm = command_arm(folder, **changes)
    return collect(arm, preview(arm, Home(folder.parent / "runs")), variables or {}, gpus=["GPU X"])


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@localhost"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_it_is_json_with_packages_and_hardware(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("")
    (tmp_path / "note.md").write_text("")
    found = json.loads(json.dumps(provenance(tmp_path)))
    assert (found["commit"], found["dirty"], found["diff_hash"]) == (None, None, None)
    assert found["packages"]["pydantic"][0].isdigit()
    assert found["hardware"]["gpus"] == ["GPU X"]
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["ram_mib"] > 64
    assert found["code"]["files"] == 1
    assert found["code"]["left_out"] == [{"path": "note.md", "reason": "text for people"}]


def test_another_interpreter_has_no_version_of_ours(tmp_path: Path) -> None:
    ours = {"executable": sys.executable, "version": platform.python_version()}
    assert provenance(tmp_path)["python"] == provenance(tmp_path)["launcher"] == ours
    named = provenance(tmp_path, environment={"python": "/usr/bin/python3.9", "setup": None})
    assert named["python"] == {"executable": "/usr/bin/python3.9", "version": None}
    assert named["launcher"] == ours
    assert provenance(tmp_path, environment={"python": None, "setup": "make env"})["python"]["version"] is None  # type: ignore[index]


def test_a_repository_has_a_commit_and_a_hash_of_what_differs(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("1")
    git(tmp_path, "init")
    assert provenance(tmp_path)["commit"] is None
    git(tmp_path, "add", "x.py")
    git(tmp_path, "commit", "-m", "first")
    clean = provenance(tmp_path)
    assert (clean["commit"], clean["dirty"], clean["diff_hash"]) == (git(tmp_path, "rev-parse", "HEAD"), False, None)
    (tmp_path / "new.py").write_text("untracked")
    assert provenance(tmp_path)["dirty"] is True
    (tmp_path / "x.py").write_text("2")
    first = provenance(tmp_path)["diff_hash"]
    (tmp_path / "x.py").write_text("3")
    assert len({None, first, provenance(tmp_path)["diff_hash"]}) == 3


def test_only_listed_variables_are_kept_and_never_a_secret(tmp_path: Path) -> None:
    variables = {
        "CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1", "NCCL_DEBUG": "INFO", "PYTHONPATH": "/x",
        "RUNNER_HOME": "/r", "HF_TOKEN": "s3cret", "PATH": "/bin", "PYTHON_KEYRING_SECRET": "s3cret",
    }  # fmt: skip
    found = provenance(tmp_path, variables, env={"KEY": {"from": "PYTHON_KEYRING_SECRET"}})
    assert sorted(found["variables"]) == [  # type: ignore[call-overload]
        "CUDA_VISIBLE_DEVICES", "NCCL_DEBUG", "OMP_NUM_THREADS", "PYTHONPATH", "RUNNER_HOME",
    ]  # fmt: skip
    assert "s3cret" not in json.dumps(found)
