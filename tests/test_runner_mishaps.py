"""What a controller finds after a mishap: stops that nobody was told, runs that fell silent, requests it cannot serve.

The rows are those that an earlier controller left; the process of an attempt is this one, or one that only another
container could see. The clock is the test's.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from provisioning.base import Handle, HostLost, ProcessIdentity, Shell
from provisioning.local import LocalProvider
from provisioning.processes import can_see, identity_of
from runner.controller import Controller, run_rounds
from runner.detach import SUPERVISOR
from runner.errors import Fenced, HomeError
from runner.home import Home
from runner.liveness import Limits
from runner.records import RunState
from runner.spec.models import DEFAULT_LIMIT, ResolvedArm
from runner.store import changes, requests, tables
from runner.store.database import reading
from runner.store.requests import Answer
from runner.store.session import Session
from runner.store.status import read_status
from tests.fakes.arms import command_arm
from tests.fakes.stored_study import StoredStudy
from tests.test_runner_controller import Killed

DEADLINE_S = 60.0
WORDS = {"source": "regex", "pattern": r"step (?P<step>\d+) loss=(?P<loss>\S+)"}


class Clock:
    """Both clocks are the test's; `meanwhile` is what happens while a controller waits for its next round."""

    def __init__(self) -> None:
        self.wall_s = 1_000_000.0
        self.monotonic_s = 0.0
        self.meanwhile: Callable[[], None] = lambda: None

    def now(self) -> float:
        return self.wall_s

    def monotonic(self) -> float:
        return self.monotonic_s

    def wait(self, seconds: float, descriptors: Collection[int] = ()) -> frozenset[int]:
        self.advance(seconds)
        self.meanwhile()
        return frozenset()

    def advance(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds


class FaultyShell:
    """The real shell of this machine, which cannot write files of some names."""

    def __init__(self, shell: Shell, faults: Mapping[str, BaseException]) -> None:
        self._shell = shell
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shell, name)

    def write(self, path: str, data: bytes, *, is_durable: bool = True) -> None:
        if Path(path).name in self._faults:
            raise self._faults[Path(path).name]
        self._shell.write(path, data, is_durable=is_durable)


class FaultyProvider(LocalProvider):
    """This machine through such a shell. `faults` names the files and what comes of writing them."""

    def __init__(self, faults: Mapping[str, BaseException]) -> None:
        super().__init__(str(SUPERVISOR), os.environ)
        self._faults = faults

    def shell(self, handle: Handle) -> Any:
        return FaultyShell(super().shell(handle), self._faults)


class Child:
    """A report that is being written until `code` is set."""

    code: int | None = 0

    def poll(self) -> int | None:
        return self.code


class Rig:
    """One home, the rows in it, and one controller after another."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder / "runs")
        self.stored = StoredStudy(self.home)
        self.clock = Clock()
        self.faults: dict[str, BaseException] = {}
        self.report = Child()
        self.controller: Controller | None = None
        (self.home.root / ".snapshots" / "c0de").mkdir(parents=True)

    def attempt(self, run: str, identity: ProcessIdentity, number: int = 1, phase: str = "live", **values: Any) -> None:
        """The row and the folder of an attempt whose supervisor and training are one process."""
        values = {"started": self.clock.wall_s, **values}
        self.stored.attempt(run, number, phase=phase, identity=asdict(identity), **values)
        self.put(run, "supervisor.json", {"supervisor": asdict(identity), "child": asdict(identity)}, number)

    def put(self, run: str, name: str, document: Any, number: int = 1) -> None:
        """Write a file of an attempt, all at once as a supervisor does."""
        folder = self.folder(run, number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "part").write_text(json.dumps(document))
        (folder / "part").replace(folder / name)

    def folder(self, run: str, number: int = 1) -> Path:
        return self.home.root / run / f"attempt-{number}"

    def ends(self, run: str, code: int = 0, cause: str = "exited", number: int = 1) -> None:
        """The supervisor's record of an end."""
        self.put(run, "exit.json", {"code": code, "signal": None, "cause": cause}, number)

    def start(self) -> Controller:
        """The next controller; nothing of the one before is left but what it wrote."""
        self.stop()
        self.stored.close()
        session = Session(self.home.database, pid=os.getpid(), now=self.clock.now())
        providers = {"local": FaultyProvider(self.faults)}
        report: Any = lambda *_: self.report  # noqa: E731
        self.controller = Controller(self.home, session, providers, self.clock, dict(os.environ), report)
        return self.controller

    def stop(self) -> None:
        """The controller dies: its pipes and its connection are closed, nothing else."""
        if self.controller is not None:
            self.controller.close()
        self.controller = None

    def rounds(self, count: int, seconds: float = 10.0) -> None:
        """So many rounds, with so much time after each."""
        assert self.controller is not None
        for _ in range(count):
            self.controller.step()
            self.clock.advance(seconds)

    def until(self, is_so: Callable[[], Any], seconds: float = 0.0) -> Any:
        """Rounds until something holds, at most DEADLINE_S of real time."""
        end = time.monotonic() + DEADLINE_S
        while not (found := is_so()):
            assert time.monotonic() < end, [self.events(what="trouble"), self.states()]
            self.rounds(1, seconds)
            time.sleep(0.01)
        return found

    def states(self) -> dict[str, str]:
        return {run: row["state"] for run, row in self.runs().items()}

    def runs(self) -> dict[str, dict[str, Any]]:
        """What a status says, by run folder."""
        with reading(self.home) as connection:
            document = read_status(connection, self.clock.now())
        return {run["run_dir"]: run for study in document["studies"] for run in study["runs"]}

    def events(self, what: str | None = None) -> list[str]:
        """The reasons of the events of a kind; without one, the kinds of all events."""
        events = tables.events
        query = select(events.c.what if what is None else events.c.reason).order_by(events.c.id)
        with reading(self.home) as connection:
            return list(connection.execute(query if what is None else query.where(events.c.what == what)).scalars())

    def answer(self, request: int) -> Answer | None:
        with reading(self.home) as connection:
            return requests.read_answer(connection, request)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    found = Rig(tmp_path)
    yield found
    found.stop()
    found.stored.close()


def here() -> ProcessIdentity:
    """A process that lives: this one."""
    identity = identity_of(os.getpid())
    assert identity is not None
    return identity


def elsewhere() -> ProcessIdentity:
    """A process of another container: from here it cannot be told whether it lives."""
    identity = replace(here(), init_start_ticks=here().init_start_ticks + 1)
    assert not can_see(identity)
    return identity


def quiet_arm(**changes: Any) -> ResolvedArm:
    return command_arm(metrics=WORDS, **changes)


@pytest.mark.parametrize("fault", [HostLost("the disk is full"), Killed()], ids=["a full disk", "a kill"])
def test_a_stop_that_was_decided_and_not_told_is_told_again(rig: Rig, fault: BaseException) -> None:
    run = rig.stored.run(quiet_arm(), state=RunState.RUNNING, stop_wanted="by hand")
    rig.attempt(run, here())
    rig.faults["stop.json"] = fault
    controller = rig.start()
    order, control = rig.folder(run) / "stop.json", rig.home.root / run / "control.json"
    if isinstance(fault, Killed):
        with pytest.raises(Killed):
            controller.step()
        rig.start()
    else:
        rig.rounds(3)
    assert rig.states() == {run: "stopping"}
    assert not order.exists()
    rig.faults.clear()
    rig.rounds(1)
    assert json.loads(order.read_text())["reason"] == "by hand"
    assert json.loads(control.read_text())["stop"] == "checkpoint"
    told = [path.stat().st_ino for path in (order, control)]
    rig.rounds(3)
    assert [path.stat().st_ino for path in (order, control)] == told, "told over and over again"
    rig.ends(run, 75, "stopped")
    rig.rounds(2)
    assert rig.states() == {run: "cancelled"}
    assert len(rig.events("stopping")) == 1
    assert len(rig.events("trouble")) == (1 if isinstance(fault, HostLost) else 0)


def test_a_run_that_is_lost_in_silence_comes_back_by_a_sign_of_life_and_by_nothing_else(rig: Rig) -> None:
    run = rig.stored.run(quiet_arm(), state=RunState.LOST, rule="silent")
    rig.attempt(run, elsewhere(), phase="silent", ended=rig.clock.wall_s)
    rig.put(run, "heartbeat", 1)
    for _ in range(2):  # the heartbeat that is there says nothing: each controller sees it for the first time
        rig.start()
        rig.rounds(60)
        assert rig.states() == {run: "lost(silent)"}
    assert "running" not in rig.events()
    rig.put(run, "heartbeat", 2)
    rig.rounds(2)
    assert rig.states() == {run: "running"}
    assert rig.runs()[run]["attempts"] == 1


def test_an_end_that_came_to_light_while_nobody_looked_settles_a_lost_run(rig: Rig) -> None:
    run = rig.stored.run(quiet_arm(), state=RunState.LOST, rule="silent")
    rig.attempt(run, elsewhere(), phase="silent", ended=rig.clock.wall_s)
    rig.ends(run)
    run_rounds(rig.start(), rig.home, rig.clock, lambda: False)
    assert rig.states() == {run: "finished"}
    assert [what for what in rig.events() if "liveness" not in what] == ["warning", "running", "finished", "report"]


def test_a_controller_does_not_end_while_a_run_lives_that_came_back(rig: Rig) -> None:
    run = rig.stored.run(quiet_arm(), state=RunState.LOST, rule="silent")
    rig.attempt(run, elsewhere(), phase="silent", ended=rig.clock.wall_s)
    rig.report.code = None  # only the report of the study keeps the controller from ending at once
    alive: list[float] = []

    def meanwhile() -> None:
        rig.clock.advance(10.0)
        rig.put(run, "heartbeat", rig.clock.monotonic_s)
        if rig.states() == {run: "running"}:
            rig.report.code = 0
            alive.append(rig.clock.monotonic_s)
        if len(alive) == 10:
            rig.ends(run)

    rig.clock.meanwhile = meanwhile
    run_rounds(rig.start(), rig.home, rig.clock, lambda: rig.clock.monotonic_s > 3600.0)
    assert len(alive) >= 10
    assert rig.states() == {run: "finished"}


def test_silence_ends_the_meter_and_a_sign_of_life_takes_that_back(rig: Rig) -> None:
    budget = {"run": DEFAULT_LIMIT, "study": {**DEFAULT_LIMIT, "max_hours": 4.0}, "reserve": 0.0}
    lost, other = (
        rig.stored.run(quiet_arm(arm=name, budget=budget), state=RunState.RUNNING) for name in ("lost", "other")
    )
    for run, identity in ((lost, elsewhere()), (other, here())):
        rig.attempt(run, identity, started=rig.clock.wall_s - 3600.0)
    rig.start()
    rig.until(lambda: rig.states() == {lost: "lost(silent)", other: "running"}, seconds=10.0)
    silent_for_s = rig.clock.wall_s - 1_000_000.0
    assert silent_for_s < Limits().silent_s + 60.0
    rig.clock.advance(1.5 * 3600.0)  # 1 h of the one and 2.5 h of the other, and not 2.5 h of both
    rig.rounds(3)
    assert rig.states() == {lost: "lost(silent)", other: "running"}
    rig.put(lost, "heartbeat", 1)
    rig.rounds(4)
    assert {row["rule"] for row in rig.runs().values()} == {"budget"}
    assert rig.states() == {lost: "stopping", other: "stopping"}
    assert rig.events("liveness:silent")[-1] == "over"


def test_a_request_that_breaks_us_is_refused_and_the_others_are_served(rig: Rig) -> None:
    run = rig.stored.run(quiet_arm(), state=RunState.RUNNING)
    rig.attempt(run, here())
    rig.start()
    broken = requests.ask(rig.home, "stop", {"reason": "it names no runs at all"})
    good = requests.ask(rig.home, "stop", {"runs": [run], "reason": "by hand"})
    rig.rounds(1)
    refused, accepted = rig.answer(broken), rig.answer(good)
    assert refused is not None
    assert not refused.accepted
    assert "our own mistake, KeyError: 'runs'" in refused.message
    assert str(rig.home.log) in refused.message
    assert accepted == Answer(True, "stopping 1 run")
    assert rig.states() == {run: "stopping"}


@pytest.mark.parametrize("ended_by", [Fenced, HomeError])
def test_a_home_that_is_ours_no_more_ends_the_controller_and_leaves_the_request(
    rig: Rig, tmp_path: Path, ended_by: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    rig.stored.run(quiet_arm(), state=RunState.FINISHED)
    controller = rig.start()
    request = requests.ask(rig.home, "stop", {"reason": "it names no runs at all"})
    if ended_by is Fenced:
        Session(rig.home.database, pid=os.getpid(), now=rig.clock.now()).close()
    else:
        rig.home.database.rename(tmp_path / "elsewhere.db")
        rig.home.database.write_bytes((tmp_path / "elsewhere.db").read_bytes())
    with pytest.raises(ended_by):
        controller.step()
    assert capsys.readouterr().err == "", "it is no mistake of ours"
    if ended_by is Fenced:
        assert rig.answer(request) is None


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_stop_that_was_decided_before_the_silence_is_how_the_run_ends(rig: Rig, kind: str) -> None:
    """It is revived when its end comes to light, and is still the run that a rule stopped."""
    reason = "loss is nan at step 5"
    run = rig.stored.run(quiet_arm(), state=RunState.STOPPING, rule="non_finite", reason=reason)
    with rig.stored.session.transaction() as connection:
        changes.add_event(connection, 3.0, "stopping(non_finite)", reason, run=run)
    number = 1
    if kind == "evaluate":
        rig.stored.attempt(run, 1, phase="ended", exit={"code": 75, "signal": None, "cause": "stopped"})
        number = 2
    stop = {"stop_reason": reason} if kind == "train" else {}
    rig.attempt(run, elsewhere(), number, kind=kind, **stop)
    rig.start()
    rig.until(lambda: "lost" in rig.states()[run], seconds=10.0)
    rig.ends(run, 75 if kind == "train" else 0, "stopped" if kind == "train" else "exited", number)
    rig.rounds(6)
    assert rig.states()[run] == "aborted(non_finite)"
    assert rig.runs()[run]["reason"].startswith(reason)


def test_a_run_that_was_given_up_is_not_started_beside_a_process_that_lives_after_all(rig: Rig) -> None:
    run = rig.stored.run(quiet_arm(), state=RunState.LOST, rule="silent")
    rig.attempt(run, elsewhere(), phase="silent", ended=rig.clock.wall_s)
    rig.put(run, "heartbeat", 1)
    rig.start()
    rig.rounds(1)
    rig.put(run, "heartbeat", 2)
    requests.ask(rig.home, "resume", {"run": run, "from": "last"})
    rig.rounds(3)
    assert rig.runs()[run]["attempts"] == 1
    assert rig.runs()[run]["reason"] == "waits: attempt 1 of it still gives signs of life"
    rig.ends(run)
    rig.until(lambda: rig.runs()[run]["attempts"] == 2, seconds=10.0)


def test_reports_that_an_earlier_version_told_of_are_not_written_again(rig: Rig) -> None:
    studies = [f"old{number}" for number in range(3)]
    for study in studies:
        rig.stored.run(quiet_arm(study=study))
        with rig.stored.session.transaction() as connection:
            changes.add_event(connection, 2_000_000.0, "report", "written to x", study=study, data={"code": 0})
    rig.start()
    rig.rounds(2)
    assert len(rig.events("report")) == len(studies)
