"""Runs on hosts behind ssh, from the command line to the report: where they run, what they see, and what comes home."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.home import Home
from runner.store import requests
from tests.fakes.ssh_lab import Rounds, SshLab, files_below, keeping_python, rounds, ssh_lab
from tests.test_runner_trainer_arms import TINY

NOTING = """
import json, os, sys, time
from pathlib import Path
seen = {"environment": dict(os.environ), "cores": sorted(os.sched_getaffinity(0)), "python": sys.executable}
(Path(os.environ["RUNNER_RUN_DIR"]) / "seen.json").write_text(json.dumps(seen))
steps = int(os.environ["RUNNER_STEPS"])
for step in range(1, steps + 1):
    print(f"step {step}/{steps} loss={1.0 / (step + len(sys.argv[1])):.9f}", flush=True)
    time.sleep(0.005)
"""
"""Writes down what it sees of its surroundings, then trains."""

PLANTED = "ARMATURE_TEST_PLANTED"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[SshLab]:
    with ssh_lab(tmp_path) as found:
        yield found


@pytest.fixture
def here(lab: SshLab) -> Iterator[Rounds]:
    with rounds(lab) as found:
        yield found


def test_two_arms_on_two_hosts_give_what_they_give_here(lab: SshLab, tmp_path: Path) -> None:
    lab.draws_reports = True
    pythons: dict[str, Path] = {}
    for name in ("ada", "bob"):
        pythons[name] = lab.add_host(name).folder / "python"
        pythons[name].symlink_to(sys.executable)
    lab.list_hosts(**{name: {"python": str(path)} for name, path in pythons.items()})
    lab.extra_environment[PLANTED] = "s3cret of the launching shell"
    arms = [lab.arm(name, NOTING, "x" * size, steps=60) for size, name in enumerate("AB", 1)]
    launched = lab.run("launch", *arms, "--provider", "ssh", "--hosts", "hosts.yaml", "--accept-new", "--slots", "1")
    assert "report of lab: written to" in launched.stderr
    runs = lab.status()
    assert {run["state"] for run in runs.values()} == {"finished"}
    assert {run["slot"] for run in runs.values()} == {"ada:cpu0", "bob:cpu0"}
    assert [row[1:] for row in lab.attempts()] == [(1, "ended", "done")] * 2
    assert len(lab.events("synced")) == 2
    lab.until(lambda: lab.controller_pid() is None, "the controller to end")
    assert lab.rows("SELECT provider, host, state, proof FROM leases ORDER BY host") == [
        ("ssh", name, "released", f"{name} stays; nothing is paid for it") for name in ("ada", "bob")
    ]
    for name, run in runs.items():
        check_surroundings(lab, name, run)
    report = (lab.home / "lab" / "report" / "report.md").read_text()
    assert "ada" in report
    assert "bob" in report
    (tmp_path / "alone").mkdir()
    with ssh_lab(tmp_path / "alone") as alone, rounds(alone) as here:
        here.launch(*arms, provider="local", hosts=None)
        here.until_ended()
    for run in runs.values():
        assert alone.values(run["run_dir"]) == lab.values(run["run_dir"])
        assert len(alone.values(run["run_dir"])) == 60


def check_surroundings(lab: SshLab, name: str, run: dict[str, Any]) -> None:
    """The run folder is the same on both sides, and its process saw the host and nothing of ours."""
    host = lab.hosts[lab.host_of(name)]
    there, copy = lab.there(host.host.name, name), lab.home / run["run_dir"]
    here_alone = {"provenance.json"}
    assert files_below(there) == {name: data for name, data in files_below(copy).items() if name not in here_alone}
    seen = json.loads((copy / "seen.json").read_text())
    environment = seen["environment"]
    assert environment["HOME"] == str(host.home)
    assert PLANTED not in environment
    assert "s3cret" not in json.dumps(seen)
    assert not {"SSH_CONNECTION", "SSH_CLIENT", "RUNNER_HOME"} & set(environment)
    assert environment["RUNNER_RUN_DIR"] == str(there)
    assert (environment["RUNNER_SEED"], environment["RUNNER_STEPS"]) == ("0", "60")
    assert environment["RUNNER_ATTEMPT"] == f"{lab.runs_there(host.host.name).name}/{run['run_dir']}/attempt-1"
    (slot,) = lab.rows("SELECT slot FROM attempts WHERE run = ?", run["run_dir"])[0]
    assert seen["cores"] == json.loads(slot)["cores"]
    assert json.loads(slot)["host"] == host.host.name
    assert seen["python"] == str(host.folder / "python")
    assert PLANTED not in (lab.home / "controller.log").read_text()


# ---- a training of our own -------------------------------------------------------------------------------------------


BEST, EVERY, STEPS = 40, 20, 400


def trainer_arm(lab: SshLab) -> Path:
    document = {
        "study": "lab",
        "arm": "T",
        "seeds": [0],
        "primary": {"metric": "val/recon_rmse", "direction": "min"},
        "policy": {"detectors": {"regress": "warn"}},
        "resources": {"gpus": 0},
        "environment": {"python": str(keeping_python(lab.folder, BEST, EVERY))},
        "trainer": {**TINY, "steps": STEPS},
    }
    path = lab.folder / "T.yaml"
    path.write_text(json.dumps(document))
    return path


def steps_in(folder: Path) -> set[int]:
    """Steps of the checkpoints that lie whole in a run folder."""
    return {int(path.parent.name[5:]) for path in folder.glob("checkpoints/step_*/state.json")}


def stopped(here: Rounds, run_dir: str) -> None:
    """Ask for a stop, and see it through until the run is settled; its files may still be on their way."""
    requests.ask(Home(here.lab.home), "stop", {"runs": [run_dir], "reason": "stopped by a person"})
    here.until(lambda: here.lab.status()["T-s0"]["state"] == "cancelled", "the stop")


def resumed_steps(run_dir: Path, attempt: int) -> list[int]:
    """The steps at which an attempt said that it goes on."""
    path = run_dir / f"attempt-{attempt}" / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if '"resumed"' in line]


def test_a_training_is_stopped_comes_home_and_goes_on_where_its_files_are(lab: SshLab, here: Rounds) -> None:
    ada, _bob = lab.add_host("ada"), lab.add_host("bob")
    here.launch(trainer_arm(lab))
    here.until(lambda: lab.status()["T-s0"]["step"] >= 65, "65 steps")
    run_dir = lab.status()["T-s0"]["run_dir"]
    assert lab.host_of("T-s0") == "ada"
    there, copy = lab.there("ada", "T-s0"), lab.home / run_dir
    stopped(here, run_dir)
    here.until(lambda: lab.status()["T-s0"]["sync"] == "done", "its files to come home")
    run = lab.status()["T-s0"]
    assert json.loads((copy / "attempt-1" / "exit.json").read_text())["code"] == 75
    best, last = run["primary"]["best_step"], run["step"]
    assert best == BEST < last
    assert {best, last} < steps_in(there)
    assert steps_in(copy) == {best, last}
    for step in (best, last):
        name = f"checkpoints/step_{step:06d}"
        assert files_below(copy / name) == files_below(there / name) != {}
    (said,) = lab.event_data("synced")
    assert {Path(name).parts[1] for name in said["left"]} == {f"step_{n:06d}" for n in steps_in(there) - {best, last}}
    assert (said["lost"], said["refused"]) == ({}, {})
    requests.ask(Home(lab.home), "resume", {"run": run_dir, "from": "last"})
    here.until(lambda: resumed_steps(copy, 2), "the second attempt")
    assert resumed_steps(copy, 2) == [last]
    # Its newest files are on ada alone until they have come home: another host cannot go on from them.
    stopped(here, run_dir)
    ada.stop()
    last = lab.status()["T-s0"]["step"]
    requests.ask(Home(lab.home), "resume", {"run": run_dir, "from": "last"})
    here.until(lambda: "its files are on ada" in lab.status()["T-s0"]["reason"], "the reason why it waits")
    assert lab.status()["T-s0"]["state"] == "queued"
    ada.start()
    here.until(lambda: resumed_steps(copy, 3), "the third attempt")
    assert resumed_steps(copy, 3) == [last]
    # Once they are here, any host can.
    stopped(here, run_dir)
    here.until(lambda: lab.status()["T-s0"]["sync"] == "done", "its files to come home again")
    ada.stop()
    last = lab.status()["T-s0"]["step"]
    requests.ask(Home(lab.home), "resume", {"run": run_dir, "from": "last"})
    here.until(lambda: resumed_steps(copy, 4), "the fourth attempt")
    assert resumed_steps(copy, 4) == [last]
    hosts = lab.rows("SELECT slot ->> 'host' FROM attempts ORDER BY attempt")
    assert hosts == [("ada",), ("ada",), ("ada",), ("bob",)]
