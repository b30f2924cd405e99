"""Arms of our own trainer from end to end at a tiny size: snapshot, training, full validation, report, resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.lab import Lab

TINY = {
    "steps": 6,
    "batch": 2,
    "device": "cpu",
    "data": {"source": "procedural", "size": 16, "samples": 16, "held_out": 4},
    "model": {"width": 16, "depth": 3, "heads": 2, "patch": 4},
    "optimizer": {"name": "adamw", "lr": 1e-3, "warmup_steps": 1},
    "validation": {"every": 3, "samples": 4, "sampler_steps": 2},
}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path, draws_reports=False)
    yield found
    found.clean_up()


def trainer_arm(lab: Lab, name: str = "T", **trainer: object) -> Path:
    document = {
        "study": "lab",
        "arm": name,
        "seeds": [0],
        "primary": {"metric": "val/recon_rmse", "direction": "min"},
        "policy": {"detectors": {"regress": "warn"}},
        "resources": {"gpus": 0},
        "trainer": {**TINY, **trainer},
    }
    path = lab.folder / f"{name}.yaml"
    path.write_text(json.dumps(document))
    return path


def test_the_frozen_trainer_runs_whatever_the_working_directory_holds(lab: Lab) -> None:
    lab.draws_reports = True
    for package in ("trainer", "runner"):
        (lab.folder / package).mkdir()
        (lab.folder / package / "__init__.py").write_text("raise SystemExit('an impostor was imported')")
    arm = trainer_arm(lab)
    lab.run("launch", arm)
    run = lab.status()["T-s0"]
    assert (run["state"], run["step"], run["health"]) == ("finished", 6, "ok")
    assert run["primary"]["name"] == "val/recon_rmse"
    assert {"val/recon_rmse", "val_raw/recon_rmse", "val_native/recon_rmse", "val/use_text"} <= set(run["latest"])
    folder = lab.home / run["run_dir"]
    assert (folder / "validation" / "step_000006" / "meta.json").exists()
    report = lab.home / "lab" / "report"
    assert {"primary.png", "curves.png", "samples.png"} <= {path.name for path in (report / "figures").iterdir()}
    before = (report / "report.md").read_bytes()
    lab.run("report", "lab")
    assert (report / "report.md").read_bytes() == before
    assert "nothing is done" in lab.run("launch", arm).stdout
    found = lab.run("autopsy", "lab/T-s0")
    assert found.stdout.startswith("From step ")
    assert {**lab.status()["T-s0"], "attempts": 1, "changed": 0} == {**run, "changed": 0}
    assert json.loads((folder / "autopsy" / "autopsy.json").read_text())["conclusion"] == found.stdout.rstrip("\n")


@pytest.mark.long
def test_a_resolved_configuration_trains_alone(lab: Lab) -> None:
    config = lab.folder / "config.yaml"
    config.write_text(lab.run("check", trainer_arm(lab), "--resolve").stdout)
    assert not lab.home.exists()
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "trainer",
            "train",
            str(config),
            "--run-dir",
            str(lab.folder / "alone"),
            "--stop-after",
            "2",
        ],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    assert (lab.folder / "alone" / "checkpoints" / "step_000002").is_dir()


def test_a_stopped_training_resumes_where_it_stopped(lab: Lab) -> None:
    arm = trainer_arm(lab, steps=3000, log_every=1, validation={"every": 500, "samples": 4, "sampler_steps": 2})
    lab.run("launch", arm, "--detach")
    lab.until(lambda: lab.status()["T-s0"]["step"] >= 20, "twenty steps")
    lab.run("stop", "--all", "--wait")
    stopped = lab.status()["T-s0"]
    assert stopped["state"] == "cancelled"
    folder = lab.home / stopped["run_dir"]
    assert json.loads((folder / "attempt-1" / "exit.json").read_text())["code"] == 75
    assert json.loads((folder / "control.json").read_text())["stop"] == "checkpoint"
    lab.run("resume", "lab/T-s0")
    lab.until(lambda: lab.status()["T-s0"]["step"] > stopped["step"] + 5, "further steps")
    now = lab.status()["T-s0"]
    assert now["attempts"] == 2
    assert now["rejected_lines"] == 0
    lines = (folder / "attempt-2" / "metrics.jsonl").read_text().splitlines()
    resumed = [json.loads(line) for line in lines if '"resumed"' in line]
    assert [line["step"] for line in resumed] == [stopped["step"]]


@pytest.mark.long
def test_a_missing_folder_of_images_is_a_data_failure_with_its_reason(lab: Lab) -> None:
    (lab.folder / "photos").mkdir()
    arm = trainer_arm(lab, data={"source": "folder", "path": "photos", "size": 16, "held_out": 4})
    lab.run("launch", arm, code=1)
    run = lab.status()["T-s0"]
    assert run["state"] == "failed(data)"
    assert "photos" in run["reason"]
