"""A longer budget for real runs: finished, live and ended ones, with real processes and our own tiny trainer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from runner.door import load_study
from runner.home import Home
from runner.store import tables
from runner.store.database import reading
from tests.fakes.lab import Lab

TINY: dict[str, Any] = {
    "steps": 6,
    "batch": 2,
    "device": "cpu",
    "log_every": 1,
    "data": {"source": "procedural", "size": 16, "samples": 16, "held_out": 4},
    "model": {"width": 16, "depth": 3, "heads": 2, "patch": 4},
    "optimizer": {"name": "adamw", "lr": 1e-3, "warmup_steps": 1},
    "validation": {"every": 3, "samples": 4, "sampler_steps": 2},
}


TICKER = """
import time
for step in range(1, 4000):
    print(f"step {step}/9 loss=1", flush=True)
    time.sleep(0.02)
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path)
    yield found
    found.clean_up()


def trainer_arm(lab: Lab, **trainer: object) -> Path:
    document = {
        "study": "lab",
        "arm": "T",
        "seeds": [0],
        "primary": {"metric": "val/recon_rmse", "direction": "min"},
        "policy": {"detectors": {"regress": "warn"}},
        "resources": {"gpus": 0},
        "trainer": {**TINY, **trainer},
    }
    path = lab.folder / "T.yaml"
    path.write_text(json.dumps(document))
    return path


def declared(lab: Lab) -> list[tuple[str, dict[str, int]]]:
    """The events that declare longer budgets."""
    events = tables.events
    with reading(Home(lab.home)) as connection:
        rows = connection.execute(select(events.c.reason, events.c.data).where(events.c.what == "extended"))
        return [(row.reason, row.data) for row in rows]


def rates(lab: Lab) -> dict[int, tuple[int, float]]:
    """Step -> (attempt, learning rate) of the joined view."""
    points = load_study(lab.home / "lab", names=["train/lr"]).points
    return dict(zip(points["step"], zip(points["attempt"], points["value"], strict=True), strict=True))


def test_a_finished_training_goes_on_with_the_schedule_of_the_longer_run(lab: Lab) -> None:
    arm = trainer_arm(lab)
    lab.run("launch", arm, "--detach")
    before = lab.until_state("T-s0", "finished")
    short = rates(lab)
    assert short[6][1] < 2e-4, "annealed"
    said = lab.run("extend", "lab/T-s0", "--steps", "10").stdout
    assert "extended from 6 to 10 steps: a new attempt goes on from the last complete checkpoint" in said
    run = lab.until_state("T-s0", "finished")
    assert (run["run"], run["step"], run["steps_total"], run["attempts"]) == (before["run"], 10, 10, 2)
    assert declared(lab) == [(run["extended"][0], {"from": 6, "to": 10, "step": 6})]
    after = rates(lab)
    assert {step: found for step, found in after.items() if step <= 6} == short
    assert [after[step][0] for step in range(7, 11)] == [2] * 4
    assert after[7][1] > short[6][1] > 0, "the cosine of ten steps is higher at step 7 than that of six at its end"
    assert min(rate for _, rate in after.values()) == after[10][1]
    assert "nothing is done" in lab.run("launch", arm).stdout
    assert lab.status()["T-s0"]["steps_total"] == 10
    report = lab.home / "lab" / "report" / "report.md"
    # A report that was being written when the run was extended is followed by another.
    lab.until(lambda: "T-s0 was extended from 6 to 10 steps" in "".join(text(report)), "a report of the longer run")
    lab.until(lambda: "10 of 10" in "".join(text(report)), "a report of its end")
    a_trainer_that_could_not_is_refused_with_what_to_do(lab)


def a_trainer_that_could_not_is_refused_with_what_to_do(lab: Lab) -> None:
    """The code frozen with the run decides, not the code of today."""
    (frozen,) = (lab.home / ".snapshots").glob("*/trainer/check.py")
    frozen.write_text(frozen.read_text().replace('("extended",)', "()"))
    refused = lab.run("extend", "lab/T-s0", "--steps", "12", code=2).stderr
    assert "cannot go on with a longer budget; a new generation can: runner launch" in refused
    assert "--set trainer.steps=12" in refused
    assert (lab.status()["T-s0"]["state"], len(declared(lab))) == ("finished", 1)


def test_a_live_training_saves_first_even_if_the_controller_dies_meanwhile(lab: Lab) -> None:
    lab.run("launch", trainer_arm(lab, steps=3000, validation={**TINY["validation"], "every": 500}), "--detach")
    lab.until(lambda: lab.status()["T-s0"]["step"] >= 20, "twenty steps")
    extend = lab.start("extend", "lab/T-s0", "--steps", "3500")
    lab.until(lambda: (lab.home / lab.status()["T-s0"]["run_dir"] / "attempt-1" / "stop.json").exists(), "the stop")
    lab.kill_controller()
    out, err = extend.communicate(timeout=60)
    assert extend.returncode == 0, err
    assert "extended from 3000 to 3500 steps" in out
    lab.until(
        lambda: lab.status()["T-s0"]["attempts"] == 2 and lab.status()["T-s0"]["state"] == "running", "the second"
    )
    run = lab.status()["T-s0"]
    folder = lab.home / run["run_dir"]
    assert json.loads((folder / "attempt-1" / "exit.json").read_text())["code"] == 75
    resumed = lab.until(
        lambda: [line for line in text(folder / "attempt-2" / "metrics.jsonl") if '"resumed"' in line], "the resume"
    )
    assert json.loads(resumed[0])["step"] >= 20
    assert (run["steps_total"], [data["to"] for _, data in declared(lab)]) == (3500, [3500])


def text(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_a_live_script_only_gets_another_number(lab: Lab) -> None:
    lab.run("launch", lab.arm("A", TICKER, steps=9), "--detach")
    lab.until(lambda: lab.status().get("A-s0", {}).get("step", 0) >= 2, "two steps")
    said = lab.run("extend", "lab/A-s0", "--steps", "4000").stdout
    run = lab.status()["A-s0"]
    assert "extended from 9 to 4000 steps: its command stays as it is" in said
    assert (run["state"], run["attempts"], run["steps_total"]) == ("running", 1, 4000)
    assert run["extended"] == [said.strip().partition(": ")[2]]


def test_an_ended_script_runs_again_and_what_may_not_grow_is_refused(lab: Lab) -> None:
    arm = lab.arm("A", steps=5)
    lab.run("launch", arm, "--detach")
    lab.until_state("A-s0", "finished")
    lab.run("extend", "lab/A-s0", "--steps", "8")
    run = lab.until_state("A-s0", "finished")
    assert (run["attempts"], run["steps_total"], run["step"]) == (2, 8, 5)
    refused = lab.run("extend", "lab/A-s0", "--steps", "8", code=2).stderr
    assert f"--steps 8: {run['run']} has 8 steps already; allowed: more than 8" in refused
    lab.run("launch", arm, "--fresh", "--detach")
    refused = lab.run("extend", run["run"], "--steps", "9", code=2).stderr
    assert f"{run['run']} is superseded by a newer generation of lab/A-s0" in refused


def test_launching_a_stopped_run_again_keeps_its_longer_budget(lab: Lab) -> None:
    arm = lab.arm("A", TICKER, steps=9)
    lab.run("launch", arm, "--detach")
    lab.until(lambda: lab.status().get("A-s0", {}).get("step", 0) >= 2, "two steps")
    lab.run("extend", "lab/A-s0", "--steps", "4000")
    lab.run("stop", "lab/A-s0", "--wait")
    lab.run("launch", arm, "--detach")
    lab.until(lambda: lab.status()["A-s0"]["attempts"] == 2, "the second attempt")
    assert lab.status()["A-s0"]["steps_total"] == 4000
    config = lab.home / lab.status()["A-s0"]["run_dir"] / "config.yaml"
    lab.until(lambda: "steps: 4000" in config.read_text(), "its config")
