"""Mishaps around processes: evaluations that cannot start or must end, retries after `resume --from best`, reports that
hang, slots whose memory changes all the time. Supervisors and children are real."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import runner.launching
from provisioning.base import HostLost, ProcessOwner
from provisioning.gpu_watch import GpuProcess
from runner.home import Home
from runner.records import Policy, RunState
from runner.reporting import Reporting
from runner.store import changes, requests
from tests.fakes.arms import trainer_arm
from tests.fakes.lab import Lab
from tests.fakes.stored_study import StoredStudy
from tests.test_runner_gpu_slots import Rig as GpuRig
from tests.test_runner_mishaps import Clock, Rig, elsewhere, here, quiet_arm

INTERPRETER = f"""#!{sys.executable} -IS
import json, os, signal, sys, time
from pathlib import Path
run_dir = Path(os.environ["RUNNER_RUN_DIR"])
verb, words = sys.argv[3], sys.argv[4:]
number = int(words[words.index("--attempt") + 1])
start = int(words[words.index("--from-step") + 1]) if "--from-step" in words else None
(run_dir / f"asked-{{number}}").write_text(" ".join([verb, *words]))
def write(step, **values):
    with (run_dir / f"attempt-{{number}}" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({{"step": step, "time": 100.0 + step, **values}}) + "\\n")
"""
"""Stands for the interpreter of a trainer arm: what it is asked to do it writes down, then it does what a test says."""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    found = Rig(tmp_path)
    yield found
    found.stop()
    found.stored.close()


def trained(rig: Rig, body: str, **values: Any) -> str:
    """A run of a trainer whose first attempt has ended and left checkpoints at steps 50 and 60; 50 was the better."""
    python = rig.home.root / "python"
    python.write_text(INTERPRETER + body)
    python.chmod(0o700)
    arm = trainer_arm(environment={"python": str(python), "setup": None}, policy=Policy(autopsy_s=0.0))
    run = rig.stored.run(arm, **values)
    rig.attempt(run, here(), phase="ended", exit={"code": 75, "cause": "stopped"}, stop_reason="why", ended=1.0)
    rig.ends(run, 75, "stopped")
    rig.stored.points(run, 1, "val/loss", {50: 1.0, 60: 2.0})
    for step in (50, 60):
        (rig.home.root / run / "checkpoints" / f"step_{step}").mkdir(parents=True)
    return run


def aborted(rig: Rig, body: str, **values: Any) -> str:
    """A run that a rule stopped; it has saved, and its last evaluation is due."""
    return trained(rig, body, state=RunState.STOPPING, rule="explosion", reason="the loss exploded", **values)


DIES_ONCE = """
if number == 2:
    if {announces}:
        write(start, kind="event", event="resumed")
    os.kill(os.getpid(), signal.SIGKILL)
write(100, kind="train", **{{"train/loss": 1.0}})
"""


@pytest.mark.parametrize(("announces", "again"), [(True, "--resume"), (False, "--resume --from-step 50")])
def test_a_retry_after_a_resume_from_the_best_does_not_throw_away_what_came_since(
    rig: Rig, announces: bool, again: str
) -> None:
    run = trained(rig, DIES_ONCE.format(announces=announces), state=RunState.FAILED, rule="x")
    requests.ask(rig.home, "resume", {"run": run, "from": "best"})
    rig.start()
    rig.until(lambda: rig.states()[run] == "finished")
    asked = [(rig.home.root / run / f"asked-{number}").read_text() for number in (2, 3)]
    assert asked[0].endswith("--attempt 2 --resume --from-step 50")
    assert asked[1].endswith(f"--attempt 3 {again}")
    assert "failed(killed)" in rig.events()


def test_an_evaluation_that_cannot_be_started_keeps_no_aborted_run_from_its_end(rig: Rig) -> None:
    run = aborted(rig, "")
    rig.folder(run, 2).write_text("a file where the folder of the attempt should be")
    rig.start()
    rig.until(lambda: rig.states()[run] == "aborted(explosion)")
    said = rig.runs()[run]["reason"]
    assert said.startswith("the loss exploded (its final evaluation ended with it could not be started (")
    assert str(rig.folder(run, 2)) in said
    assert len(rig.events("trouble")) == 1
    assert not rig.start().step().open
    assert rig.runs()[run]["attempts"] == 2


EVALUATES = """
(run_dir / "evaluating").touch()
time.sleep(30)
"""


def test_a_person_may_end_the_last_evaluation_and_the_run_stays_aborted(rig: Rig) -> None:
    run = aborted(rig, EVALUATES)
    rig.start()
    rig.until(lambda: (rig.home.root / run / "evaluating").exists())
    request = requests.ask(rig.home, "stop", {"runs": [run], "reason": "stopped by a person"})
    rig.until(lambda: rig.states()[run] == "aborted(explosion)")
    assert rig.answer(request)
    assert json.loads((rig.folder(run, 2) / "stop.json").read_text())["reason"] == "stopped by a person"
    assert json.loads((rig.folder(run, 2) / "exit.json").read_text())["cause"] == "stopped"
    said = rig.runs()[run]["reason"]
    assert said == "the loss exploded (its final evaluation ended with killed by SIGTERM)"
    assert rig.events("stop") == ["its final evaluation ends: stopped by a person"]
    assert rig.runs()[run]["attempts"] == 2


def test_a_stop_before_the_last_evaluation_skips_it(rig: Rig) -> None:
    run = aborted(rig, EVALUATES)
    requests.ask(rig.home, "stop", {"runs": [run], "reason": "stopped by a person"})
    rig.start()
    rig.until(lambda: rig.states()[run] == "aborted(explosion)")
    assert rig.runs()[run]["reason"] == "the loss exploded (no final evaluation: stopped by a person)"
    assert rig.runs()[run]["attempts"] == 1


def mentions(root: object, text: str) -> list[str]:
    """Where objects of this project that `root` reaches hold a text: a dotted path for each place."""
    found, seen, todo = [], {id(root): root}, deque([("", root)])
    while todo:
        path, one = todo.popleft()
        if isinstance(one, str) and text in one:
            found.append(path)
        for name, part in _parts(one):
            if id(part) not in seen or isinstance(part, str):
                seen[id(part)] = part
                todo.append((f"{path}.{name}", part))
    return found


def _parts(one: object) -> Iterator[tuple[str, object]]:
    if isinstance(one, Mapping):
        yield from (("key", key) for key in one)
        yield from ((str(key)[:40], value) for key, value in one.items())
    elif isinstance(one, list | tuple | set | frozenset | deque):
        yield from (("item", part) for part in one)
    elif type(one).__module__.split(".")[0] in ("runner", "provisioning"):
        slots = (name for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ()))
        yield from getattr(one, "__dict__", {}).items()
        yield from ((name, getattr(one, name)) for name in slots if hasattr(one, name))


def test_nothing_is_remembered_of_a_run_that_has_ended(rig: Rig) -> None:
    stays = rig.stored.run(quiet_arm(arm="stays"), state=RunState.RUNNING)
    ends = rig.stored.run(quiet_arm(arm="ends"), state=RunState.RUNNING, stop_wanted="by hand")
    for run in (stays, ends):
        rig.attempt(run, here())
        (rig.folder(run) / "stdout.log").write_text("nothing that anybody could read\n" * 600)
    rig.faults["stop.json"] = HostLost("the disk is full")
    controller = rig.start()
    rig.rounds(2)
    rig.faults.clear()
    rig.rounds(2)
    assert len({path.rsplit(".", 1)[0] for path in mentions(controller, ends)}) > 5
    rig.ends(ends, 75, "stopped")
    rig.until(lambda: rig.states() == {stays: "running", ends: "cancelled"})
    rig.rounds(2)
    assert mentions(controller, ends) == []
    assert mentions(controller, stays)


def test_nothing_is_remembered_of_a_run_that_was_cancelled_before_it_began(rig: Rig) -> None:
    stays, ends = (rig.stored.run(quiet_arm(arm=name), state=RunState.RUNNING) for name in ("stays", "ends"))
    rig.attempt(stays, here())
    with rig.stored.session.transaction() as connection:
        connection.exec_driver_sql("UPDATE runs SET state = 'staging', stop_wanted = 'by hand' WHERE run = ?", (ends,))
    rig.stored.attempt(ends, 1)  # a controller that was killed between the row and the process left this
    controller = rig.start()
    rig.until(lambda: rig.states() == {stays: "running", ends: "cancelled"})
    rig.rounds(2)
    assert mentions(controller, ends) == []


def test_nothing_is_remembered_of_a_run_that_came_and_went_in_one_round(rig: Rig) -> None:
    stays = rig.stored.run(quiet_arm(arm="stays"), state=RunState.RUNNING)
    ends = rig.stored.run(quiet_arm(arm="ends"), state=RunState.CANCELLED)
    rig.attempt(stays, here())
    controller = rig.start()
    rig.rounds(2)
    requests.ask(rig.home, "resume", {"run": ends, "from": "last"})
    requests.ask(rig.home, "stop", {"runs": [ends], "reason": "by hand"})
    rig.rounds(2)
    assert rig.states() == {stays: "running", ends: "cancelled"}
    assert rig.events("queued")
    assert mentions(controller, ends) == []


def test_an_attempt_that_fell_silent_is_forgotten_when_its_run_has_ended_by_another_one(rig: Rig) -> None:
    stays, ends = (rig.stored.run(quiet_arm(arm=name), state=RunState.RUNNING) for name in ("stays", "ends"))
    rig.attempt(stays, here())
    rig.attempt(ends, elsewhere())
    controller = rig.start()
    rig.until(lambda: rig.states()[ends] == "lost(silent)", seconds=10.0)
    requests.ask(rig.home, "resume", {"run": ends, "from": "last"})
    rig.until(lambda: rig.states() == {stays: "running", ends: "finished"})
    rig.rounds(2)
    assert rig.runs()[ends]["attempts"] == 2
    assert mentions(controller, ends) == []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GpuRig]:
    """A machine with one GPU on which somebody else computes."""
    found = GpuRig(Lab(tmp_path, draws_reports=False))
    monkeypatch.setitem(runner.launching.PROVIDERS, "local", found.provider)  # type: ignore[arg-type]
    monkeypatch.setattr("runner.reporting.history.studies_without_report", lambda *_: {})
    owners = {pid: ProcessOwner("anna", f"python train-{pid}.py") for pid in (42, 43)}
    monkeypatch.setattr("provisioning.local.owner_of", owners.get)
    yield found
    found.controller.close()
    found.lab.clean_up()


def test_amounts_that_change_are_no_news_to_a_waiting_run_and_another_reason_is(machine: GpuRig) -> None:
    machine.launch("one")

    def held_by(pid: int, mib: int) -> None:
        machine.driver.used_mib, machine.driver.processes = mib + 10, (GpuProcess(pid, mib),)
        machine.clock.ahead_s += 3  # a look at the GPUs holds for less
        machine.controller.step()

    for mib in (9_000, 9_001, 15_500, 800, 12_000):
        held_by(42, mib)
    assert [re.sub(r".*(pid \d+).* holds ([\d,]+) MiB.*", r"\1 \2", said) for said in machine.events("waiting")] == [
        "pid 42 9,000"
    ]
    held_by(43, 12_000)
    assert "pid 43 (anna: python train-43.py) holds 12,000 MiB" in machine.events("waiting")[-1]
    assert len(machine.events("waiting")) == 2
    assert machine.states() == ["queued"]
    run = "lab/one-s0"
    assert any("_waiting" in path for path in mentions(machine.controller, run))
    machine.driver.used_mib, machine.driver.processes = 10, ()
    machine.clock.ahead_s += 3
    machine.step_until(lambda states: states == ["finished"])
    machine.controller.step()
    assert not any("_waiting" in path for path in mentions(machine.controller, run))


@dataclass
class Desk:
    """A study of one run that has ended, and the reports of it: each is the next of `children`."""

    stored: StoredStudy
    run: str
    clock: Clock = field(default_factory=Clock)
    children: list[Any] = field(default_factory=list)
    asked: int = 0

    def report(self, _home: Home, study: str) -> Any:
        assert study == "trial"
        self.asked += 1
        child = self.children.pop(0)
        if isinstance(child, OSError):
            raise child
        return child

    def reporting(self) -> Reporting:
        """What a new controller has."""
        clock = self.clock
        return Reporting(self.stored.session, self.stored.home, clock.now, clock.monotonic, self.report, limit_s=60.0)

    def change(self) -> None:
        """The run goes on and ends again."""
        with self.stored.session.transaction() as connection:
            for state in (RunState.QUEUED, RunState.CANCELLED):
                changes.move_run(connection, self.run, state, "a person wished it", self.clock.now())

    def told(self) -> list[str]:
        with self.stored.session.reading() as connection:
            rows = connection.exec_driver_sql("SELECT reason FROM events WHERE what = 'report' ORDER BY id")
            return [reason for (reason,) in rows]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    stored = StoredStudy(Home(tmp_path / "runs"))
    yield Desk(stored, stored.run(trainer_arm(), state=RunState.CANCELLED, changed=1_000_000.0))
    stored.close()


def done() -> subprocess.Popen[bytes]:
    """A child that has written its report."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child


def test_a_report_that_cannot_be_started_is_told_once_and_tried_after_the_next_change(desk: Desk) -> None:
    desk.children = [OSError(11, "Resource temporarily unavailable"), done()]
    for reporting in (desk.reporting(), desk.reporting()):
        assert [reporting.step() for _ in range(3)] == [False] * 3
    (said,) = desk.told()
    assert "Resource temporarily unavailable" in said
    assert "runner report trial" in said
    assert desk.asked == 1
    desk.clock.advance(10.0)
    desk.change()
    reporting.step()
    assert desk.asked == 2
    assert desk.told()[1].startswith("written to ")


def test_a_report_that_takes_too_long_is_killed_and_keeps_nobody_waiting(desk: Desk) -> None:
    child = subprocess.Popen(["sleep", "300"])
    desk.children = [child]
    reporting = desk.reporting()
    desk.clock.wall_s = 0.0
    assert [reporting.step() for _ in range(3)] == [True] * 3
    desk.clock.monotonic_s = 59.0
    assert reporting.step()
    assert child.poll() is None
    desk.clock.monotonic_s = 61.0
    assert not reporting.step()
    assert child.returncode == -signal.SIGKILL
    assert not reporting.step()
    (said,) = desk.told()
    assert "longer than 60 s" in said


def test_a_wall_clock_that_is_set_back_makes_no_second_report_and_keeps_no_later_one_away(desk: Desk) -> None:
    desk.children = [done() for _ in range(3)]
    desk.reporting().step()
    assert desk.asked == 1
    desk.clock.advance(-3600.0)
    for _ in range(3):
        desk.reporting().step()
    assert desk.asked == 1
    desk.change()  # before the report, says the clock
    desk.reporting().step()
    assert desk.asked == 2
    desk.clock.advance(2 * 3600.0)
    desk.reporting().step()
    assert desk.asked == 2
