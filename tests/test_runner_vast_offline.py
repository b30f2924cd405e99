"""The controller's machine loses its network for six hours: what was rented goes on, and comes home."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.fakes.ssh_lab import QuickClock
from tests.fakes.vast import FaultPlan, Rates
from tests.fakes.vast_lab import VastLab, vast_lab, vast_rounds

HOURS = 6.0
STEPS = 120
WRITER = f"""
import time
for step in range(1, {STEPS} + 1):
    print(f"step {{step}}/{STEPS} loss={{1.0 / step:.9f}}", flush=True)
    time.sleep(0.05)
"""


@dataclass
class Ahead(QuickClock):
    """The machine's clocks, some hours ahead."""

    ahead_s: float = 0.0

    def now(self) -> float:
        return time.time() + self.ahead_s

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[VastLab]:
    with vast_lab(tmp_path) as found:
        yield found


def servers(port: int) -> list[psutil.Process]:
    """The sshd that listens on a port, and its sessions; nothing that they run."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.name().startswith("sshd") and any(
                one.status == psutil.CONN_LISTEN and one.laddr.port == port
                for one in process.net_connections(kind="tcp")
            ):
                return [process, *(each for each in process.children(True) if each.name().startswith("sshd"))]
    raise AssertionError(f"no sshd listens on {port}")


@pytest.mark.long
def test_six_hours_without_a_network(lab: VastLab, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Ahead()
    monkeypatch.setattr("tests.fakes.vast_lab.QuickClock", lambda: clock)
    arms = [lab.arm(name, WRITER, steps=STEPS, resources={"gpus": 1}) for name in ("one", "two")]
    with vast_rounds(lab) as rounds:
        rounds.launch(*arms, wanted={"hours": 8.0})
        lab.until(
            lambda: rounds.step() and min((run["step"] for run in lab.status().values()), default=0) >= 5, "both to run"
        )
        (machine,) = lab.ours()
        assert machine.endpoint is not None
        assert machine.endpoint.direct_port is not None
        before = {name: run["step"] for name, run in lab.status().items()}
        began, plan = clock.now(), lab.fake.plan
        with lab.fake.lock:
            lab.fake.plan = FaultPlan(0, Rates(drop=1.0))
        listener, *sessions = servers(machine.endpoint.direct_port)
        listener.suspend()
        for session in sessions:
            session.kill()
        there = lab.home_there(machine) / ".armature" / "runs" / lab.home_id
        folders = [there / run["run_dir"] for run in lab.status().values()]

        def has_ended_there() -> bool:
            rounds.step()
            if clock.now() - began < HOURS * 3600.0:
                clock.ahead_s += 300.0
                lab.clock.skip(300.0)
            return all((folder / "attempt-1/exit.json").exists() for folder in folders)

        lab.until(has_ended_there, "the trainings to end there")
        lab.until(lambda: has_ended_there() and clock.now() - began >= HOURS * 3600.0, "six hours to pass")
        away = lab.status()
        assert {run["state"] for run in away.values()} == {"running"}, away
        assert all(run["step"] < STEPS for run in away.values()), (before, away)
        assert len(lab.ours()) == 1
        listener.resume()
        with lab.fake.lock:
            lab.fake.plan = plan
        lab.until(
            lambda: rounds.step() and all(run["state"] == "finished" for run in lab.status().values()), "both to finish"
        )
        lab.until(lambda: rounds.step() and all(not one.is_open for one in lab.leases()), "the machine to go back")
    runs = lab.status()
    assert {name: (run["attempts"], run["points"], run["sync"]) for name, run in runs.items()} == {
        "one-s0": (1, STEPS, "done"),
        "two-s0": (1, STEPS, "done"),
    }
    lab.check_nothing_is_left()
