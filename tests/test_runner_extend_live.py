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
import sys, time
for step in range(1, int(sys.argv[1]) + 1):
    print(f"step {step}/9 loss=1", flush=True)
    time.sleep(0.02)
"""

GOES_ON = """
import json, os, sys
from pathlib import Path

folder, steps = Path(sys.argv[2]), int(sys.argv[1])
assert os.environ["RUNNER_STEPS"] == sys.argv[1]
saved = folder / "saved"
begin = int(saved.read_text()) if saved.exists() else 0
with open(folder / "metrics.jsonl", "a") as stream:
    def tell(**line):
        stream.write(json.dumps(line) + chr(10))
    if begin:
        tell(kind="event", event="resumed", step=begin)
    for step in range(begin + 1, steps + 1):
        tell(step=step, loss=1 / step)
saved.write_text(str(steps))
print(f"from {begin} to {steps}")
"""
"""Takes its budget, saves what it came to, and goes on from there, which it says in its metrics."""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path, draws_reports=False)
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


def config_of(lab: Lab, name: str) -> str:
    """The config.yaml of a run, empty while there is none."""
    return "\n".join(text(lab.home / lab.status()[name]["run_dir"] / "config.yaml"))


@pytest.mark.long
def test_a_finished_training_goes_on_with_the_schedule_of_the_longer_run(lab: Lab) -> None:
    lab.draws_reports = True
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


@pytest.mark.long
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


def test_a_finished_script_that_takes_its_steps_goes_on_by_itself(lab: Lab) -> None:
    arm = lab.arm(
        "A", GOES_ON, "{steps}", "{run_dir}", steps=5, metrics={"source": "jsonl", "path": "metrics.jsonl"},
        primary={"metric": "loss", "direction": "min"},
    )  # fmt: skip
    lab.run("launch", arm, "--detach")
    before = lab.until_state("A-s0", "finished")
    said = lab.run("extend", "lab/A-s0", "--steps", "8").stdout
    assert "extended from 5 to 8 steps: a new attempt of the command with {steps} = 8" in said
    run = lab.until_state("A-s0", "finished")
    assert (run["run"], run["attempts"], run["steps_total"], run["step"]) == (before["run"], 2, 8, 8)
    assert run["rejected_lines"] == 0
    points = load_study(lab.home / "lab", names=["loss"]).points
    assert list(zip(points["step"], points["attempt"], strict=True)) == [
        *((step, 1) for step in range(1, 6)), *((step, 2) for step in range(6, 9)),
    ]  # fmt: skip
    assert "from 5 to 8" in lab.run("logs", "lab/A-s0").stdout
    assert "from 0 to 5" in lab.run("logs", "lab/A-s0", "--attempt", "1").stdout
    assert "allowed: 1 to 2" in lab.run("logs", "lab/A-s0", "--attempt", "3", code=2).stderr
    outcome = lab.run("diff", "lab/A-s0", "lab/A-s0").stdout.partition("outcome\n")[2]
    shown = {line.rsplit(None, 2)[0].strip(): line.split()[-1] for line in outcome.splitlines()}
    assert (shown["step"], shown["last at step"], shown["points"]) == ("8", "8", "8")
    assert "nothing is done" in lab.run("launch", arm).stdout, "the command as it is written is the same"
    refused = lab.run("extend", "lab/A-s0", "--steps", "8", code=2).stderr
    assert f"--steps 8: {run['run']} has 8 steps already; allowed: more than 8" in refused
    lab.run("launch", arm, "--fresh", "--detach")
    refused = lab.run("extend", run["run"], "--steps", "9", code=2).stderr
    assert f"{run['run']} is superseded by a newer generation of lab/A-s0" in refused


def test_a_script_that_is_not_told_its_budget_keeps_it(lab: Lab) -> None:
    lab.run("launch", lab.arm("A", steps=5), "--detach")
    before = lab.until_state("A-s0", "finished")
    refused = lab.run("extend", "lab/A-s0", "--steps", "8", code=2).stderr
    assert "command without {steps}" in refused
    assert "continue by itself" in refused
    assert lab.status()["A-s0"] == before
    assert declared(lab) == []


@pytest.mark.long
def test_a_live_script_is_left_alone_and_a_stopped_one_keeps_its_longer_budget(lab: Lab) -> None:
    arm = lab.arm("A", TICKER, "{steps}", steps=4000)
    lab.run("launch", arm, "--detach")
    lab.until(lambda: lab.status().get("A-s0", {}).get("step", 0) >= 2, "two steps")
    refused = lab.run("extend", "lab/A-s0", "--steps", "5000", code=2).stderr
    assert "is running and its command was started with 4000 steps" in refused
    assert (lab.status()["A-s0"]["state"], lab.status()["A-s0"]["steps_total"]) == ("running", 4000)
    assert declared(lab) == []
    lab.run("stop", "lab/A-s0", "--wait")
    lab.run("extend", "lab/A-s0", "--steps", "5000")
    lab.until(lambda: "steps: 5000" in config_of(lab, "A-s0"), "its config")
    lab.until(lambda: lab.status()["A-s0"]["state"] == "running", "the second attempt")
    lab.run("stop", "lab/A-s0", "--wait")
    lab.run("launch", arm, "--detach")
    lab.until(lambda: lab.status()["A-s0"]["attempts"] == 3, "the third attempt")
    assert lab.status()["A-s0"]["steps_total"] == 5000
    lab.until(lambda: "steps: 5000" in config_of(lab, "A-s0"), "its config")
