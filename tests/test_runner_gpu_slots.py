"""Rounds of the controller on a machine with one GPU that a test plays: who gets it, when, and when nobody does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

import runner.launching
from provisioning import Setting
from provisioning.base import ProcessOwner
from provisioning.gpu_watch import GpuProcess, GpuReading
from provisioning.gpus import Gpu, GpuSurvey
from provisioning.local import LocalProvider
from runner.controller import Controller
from runner.detach import SUPERVISOR
from runner.errors import InfrastructureError
from runner.home import Home
from runner.launching import Options, commit, prepare
from runner.quarantine import RELEASE_WITHIN_S, REPROBE_S
from runner.store import tables
from runner.store.database import reading
from runner.store.session import Session
from runner.store.status import read_status
from tests.fakes.lab import Lab

UUID = "GPU-aa"


@dataclass
class OneGpu:
    """What the driver says; a test changes it."""

    used_mib: int = 10
    processes: tuple[GpuProcess, ...] = ()

    def survey(self) -> GpuSurvey:
        return GpuSurvey((Gpu(UUID, 0, "card", 24_000),))

    def read(self, uuids: Sequence[str]) -> Mapping[str, GpuReading | str]:
        return {uuid: GpuReading(uuid, self.used_mib, self.processes) for uuid in uuids}


@dataclass
class Clock:
    """The real clocks, set forward by a test."""

    ahead_s: float = 0.0

    def now(self) -> float:
        return time.time() + self.ahead_s

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s

    def wait(self, seconds: float, descriptors: Collection[int] = ()) -> frozenset[int]:
        time.sleep(min(seconds, 0.01))
        return frozenset()


@dataclass
class Rig:
    """A home whose machine has one GPU, and its controller."""

    lab: Lab
    driver: OneGpu = field(default_factory=OneGpu)
    clock: Clock = field(default_factory=Clock)

    def provider(self, setting: Setting) -> LocalProvider:
        visible = {name: value for name, value in setting.environment.items() if name != "CUDA_VISIBLE_DEVICES"}
        return LocalProvider(setting.supervisor_path, visible, driver=self.driver, monotonic=self.clock.monotonic)

    def start(self) -> None:
        home = Home(self.lab.home)
        session = Session(home.database, pid=os.getpid(), now=self.clock.now())
        made: Any = self.provider(Setting(str(SUPERVISOR), os.environ, self.lab.home))
        environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        self.controller = Controller(home, session, {"local": made}, self.clock, environment, _no_report)

    def launch(self, *names: str, **options: Any) -> None:
        arms = [self.lab.arm(name, steps=2, resources={"gpus": 1, "colocate": "off"}) for name in names]
        commit(prepare(Home(self.lab.home), arms, Options(**options)))
        self.start()

    def step_until(self, is_so: Callable[[list[str]], bool]) -> list[str]:
        deadline = time.monotonic() + 60
        while True:
            found = self.controller.step()
            states = self.states()
            if is_so(states):
                return states
            assert time.monotonic() < deadline, f"{states}, open: {found.open}"
            self.controller.wait(0.01)

    def states(self) -> list[str]:
        with self._reading() as connection:
            document = read_status(connection, self.clock.now())
        return [run["state"] for study in document["studies"] for run in study["runs"]]

    def events(self, what: str) -> list[str]:
        with self._reading() as connection:
            return list(
                connection.execute(select(tables.events.c.reason).where(tables.events.c.what == what)).scalars()
            )

    def _reading(self) -> Any:
        return reading(Home(self.lab.home))


def _no_report(_home: Home, _study: str) -> Any:
    raise AssertionError("no report in these tests")


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    found = Rig(Lab(tmp_path, draws_reports=False))
    monkeypatch.setitem(runner.launching.PROVIDERS, "local", found.provider)  # type: ignore[arg-type]
    monkeypatch.setattr("runner.reporting.history.studies_without_report", lambda *_: {})
    yield found
    found.controller.close()
    found.lab.clean_up()


def test_the_next_run_waits_until_the_memory_of_the_last_is_back(rig: Rig) -> None:
    rig.launch("one", "two")
    rig.step_until(lambda states: states == ["starting", "queued"] or states[0] in ("running", "finished"))
    rig.driver.used_mib = 900  # below what an idle GPU may show: only its value from before tells
    rig.clock.ahead_s += 3
    rig.step_until(lambda states: states == ["finished", "queued"])
    for _ in range(3):
        assert rig.controller.step().open
        assert rig.states() == ["finished", "queued"]
    rig.driver.used_mib = 200
    rig.clock.ahead_s += 3
    rig.step_until(lambda states: states == ["finished", "finished"])
    assert rig.events("quarantine") == []


def test_a_slot_that_keeps_its_memory_is_quarantined_over_a_kill_and_comes_back(rig: Rig) -> None:
    rig.launch("one", "two")
    rig.step_until(lambda states: states[0] != "queued")
    rig.driver.used_mib = 900  # below what an idle GPU may show: only its value from before tells
    rig.clock.ahead_s += 3
    rig.step_until(lambda states: states == ["finished", "queued"])
    rig.clock.ahead_s += RELEASE_WITHIN_S
    rig.controller.step()
    assert len(rig.events("quarantine")) == 1
    rig.controller.close()
    rig.start()
    rig.controller.step()
    assert rig.states() == ["finished", "queued"]
    rig.driver.used_mib = 10
    rig.clock.ahead_s += REPROBE_S
    rig.step_until(lambda states: states == ["finished", "finished"])
    assert len(rig.events("quarantine_lifted")) == 1


def test_a_launch_is_refused_by_name_and_shares_when_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provisioning.local.owner_of", {42: ProcessOwner("anna", "python train.py")}.get)
    rig.driver.used_mib, rig.driver.processes = 9_010, (GpuProcess(42, 9_000),)
    with pytest.raises(InfrastructureError, match=r"pid 42 \(anna: python train.py\) holds 9,000 MiB; --share-gpus"):
        rig.launch("one")
    assert not rig.lab.home.exists()
    rig.launch("one", share_gpus=True)
    rig.step_until(lambda states: states == ["finished"])


def test_a_waiting_run_starts_when_the_stranger_has_gone(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provisioning.local.owner_of", {42: ProcessOwner("anna", "python train.py")}.get)
    rig.launch("one")
    rig.driver.used_mib, rig.driver.processes = 9_010, (GpuProcess(42, 9_000),)
    for _ in range(3):
        rig.controller.step()
    assert rig.states() == ["queued"]
    (reason,) = rig.events("waiting")
    assert "pid 42 (anna: python train.py) holds 9,000 MiB" in reason
    rig.driver.used_mib, rig.driver.processes = 10, ()
    rig.clock.ahead_s += 3
    rig.step_until(lambda states: states == ["finished"])
