"""Runs on rented machines, from the command line to the bill: one machine, everything home, and nothing left behind."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.home import Home, create_home
from runner.launching import ready_database
from runner.renting.decide import Limits
from runner.renting.leases import State
from runner.renting.watch import WATCH_S
from runner.store import requests
from runner.store.session import Session
from tests.fakes.ssh_lab import keeping_python
from tests.fakes.vast import Boot, Fault
from tests.fakes.vast.command import offers
from tests.fakes.vast_lab import KEY, RENT, VastLab, VastRounds, step_all, vast_lab, vast_rounds
from tests.test_runner_trainer_arms import TINY

NOTING = """
import json, os, sys
from pathlib import Path
(Path(os.environ["RUNNER_RUN_DIR"]) / "seen.json").write_text(json.dumps(dict(os.environ)))
for step in range(1, 61):
    print(f"step {step}/60 loss={1.0 / (step + len(sys.argv[1])):.9f}", flush=True)
"""
"""Writes down its environment, then trains."""

GATED = """
import sys, time
from pathlib import Path
for step in range(1, 61):
    print(f"step {step}/60 loss={1.0 / step:.9f}", flush=True)
    while step == 30 and not Path(sys.argv[1]).exists():
        time.sleep(0.02)
"""
"""Stands still at step 30 until its file is there."""

CREATE, DESTROY = "/api/v0/asks/{id}/", "/api/v0/instances/{id}/"
LAUNCH_S = 240.0  # several processes that import torch, on a machine that may be busy
TOLERANCE = 0.01

# ---- machines that go away: rounds in this process -------------------------------------------------------------------


PACED = """
obey_at_any_pace = quick_trainer.obey
def obey(run_dir, attempt, seen, step, metrics):
    quick_trainer.PAUSE_S = 0.3 if step >= int(pathlib.Path({pace!r}).read_text()) else 0.01
    return obey_at_any_pace(run_dir, attempt, seen, step, metrics)
quick_trainer.obey = obey
"""
"""From the step on that the file names, a training is so slow that it does not end before a test has done its part."""


def pace(lab: VastLab, fast_until: int) -> None:
    (lab.folder / "pace").write_text(str(fast_until))


def trainer_arm(lab: VastLab) -> Path:
    """A training whose best checkpoint is that of step 40; it writes one every 20 steps."""
    python = keeping_python(lab.folder, 40, 20)
    program = lab.folder / "keeping.py"
    before, end = program.read_text().rsplit("sys.exit(", 1)
    program.write_text(f"{before}{PACED.format(pace=str(lab.folder / 'pace'))}sys.exit({end}")
    pace(lab, 70)
    document = {
        "study": "lab",
        "arm": "T",
        "seeds": [0],
        "primary": {"metric": "val/recon_rmse", "direction": "min"},
        "policy": {"detectors": {"regress": "warn"}},
        "resources": {"gpus": 0},
        "environment": {"python": str(python)},
        "trainer": {**TINY, "steps": 200},
    }
    path = lab.folder / "T.yaml"
    path.write_text(json.dumps(document))
    return path


def gated_arm(lab: VastLab, name: str = "T") -> Path:
    return lab.arm(name, GATED, str(lab.folder / "go"), steps=60, resources={"gpus": 1})


def step(lab: VastLab) -> int:
    return int(lab.status()["T-s0"]["step"])


def attempts(lab: VastLab) -> list[tuple[Any, ...]]:
    """(number, machine, phase, sync) of the attempts of the one run."""
    query = "SELECT a.attempt, l.host, a.phase, a.sync FROM attempts AS a JOIN leases AS l ON l.id = a.lease"
    return lab.rows(f"{query} ORDER BY a.attempt")


def come_back_with_fewer_gpus(lab: VastLab) -> None:
    """The host is there again and its container starts anew; one of the GPUs is not there any more."""
    (machine,) = lab.ours()
    with lab.fake.lock:
        lab.fake.world.change(replace(machine, boot=replace(machine.boot, trouble="fewer_gpus")))
        lab.fake.world.happen(machine.id, "back")


def states(lab: VastLab) -> list[str]:
    """The states that the run has gone through."""
    known = "('queued', 'running', 'preempted', 'cancelled', 'finished', 'failed', 'lost')"
    return [what for (what,) in lab.rows(f"SELECT what FROM events WHERE run != '' AND what IN {known} ORDER BY id")]


def resumed(lab: VastLab) -> list[int]:
    return [at for (at,) in lab.rows("SELECT step FROM events WHERE what = 'resumed' ORDER BY id")]


def is_over(lab: VastLab) -> bool:
    """Whether the run has ended, every machine is gone, and the provider has said what each cost."""
    if lab.status()["T-s0"]["state"] != "finished" or any(one.is_open for one in lab.leases()):
        return False
    return all(one.charged_usd is not None for one in lab.leases() if one.host)


def each(homes: dict[str, VastRounds], **holds: Callable[[], bool]) -> None:
    """Rounds of all homes until what is said of some of them holds."""
    step_all({name: (rounds, holds.get(name, lambda: True)) for name, rounds in homes.items()}, LAUNCH_S)


def check_bills(lab: VastLab) -> None:
    """What the provider charged is what it counted itself."""
    charged = sum(one.charged_usd or 0.0 for one in lab.leases())
    assert charged == pytest.approx(sum(lab.fake.usd_by_label().values()), rel=TOLERANCE)
    assert charged > 0.0


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[dict[str, VastRounds]]:
    """A home for each thing that may befall a machine; what is waited for counts for all of them."""
    with ExitStack() as stack:
        found = {}
        for name in ("destroy", "outbid", "offline", "fewer"):
            (tmp_path / name).mkdir()
            # What the service charges is rounded to a tenth of a cent.
            dear = [replace(one, gpu_usd_per_h=one.gpu_usd_per_h * 100, min_bid_usd_per_h=50.0) for one in offers(4, 0)]
            lab = stack.enter_context(vast_lab(tmp_path / name, dear))
            limits = Limits(halted_s=15.0, offline_s=2.0 if name == "offline" else 60.0, quiet_s=2.0)
            found[name] = stack.enter_context(vast_rounds(lab, limits))
        yield found


@pytest.mark.long
def test_runs_go_on_when_their_machine_is_paused_away_or_gone(homes: dict[str, VastRounds]) -> None:
    paused, away, gone, fewer = (homes[name].lab for name in ("outbid", "offline", "destroy", "fewer"))
    dear = ("budget.study.max_usd=1000",)
    homes["outbid"].launch(trainer_arm(paused), wanted={"hours": 1.0, "is_interruptible": True}, sets=dear)
    homes["offline"].launch(gated_arm(away), sets=dear)
    homes["destroy"].launch(trainer_arm(gone), sets=dear)
    homes["fewer"].launch(trainer_arm(fewer), sets=dear)
    each(
        homes, outbid=lambda: step(paused) >= 45, offline=lambda: step(away) == 30, destroy=lambda: step(gone) >= 65,
        fewer=lambda: step(fewer) >= 45,
    )  # fmt: skip
    (first,) = paused.ours()
    paused.happen("outbid")
    (away.folder / "go").touch()
    away.happen("offline")
    fewer.happen("offline")
    pace(fewer, 1000)
    # What the third has done until now comes home; what it does then is lost with another machine.
    run_dir = str(gone.status()["T-s0"]["run_dir"])
    requests.ask(Home(gone.home), "stop", {"runs": [run_dir], "reason": "stopped by a person"})
    each(
        homes,
        outbid=lambda: paused.leases()[0].stage == "halted",
        offline=lambda: "preempted" in states(away),
        destroy=lambda: gone.status()["T-s0"]["sync"] == "done" and not gone.leases()[0].is_open,
        fewer=lambda: fewer.leases()[0].stage == "offline",
    )
    come_back_with_fewer_gpus(fewer)
    assert paused.status()["T-s0"]["state"] == "running"  # a paused container may go on as it was
    paused.happen("win")
    pace(paused, 1000)
    at_home = step(gone)
    pace(gone, at_home + 50)
    requests.ask(Home(gone.home), "resume", {"run": run_dir, "from": "last"})
    each(homes, destroy=lambda: bool(resumed(gone)) and step(gone) >= at_home + 45)
    gone.happen("destroy")
    pace(gone, 1000)
    each(homes, **{name: lambda lab=rounds.lab: is_over(lab) for name, rounds in homes.items()})

    # A new container on the same disk: what was done before the last checkpoint is not done again.
    assert [row[1:] for row in attempts(paused)] == [(str(first.id), "gone", "done"), (str(first.id), "ended", "done")]
    assert resumed(paused)[0] >= 40
    assert states(paused) == ["queued", "running", "preempted", "queued", "running", "finished"]
    # A command begins anew, elsewhere.
    assert [row[2:] for row in attempts(away)] == [("gone", "waived"), ("ended", "done")]
    assert states(away) == ["queued", "running", "preempted", "queued", "running", "finished"]
    assert len(away.values(str(away.status()["T-s0"]["run_dir"]))) == 60
    assert [said for said in away.events("waived") if "is gone" in said]
    # What came home is what the last machine began with; the torn rest of the second is not taken for a checkpoint.
    assert [row[2:] for row in attempts(gone)] == [("ended", "done"), ("gone", "waived"), ("ended", "done")]
    assert len({row[1] for row in attempts(gone)}) == 3
    assert resumed(gone) == [at_home, at_home]
    # It is of no use any more and can be talked to: all that policy keeps comes home before it goes.
    assert [row[2:] for row in attempts(fewer)] == [("gone", "done"), ("ended", "done")]
    assert resumed(fewer)[0] >= 40
    assert [said for said in fewer.events("renting:trouble") if "GPU" in said and "brought home first" in said]
    for lab, machines in ((paused, 1), (away, 2), (gone, 3), (fewer, 2)):
        check_trained_in_small(lab)
        check_bills(lab)
        lab.check_nothing_is_left(machines)


def check_trained_in_small(lab: VastLab) -> None:
    """A training made one step before its clock counted; a command that cannot is said to have made none."""
    tried = lab.home / lab.status()["T-s0"]["run_dir"] / "preflight" / "attempt-1" / "exit.json"
    assert tried.exists() == (not lab.events("no_preflight"))
    assert not tried.exists() or json.loads(tried.read_text())["code"] == 0


# ---- by the command line ---------------------------------------------------------------------------------------------


def four_arms(lab: VastLab) -> None:
    """Four arms in an account that holds two instances more: somebody's, and another home's."""
    for label in ("somebody", "armature/another-home/7"):
        lab.fake.plant(label)
    arms = [lab.arm(name, NOTING, "x" * size, steps=60, resources={"gpus": 1}) for size, name in enumerate("ABCD", 1)]
    lab.draws_reports = True
    done = launched(lab, *arms)
    lab.draws_reports = False
    assert "report of lab: written to" in done.stderr
    assert "machine 20000003 is given back: " in done.stderr
    lab.until_released()


def check_four_arms_shared_one_machine_and_came_home(lab: VastLab) -> None:
    runs = lab.status()
    assert {run["state"] for run in runs.values()} == {"finished"}
    assert [row[1:] for row in lab.attempts()] == [(1, "ended", "done")] * 4
    (machine,) = lab.ever()
    assert {run["slot"] for run in runs.values()} == {f"{machine.id}:gpu{number}" for number in range(4)}
    masks = []
    for run in runs.values():
        folder = lab.home / run["run_dir"]
        seen = json.loads((folder / "seen.json").read_text())
        masks.append(seen["CUDA_VISIBLE_DEVICES"])
        assert json.loads((folder / "attempt-1" / "exit.json").read_text())["code"] == 0
        assert len((folder / "attempt-1" / "stdout.log").read_text().splitlines()) == 60
        assert len(lab.values(run["run_dir"])) == 60
        assert seen["HOME"] == str(lab.home_there(machine))
    assert sorted(masks) == ["0", "1", "2", "3"]
    (lease,) = lab.leases()
    assert (lease.state, lease.host, lease.gpus) == (State.RELEASED, str(machine.id), 4)
    assert "destroyed" in lease.proof
    lab.check_nothing_is_left(1)
    check_the_meter(lab)
    check_that_others_were_not_touched(lab)


def check_the_meter(lab: VastLab) -> None:
    """What we counted is what it costs."""
    (lease,) = lab.leases()
    charged_usd = lab.fake.usd_by_label()[lease.label]
    # Our meter sees a change at the next look at the list: each of the two ends is known to half of what lies between.
    sure_usd = lease.terms.prices.usd_per_h * WATCH_S / 3600.0
    assert lease.bill.metered_usd == pytest.approx(charged_usd, abs=sure_usd)
    assert 0.0 < charged_usd < lease.terms.ceiling_usd < lease.max_usd == 40.0


def check_that_others_were_not_touched(lab: VastLab) -> None:
    foreign = {one.id for one in lab.fake.existing()}
    assert len(foreign) == 2
    for number in foreign:
        happened = {change.event for change in lab.fake.world.history[number]}
        assert happened <= {"create", "change", "contract", "load", "run"}
        assert not [seen.path for seen in lab.fake.requests if str(number) in seen.path]


def a_controller_that_is_killed(lab: VastLab) -> None:
    """It dies while its order is on the way, while the machine boots, while the run is at work, while the machine is
    given back. Each time another one goes on."""
    lab.boots(Boot(contract_s=0.1, created_s=0.1, loading_s=1e6))
    lab.fake.plan.script("PUT", CREATE, Fault(latency_s=3.0))
    accepted = launch_by_typing(lab, "rent", gated_arm(lab), "--detach")
    assert accepted.returncode == 0, accepted.stderr
    assert (accepted.stdout + accepted.stderr).count("1 x RTX 4090") == 1
    lab.until(lambda: asked(lab, "PUT", CREATE), "the order")
    lab.kill_controller()
    assert [(one.state, one.host) for one in lab.leases()] == [(State.INTENDED, "")]
    lab.run("resume")
    lab.until(lambda: lab.leases()[0].stage == "loading", "the machine to boot")
    lab.kill_controller()
    (machine,) = lab.ours()
    assert str(machine.id) == lab.leases()[0].host
    lab.happen("run")
    lab.run("resume")
    lab.until(lambda: step(lab) == 30, "the run to be at work")
    lab.kill_controller()
    (lab.folder / "go").touch()
    lab.fake.plan.script("DELETE", DESTROY, Fault("server_error", latency_s=3.0))
    lab.run("resume")
    lab.until(lambda: asked(lab, "DELETE", DESTROY), "the machine to be given back")
    lab.kill_controller()
    assert lab.leases()[0].state == State.OWNED
    assert lab.leases()[0].because
    lab.run("resume")
    lab.until_released()


def launch_by_typing(lab: VastLab, word: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A launch by somebody at a terminal who is shown the plan and types a word."""
    ours, theirs = pty.openpty()
    options = [one for one in RENT if one != "--yes"]
    process = lab.start("launch", *arguments, *options, stdin=theirs)
    os.close(theirs)
    os.write(ours, f"{word}\n".encode())
    done = ended(process)
    os.close(ours)
    return done


def launched(lab: VastLab, *arms: Path) -> subprocess.CompletedProcess[str]:
    """A launch on one rented machine, to its end."""
    done = ended(lab.start("launch", *arms, *RENT))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{lab.log()}"
    return done


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=LAUNCH_S)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def asked(lab: VastLab, method: str, template: str) -> int:
    return lab.fake.counts()[f"{method} {template}"]


def check_that_one_machine_was_enough(lab: VastLab) -> None:
    assert lab.status()["T-s0"]["state"] == "finished"
    assert [row[2:] for row in attempts(lab)] == [("ended", "done")]
    assert len(lab.values(str(lab.status()["T-s0"]["run_dir"]))) == 60
    assert asked(lab, "PUT", CREATE) == 1
    lab.check_nothing_is_left(1)


def gc_of_what_is_left(lab: VastLab) -> None:
    """An instance under a label of this home that no lease of it holds, and three that are not ours."""
    refused = launch_by_typing(lab, "yes", gated_arm(lab))
    assert refused.returncode == 2
    assert "nothing was rented" in refused.stderr
    left = lab.fake.plant(f"armature/{lab.home_id}/77")
    foreign = [lab.fake.plant(label) for label in ("somebody", "armature/another-home/77", None)]
    done = lab.run("gc")
    assert "0 machines are held for runs" in done.stdout
    assert all(f"{one.id} (" in done.stdout.split("never touched: ")[1] for one in foreign)
    assert str(left.id) not in done.stdout
    again = lab.run("gc", "--json")
    assert json.loads(again.stdout)["accepted"]
    assert KEY not in done.stdout + again.stdout + done.stderr + again.stderr


def check_that_only_ours_was_given_back(lab: VastLab) -> None:
    assert {one.label for one in lab.fake.existing()} == {"somebody", "armature/another-home/77", None}
    (told,) = lab.events("released")
    assert f"armature/{lab.home_id}/77" in told
    assert "it carries this home's label, and no lease of this home holds it" in told
    assert asked(lab, "DELETE", DESTROY) == 1
    assert asked(lab, "PUT", CREATE) == 0
    lab.fake.assert_clean()


STORIES: dict[Callable[[VastLab], None], Callable[[VastLab], None]] = {
    four_arms: check_four_arms_shared_one_machine_and_came_home,
    a_controller_that_is_killed: check_that_one_machine_was_enough,
    gc_of_what_is_left: check_that_only_ours_was_given_back,
}
"""What is done by the command line, and what must be so afterwards."""


@pytest.mark.long
def test_what_is_rented_by_the_command_line_is_used_and_given_back(tmp_path: Path) -> None:
    with ExitStack() as stack:
        # Commands mostly wait: all stories are told at once, each in an account and a home of its own.
        labs = {}
        for story in STORIES:
            (tmp_path / story.__name__).mkdir()
            labs[story] = stack.enter_context(vast_lab(tmp_path / story.__name__))
            new_home(labs[story])
        threads = stack.enter_context(ThreadPoolExecutor(len(STORIES)))
        told = {story: threads.submit(story, lab) for story, lab in labs.items()}
        for story, check in STORIES.items():
            told[story].result(LAUNCH_S)
            check(labs[story])


def new_home(lab: VastLab) -> None:
    """A home that has had a controller."""
    home = Home(lab.home)
    create_home(home)
    ready_database(home)
    Session(home.database, pid=1, now=0.0).close()
