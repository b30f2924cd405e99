"""From arm files to a report with real processes: the command line, the controller, supervisors and small scripts."""

from __future__ import annotations

import json
import os
import pty
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.files_now import files_now
from tests.fakes.lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path, draws_reports=False)
    yield found
    found.clean_up()


def gated(lab: Lab, arm: str, step: int) -> Path:
    """Launch an arm that stands still at a step, and return the gate that holds it there."""
    planned = json.loads(lab.run("launch", arm, "--dry-run", "--json").stdout)["runs"][0]
    gate = lab.home / planned["run_dir"] / f"wait-at-{step}"
    gate.parent.mkdir(parents=True)
    gate.touch()
    return gate


def test_a_script_becomes_a_run_with_metrics_and_a_report(lab: Lab) -> None:
    lab.draws_reports = True
    arm = lab.arm("talker")
    done = lab.run("launch", arm)
    document = json.loads(lab.run("status", "--json").stdout)
    (run,) = document["studies"][0]["runs"]
    assert (run["state"], run["points"], run["step"], run["health"]) == ("finished", 20, 20, "ok")
    assert "report of lab: written to" in done.stderr
    assert (lab.home / "lab" / "report" / "report.md").exists()
    assert len(lab.points()) == 20
    before = (lab.home / "lab" / "report" / "report.md").read_bytes()
    lab.run("report", "lab")
    assert (lab.home / "lab" / "report" / "report.md").read_bytes() == before


def test_launching_twice_starts_nothing_and_a_change_makes_a_generation(lab: Lab) -> None:
    one, two = lab.arm("one"), lab.arm("two")
    lab.run("launch", one, two)
    first = lab.status()
    again = lab.run("launch", one, two)
    assert again.stdout.count("is finished already, so nothing is done") == 2
    assert lab.status() == first
    (one.parent / "README.md").write_text("words change nothing")
    assert "is finished already" in lab.run("launch", one).stdout
    (one.parent / "train.py").write_text("print('step 1/20 loss=5')\n")
    changed = lab.run("launch", one, two)
    assert f"supersedes {first['one-s0']['run']}" in changed.stdout
    now = lab.status()
    assert now["one-s0"]["generation"] == 2
    assert now["two-s0"]["run"] == first["two-s0"]["run"]
    fresh = lab.run("launch", two, "--fresh", "--json")
    assert json.loads(fresh.stdout)["studies"][0]["runs"][0]["generation"] == 2


ODD = {
    "failed": [
        ("import sys; sys.exit(3)", "failed(exit 3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "failed(killed)", "SIGKILL"),
        ("raise ValueError('the data is gone')", "failed(exit 1)", "the data is gone"),
    ],
    "finished": [
        ("print('\\x00\\xff garbage ' * 50)", "finished", "no metric of it was ever read"),
        ("import sys; sys.stdout.write('step 1/20 loss=1\\nstep 2/20 lo')", "finished", "last step was 1 of 20"),
        (
            "print('step 1/20 loss=1'); print('x' * 200_000); print('step 20/20 loss=1')",
            "finished",
            "all 20 steps done",
        ),
    ],
}
"""(script, state, part of the reason), by how the launch of them ends."""


@pytest.mark.parametrize("end", ODD)
def test_odd_scripts_end_in_a_clear_state_and_leave_others_alone(lab: Lab, end: str) -> None:
    arms = [lab.arm(f"odd{at}", script) for at, (script, _, _) in enumerate(ODD[end])]
    lab.run("launch", *arms, lab.arm("good"), code=1 if end == "failed" else 0)
    runs = lab.status()
    for at, (_, state, reason) in enumerate(ODD[end]):
        assert runs[f"odd{at}-s0"]["state"] == state
        assert reason in runs[f"odd{at}-s0"]["reason"]
    assert (runs["good-s0"]["state"], runs["good-s0"]["points"]) == ("finished", 20)


def test_a_command_that_does_not_exist_is_a_failed_run(lab: Lab) -> None:
    missing = lab.arm("missing", command=["/nowhere/train", "--now"])
    lab.run("launch", missing, code=1)
    run = lab.status()["missing-s0"]
    assert run["state"] == "failed(spawn_failed)"
    assert "/nowhere/train" in run["reason"]


def test_values_that_explode_or_are_not_finite_abort_with_evidence(lab: Lab) -> None:
    slow = """
import time
for step in range(1, 400):
    print(f"step {step}/400 loss={LOSS}", flush=True)
    time.sleep(0.02)
"""
    lab.draws_reports = True
    nan = lab.arm("nan", slow.replace("{LOSS}", "{'1e400' if step > 5 else 1.0}"), steps=400)
    hot = lab.arm("hot", slow.replace("{LOSS}", "{1.0 * 1.2 ** max(0, step - 8)}"), steps=400)
    lab.run("launch", nan, hot)
    runs = lab.status()
    assert runs["nan-s0"]["state"] == "aborted(non_finite)"
    assert runs["hot-s0"]["state"] == "aborted(explosion)"
    for run in runs.values():
        assert run["health"] == "diverged"
        assert run["verdict"]["findings"][0]["evidence"]
        assert run["step"] < 200
    text = (lab.home / "lab" / "report" / "report.md").read_text()
    assert "non_finite" in text.replace("\\", "")
    resumed = lab.run("resume", runs["nan-s0"]["run"])
    assert "queued again" in resumed.stdout
    lab.until(lambda: lab.status()["nan-s0"]["state"] != "aborted(non_finite)", "the resumed run to move")


def test_a_study_keeps_its_terms_until_they_are_amended(lab: Lab) -> None:
    lab.run("launch", lab.arm("one"))
    other = lab.arm("two", policy={"detectors": {"explosion": "warn"}})
    refused = lab.run("launch", other, code=2)
    assert "policy.detectors.explosion" in refused.stderr
    assert "one.yaml" in refused.stderr
    assert "two.yaml" in refused.stderr
    assert set(lab.status()) == {"one-s0"}
    lab.run("launch", other, "--amend")
    assert lab.status()["two-s0"]["state"] == "finished"


def test_more_runs_than_slots_wait_for_their_turn(lab: Lab) -> None:
    arms = [lab.arm(f"a{index}") for index in range(3)]
    lab.run("launch", *arms, "--slots", "1", "--seeds", "0-1")
    runs = lab.status()
    assert {run["state"] for run in runs.values()} == {"finished"}
    assert {run["slot"] for run in runs.values()} == {"cpu0"}
    order = sorted(runs, key=lambda name: runs[name]["started"])
    assert order == ["a0-s0", "a1-s0", "a2-s0", "a0-s1", "a1-s1", "a2-s1"]


def test_a_killed_controller_is_replaced_and_no_point_is_lost_or_doubled(lab: Lab) -> None:
    arm = lab.arm("talker", steps=30)
    gate = gated(lab, str(arm), 15)
    lab.run("launch", arm, "--detach")
    lab.until(lambda: lab.status()["talker-s0"]["points"] == 15, "fifteen points")
    child = json.loads((gate.parent / "attempt-1" / "supervisor.json").read_text())["child"]["pid"]
    lab.kill_controller()
    gate.unlink()
    lab.until(lambda: (gate.parent / "attempt-1" / "exit.json").exists(), "the training to end by itself")
    assert lab.status()["talker-s0"]["points"] == 15
    assert json.loads((gate.parent / "attempt-1" / "supervisor.json").read_text())["child"]["pid"] == child
    lab.run("resume")
    run = lab.until_state("talker-s0", "finished")
    assert (run["points"], run["attempts"], run["rejected_lines"]) == (30, 1, 0)
    assert len(set(lab.points())) == len(lab.points()) == 30


def test_stop_resume_and_logs(lab: Lab) -> None:
    arm = lab.arm("talker", steps=30)
    gate = gated(lab, str(arm), 15)
    lab.run("launch", arm, "--detach")
    lab.until(lambda: lab.status()["talker-s0"]["points"] == 15, "fifteen points")
    assert "ambiguous" not in lab.run("stop", "lab/talker-s0", "--wait").stderr
    assert lab.status()["talker-s0"]["state"] == "cancelled"
    assert "nothing to stop" in lab.run("stop", "--all").stdout
    gate.unlink()
    lab.run("resume", "lab/talker-s0")
    run = lab.until_state("talker-s0", "finished")
    assert (run["attempts"], run["step"]) == (2, 30)
    assert "step 30/30" in lab.run("logs", run["run"][:4]).stdout
    lab.until(lambda: lab.controller_pid() is None, "the controller to end")
    assert "finished all its steps" in lab.run("resume", "lab/talker-s0", code=2).stdout
    assert "no run" in lab.run("logs", "nobody", code=2).stderr
    assert "there is no study" in lab.run("report", "nobody", code=2).stderr


def test_closing_the_terminal_or_ctrl_c_leaves_the_runs_alone(lab: Lab) -> None:
    arm = lab.arm("talker", steps=30)
    gate = gated(lab, str(arm), 15)
    leader, follower = pty.openpty()
    ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests under nohup passes that on
    viewer = lab.start("launch", arm, stdin=follower, start_new_session=True)
    signal.signal(signal.SIGHUP, ours)
    lab.until(lambda: lab.status().get("talker-s0", {}).get("points") == 15, "fifteen points")
    os.killpg(viewer.pid, signal.SIGHUP)
    os.close(leader)
    os.close(follower)
    viewer.communicate(timeout=60)
    second = lab.start("launch", arm)
    lab.until(lambda: second.stdout is not None and "watched" in second.stdout.readline(), "the viewer to watch")
    lab.until(lambda: second.stdout is not None and "running" in second.stdout.readline(), "the viewer to show the run")
    second.send_signal(signal.SIGINT)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 130
    assert "still running" in out + err
    assert lab.status()["talker-s0"]["state"] == "running"
    gate.unlink()
    assert lab.until_state("talker-s0", "finished")["points"] == 30


def test_secrets_reach_the_process_and_no_file(lab: Lab) -> None:
    lab.extra_environment["LAB_SECRET"] = "hunter2-hunter2"
    script = "import os; print('step 1/1 loss=%d' % len(os.environ['TOKEN']), flush=True)"
    arm = lab.arm("secret", script, steps=1, env={"TOKEN": {"from": "LAB_SECRET"}, "PLAIN": "text"})
    lab.run("launch", arm)
    assert lab.status()["secret-s0"]["latest"]["loss"] == 15
    assert [path for path, data in files_now(lab.home).items() if b"hunter2-hunter2" in data] == []
    del lab.extra_environment["LAB_SECRET"]
    refused = lab.run("launch", arm, "--fresh", code=2)
    assert "LAB_SECRET" in refused.stderr


def test_what_cannot_be_written_is_exit_three_and_starts_nothing(lab: Lab) -> None:
    arm = lab.arm("talker")
    lab.home.write_text("a file where the home should be")
    refused = lab.run("launch", arm, code=3)
    assert str(lab.home) in refused.stderr
    lab.home.unlink()
    assert str(lab.home) in lab.run("status", code=3).stderr


def test_a_later_provider_is_not_in_this_version(lab: Lab) -> None:
    assert "not in this version" in lab.run("launch", lab.arm("talker"), "--provider", "slurm", code=2).stderr
    assert not lab.home.exists()
