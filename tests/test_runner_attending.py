"""Attempts that hang, fall silent and come back: real processes, a clock that the test moves."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from provisioning.base import Handle, ProcessIdentity, Shell
from provisioning.local import LocalProvider
from provisioning.processes import is_alive
from runner.controller import Controller
from runner.detach import SUPERVISOR
from runner.home import Home
from runner.launching import Options, commit, prepare
from runner.store import requests, tables
from runner.store.database import reading
from runner.store.session import Session
from tests.fakes.lab import Lab
from tests.test_runner_waves import Quick, _Done

STUCK = """
import faulthandler, os, signal, time
from pathlib import Path
faulthandler.register(signal.SIGUSR1, file=2, all_threads=True, chain=False)
gate = Path(os.environ["RUNNER_RUN_DIR"]) / "go"
def stuck():
    while not gate.exists():
        time.sleep(0.01)
for step in range(1, 21):
    print(f"step {step}/20 loss={1.0 / step:.9f}", flush=True)
    time.sleep(0.03)
    if step == 15:
        stuck()
"""
DEADLINE_S = 60.0


class MovedClock(Quick):
    """Wall time is real; the time that never runs backwards is the test's."""

    def __init__(self) -> None:
        self.monotonic_s = 0.0

    def monotonic(self) -> float:
        return self.monotonic_s


class OtherContainer:
    """A real shell of a machine on which no process of ours can be seen, as from a second container."""

    hides = False

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shell, name)

    def is_alive(self, identity: ProcessIdentity) -> bool:
        return not self.hides and self._shell.is_alive(identity)

    def can_see(self, identity: ProcessIdentity) -> bool:
        return not self.hides


class OtherContainerProvider(LocalProvider):
    """This machine through such a shell."""

    def shell(self, handle: Handle) -> Any:
        return OtherContainer(super().shell(handle))


class Rig:
    """One home, one controller after another, and the clock of both."""

    def __init__(self, folder: Path) -> None:
        self.lab = Lab(folder, draws_reports=False)
        self.clock = MovedClock()
        self.controller: Controller | None = None

    def launch(self, script: str) -> None:
        self.launch_arm(self.lab.arm("A", script))

    def launch_arm(self, arm: Path) -> None:
        commit(prepare(Home(self.lab.home), [arm], Options()))
        self.start()

    def ask(self, kind: str, payload: dict[str, Any]) -> None:
        requests.ask(Home(self.lab.home), kind, payload)

    def start(self) -> None:
        if self.controller is not None:
            self.controller.close()
        session = Session(Home(self.lab.home).database, pid=os.getpid(), now=time.time())
        report: Callable[..., Any] = lambda *_: _Done()  # noqa: E731 - the report is not what is tested
        providers = {"local": OtherContainerProvider(str(SUPERVISOR), os.environ)}
        self.controller = Controller(Home(self.lab.home), session, providers, self.clock, dict(os.environ), report)

    def rounds(self, until: Callable[[], bool], advance_s: float = 0.02) -> None:
        assert self.controller is not None
        end = time.monotonic() + DEADLINE_S
        while not until():
            assert time.monotonic() < end, (self.run(), self.events())
            self.controller.step()
            self.clock.monotonic_s += advance_s
            time.sleep(0.01)

    def run(self) -> dict[str, Any]:
        return self.lab.status().get("A-s0") or {"state": "", "health": "", "step": 0}

    def events(self) -> list[str]:
        with reading(Home(self.lab.home)) as connection:
            return [row.what for row in connection.execute(select(tables.events).order_by(tables.events.c.id))]

    def attempt(self) -> Path:
        return next(self.lab.home.glob("*/*/attempt-1"))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    OtherContainer.hides = False
    found = Rig(tmp_path)
    yield found
    for gate in found.lab.home.glob("*/*"):
        if gate.is_dir() and (gate / "attempt-1").exists():
            (gate / "go").touch()
    OtherContainer.hides = False
    if found.controller is not None:
        found.controller.close()
    found.lab.clean_up()


def test_a_hang_is_seen_its_stacks_are_taken_once_and_progress_ends_it(rig: Rig) -> None:
    rig.launch(STUCK)
    rig.rounds(lambda: rig.run()["step"] == 15)
    rig.rounds(lambda: rig.run()["health"] == "hung", advance_s=10.0)
    assert json.loads((rig.attempt() / "dump.json").read_text()) == {"seq": 1}
    rig.rounds(lambda: "in stuck" in (rig.attempt() / "stderr.log").read_text())
    rig.start()
    started_s = rig.clock.monotonic_s
    rig.rounds(lambda: rig.clock.monotonic_s > started_s + 300, advance_s=10.0)
    assert rig.run()["health"] == "hung"
    assert json.loads((rig.attempt() / "dump.json").read_text()) == {"seq": 1}
    (rig.attempt().parent / "go").touch()
    rig.rounds(lambda: rig.run()["state"] == "finished")
    assert rig.run()["health"] == "ok"
    assert [what for what in rig.events() if what.startswith("liveness")] == ["liveness:hung"] * 2


def test_a_stopped_controller_accuses_nobody_when_it_wakes_up(rig: Rig) -> None:
    rig.launch(STUCK)
    rig.rounds(lambda: rig.run()["step"] == 15)
    for _ in range(3):
        rig.clock.monotonic_s += 8 * 3600.0
        assert rig.controller is not None
        rig.controller.step()
    assert rig.run()["health"] in ("ok", "unknown")
    assert not any(what.startswith("liveness") for what in rig.events())


def test_one_out_of_sight_lives_by_its_heartbeat_is_lost_in_silence_and_comes_back(rig: Rig) -> None:
    rig.launch(STUCK)
    rig.rounds(lambda: rig.run()["step"] == 15)
    supervisor = json.loads((rig.attempt() / "supervisor.json").read_text())["supervisor"]["pid"]
    OtherContainer.hides = True
    hidden_s = rig.clock.monotonic_s
    rig.rounds(lambda: rig.clock.monotonic_s > hidden_s + 150, advance_s=0.5)
    assert rig.run()["state"] == "running"
    os.kill(supervisor, signal.SIGSTOP)
    rig.rounds(lambda: rig.run()["state"] == "lost(silent)", advance_s=5.0)
    assert rig.run()["attempts"] == 1
    os.kill(supervisor, signal.SIGCONT)
    rig.rounds(lambda: rig.run()["state"] == "running", advance_s=0.5)
    (rig.attempt().parent / "go").touch()
    OtherContainer.hides = False
    rig.rounds(lambda: rig.run()["state"] == "finished")
    assert (rig.run()["attempts"], rig.run()["points"]) == (1, 20)


TWO_LOGS = """
import os, sys, time
from pathlib import Path
gate = Path(os.environ["RUNNER_RUN_DIR"]) / "go"
print("a library has something to say", file=sys.stderr, flush=True)
print({first!r}, flush=True)
while not gate.exists():
    time.sleep(0.01)
print("step 20/20 loss=1", flush=True)
"""


@pytest.mark.parametrize(("first", "warnings"), [("step 1/20 loss=1", 0), ("epoch one", 1)])
def test_other_words_in_one_of_two_logs_are_no_warning_but_no_metric_at_all_is(
    rig: Rig, first: str, warnings: int
) -> None:
    rig.launch(TWO_LOGS.format(first=first))
    rig.rounds(lambda: rig.run()["state"] == "running")
    said = [rig.attempt() / name for name in ("stdout.log", "stderr.log")]
    rig.rounds(lambda: all(path.exists() and path.read_bytes().endswith(b"\n") for path in said))
    rig.rounds(lambda: rig.clock.monotonic_s > 120, advance_s=1.0)
    (rig.attempt().parent / "go").touch()
    rig.rounds(lambda: rig.run()["state"] == "finished")
    assert rig.events().count("warning") == warnings


STUBBORN = """
import os, signal, sys, time
from pathlib import Path
run_dir = Path(os.environ["RUNNER_RUN_DIR"])
asked = []
def ask(*_):
    asked.append(1)
    (run_dir / f"asked-{len(asked)}").touch()
    if len(asked) == 2:
        sys.exit(75)
signal.signal(signal.SIGTERM, ask)
again = (run_dir / "again").exists()
(run_dir / "again").touch()
for step in range(1, 21):
    print(f"step {step}/20 loss=1", flush=True)
while not again:
    time.sleep(0.01)
"""


def test_a_process_that_outlives_its_supervisor_is_ended_and_its_run_goes_on(rig: Rig) -> None:
    rig.launch(STUBBORN)
    rig.rounds(lambda: rig.run()["step"] == 20)
    record = json.loads((rig.attempt() / "supervisor.json").read_text())
    os.kill(record["supervisor"]["pid"], signal.SIGKILL)
    rig.rounds(lambda: rig.run()["state"] == "finished")
    assert (rig.attempt().parent / "asked-2").exists()
    ended = json.loads((rig.attempt() / "exit.json").read_text())
    assert (ended["cause"], ended["leftover_pids"]) == ("killed", [])
    assert rig.run()["attempts"] == 2
    assert "failed(killed)" in rig.events()
    assert not is_alive(ProcessIdentity(**record["child"]))
