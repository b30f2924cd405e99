"""A host that is away for a while: its training goes on, nothing is concluded, and nobody else waits for it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from provisioning.base import HostLost
from provisioning.host_worker import HostWorker
from runner.home import Home
from runner.store import requests
from tests.fakes.attempts import until
from tests.fakes.ssh_lab import ANSWER_S, Rounds, SshLab, rounds, ssh_lab

BUSY_S = 4.0
"""What a round may take on a busy machine beside the wait for an answer."""

GATED = """
import os, sys, time
from pathlib import Path
last, pause_s, gate = int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
step = 0
while step < last or gate.exists():
    step += 1
    print(f"step {step}/{last} loss={1.0 / step:.9f}", flush=True)
    time.sleep(pause_s)
"""
"""Steps at a steady pace: so many of them, and more for as long as the gate (a file) is there."""

STEPS = 100_000
"""A budget that no training here uses up: its gate ends it, and its code says that all is well."""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[SshLab]:
    with ssh_lab(tmp_path, "ada", "bob") as found:
        yield found


@pytest.fixture
def here(lab: SshLab) -> Iterator[Rounds]:
    with rounds(lab) as found:
        yield found


def gate_of(lab: SshLab, name: str) -> Path:
    return lab.folder / f"gate-{name}"


def gated_arms(lab: SshLab, *names: str, pause_s: float = 0.02) -> list[Path]:
    """Arms whose training goes on until its gate is opened."""
    found = []
    for name in names:
        gate_of(lab, name).touch()
        found.append(lab.arm(name, GATED, "1", str(pause_s), str(gate_of(lab, name)), steps=STEPS))
    return found


def steps_there(lab: SshLab, host: str, name: str) -> int:
    """How far a training has come on its host, whether or not anybody knows."""
    lines = (lab.there(host, name) / "attempt-1" / "stdout.log").read_text().split("\n")[:-1]
    return len(lines)


def steps_soon(here: Rounds, count: int) -> None:
    """Rounds until so many further steps of A are known; far sooner than a file of gigabytes could have come."""
    step = here.lab.status()["A-s0"]["step"]
    here.until(lambda: here.lab.status()["A-s0"]["step"] > step + count, "further steps")


def is_away(lab: SshLab, run: str) -> bool:
    return lab.rows("SELECT health FROM runs WHERE run = ?", run) == [("unknown",)]


@pytest.mark.parametrize("how", ["refused", "hanging"])
def test_an_outage_costs_its_own_host_nothing_and_the_other_no_time(lab: SshLab, here: Rounds, how: str) -> None:
    here.launch(*gated_arms(lab, "A", "B"))
    here.until(lambda: min(run["step"] for run in lab.status().values()) > 5, "both trainings")
    on = {lab.host_of(name): name for name in ("A-s0", "B-s0")}
    away, near = on["ada"], on["bob"]
    away_dir, near_dir = (lab.status()[name]["run_dir"] for name in (away, near))
    before = len(lab.values(away_dir))
    here.took_s.clear()
    ada = lab.hosts["ada"]
    ada.stop() if how == "refused" else ada.signal_all(signal.SIGSTOP)
    arrivals: list[tuple[int, int]] = []  # (round, newest step here) of the other host's training

    def told() -> bool:
        arrivals.append((len(here.took_s), len(lab.values(near_dir))))
        return bool(lab.events("host_silent"))

    here.until(told, "the silence")
    assert is_away(lab, away_dir)
    silent_from = steps_there(lab, "ada", away)
    here.until(lambda: told() and steps_there(lab, "ada", away) > silent_from + 60, "60 further steps there")
    known = lab.status()[away]
    assert (known["state"], known["attempts"], known["health"]) == ("running", 1, "unknown")
    check_pace(here, arrivals)
    if how == "refused":
        ada.start()
    else:
        ada.signal_all(signal.SIGCONT)
    here.until(lambda: lab.events("host_answers"), "the host to answer again")
    assert not is_away(lab, away_dir)
    for name in "AB":
        gate_of(lab, name).unlink()
    here.until_ended()
    for name, run_dir in ((away, away_dir), (near, near_dir)):
        run = lab.status()[name]
        assert (run["state"], run["attempts"], run["sync"], run["rejected_lines"]) == ("finished", 1, "done", 0)
        steps = steps_there(lab, lab.host_of(name), name)
        assert lab.values(run_dir) == pytest.approx({step: 1.0 / step for step in range(1, steps + 1)}, abs=1e-8)
    assert len(lab.values(away_dir)) > before + 60
    assert len(lab.events("host_silent")) == len(lab.events("host_answers")) == 1
    states = [state for (state,) in lab.rows("SELECT what FROM events WHERE run = ? AND what IN "
              "('queued', 'lost', 'failed', 'aborted', 'preempted')", away_dir)]  # fmt: skip
    assert states == ["queued"]


def check_pace(here: Rounds, arrivals: list[tuple[int, int]]) -> None:
    """What the other host sends keeps coming while one is away, and a round waits for that one hardly ever."""
    check_rounds(here)
    news = [number for (number, steps), (_, earlier) in zip(arrivals[1:], arrivals, strict=False) if steps > earlier]
    gaps_s = [sum(here.took_s[one:other]) + 0.02 * (other - one) for one, other in pairwise(news)]
    # Several looks (0.05 s apart) and one wait for the silent host lie within this; on a busy machine everything takes
    # longer, the outage too.
    outage_s = sum(here.took_s) + 0.02 * len(here.took_s)
    assert max(gaps_s) < max(ANSWER_S + 1.0, outage_s / 2), f"nothing came for {max(gaps_s):.2f} of {outage_s:.2f} s"


def check_rounds(here: Rounds) -> None:
    """No round waits longer than for one answer, and hardly any so long."""
    longest = max(here.took_s)
    assert longest < ANSWER_S + BUSY_S, f"a round of {longest:.2f} s"
    long = [took for took in here.took_s if took > ANSWER_S / 2]
    # A first question that is not answered may be waited for; after it the host is known to be silent.
    assert len(long) <= max(3, len(here.took_s) / 10), f"{len(long)} of {len(here.took_s)} rounds waited: {long}"


def test_a_training_that_ended_while_its_host_was_away_is_settled_by_its_own_record(lab: SshLab, here: Rounds) -> None:
    here.launch(*gated_arms(lab, "A", "B"))
    here.until(lambda: min(run["step"] for run in lab.status().values()) > 5, "both trainings")
    lab.hosts["ada"].stop()
    away = next(name for name in ("A-s0", "B-s0") if lab.host_of(name) == "ada")
    here.until(lambda: lab.events("host_silent"), "the silence")
    for name in "AB":
        gate_of(lab, name).unlink()
    record = lab.there("ada", away) / "attempt-1" / "exit.json"
    here.until(record.exists, "its end there")
    for _ in range(20):
        here.step()
    assert lab.status()[away]["state"] == "running"
    lab.hosts["ada"].start()
    here.until_ended()
    for run in lab.status().values():
        assert (run["state"], run["attempts"], run["sync"]) == ("finished", 1, "done")
    assert lab.status()[away]["points"] == steps_there(lab, "ada", away)


def test_a_host_that_goes_while_a_run_is_staged_is_waited_for(lab: SshLab, here: Rounds) -> None:
    (arm,) = gated_arms(lab, "A")
    here.launch(arm)
    here.until(lambda: lab.rows("SELECT 1 FROM runs WHERE state = 'staging'"), "the staging")
    host = lab.host_of("A-s0")
    lab.hosts[host].stop()
    for _ in range(20):
        here.step()
    assert lab.status()["A-s0"]["attempts"] == 1
    lab.hosts[host].start()
    gate_of(lab, "A").unlink()
    here.until_ended()
    run = lab.status()["A-s0"]
    assert (run["state"], run["attempts"], run["sync"]) == ("finished", 1, "done")


def test_a_controller_that_was_killed_is_followed_by_one_that_goes_on_with_a_host_away(lab: SshLab) -> None:
    arms = gated_arms(lab, "A", "B", pause_s=0.05)
    with rounds(lab) as here:
        here.launch(*arms)  # its controller is let go at once
    lab.run("resume")
    lab.until(lambda: min((run["step"] for run in lab.status().values()), default=0) > 5, "both trainings")
    lab.kill_controller()
    ada = lab.hosts["ada"]
    away, near = (next(name for name in ("A-s0", "B-s0") if lab.host_of(name) == host) for host in ("ada", "bob"))
    ada.stop()
    step = lab.status()[near]["step"]
    lab.run("resume")
    lab.until(lambda: lab.status()[near]["step"] > step, "news of the host that answers")
    lab.until(lambda: lab.events("host_silent"), "the silence of the other")
    assert lab.status()[away]["state"] == "running"
    ada.start()
    lab.until(lambda: lab.events("host_answers"), "the host to answer again")
    for name in "AB":
        gate_of(lab, name).unlink()
    for name in ("A-s0", "B-s0"):
        run = lab.until_state(name, "finished")
        assert run["attempts"] == 1
        steps = steps_there(lab, lab.host_of(name), name)
        assert sorted(lab.values(run["run_dir"])) == list(range(1, steps + 1))
    lab.until(lambda: lab.controller_pid() is None, "the controller to end")
    assert [row[1:] for row in lab.attempts()] == [(1, "ended", "done")] * 2
    assert {state for (state,) in lab.rows("SELECT state FROM leases")} == {"released"}


def test_a_stop_reaches_a_host_that_was_away_when_a_person_wished_it(lab: SshLab, here: Rounds) -> None:
    here.launch(*gated_arms(lab, "A", "B"))
    here.until(lambda: min(run["step"] for run in lab.status().values()) > 5, "both trainings")
    away, near = (next(name for name in ("A-s0", "B-s0") if lab.host_of(name) == host) for host in ("ada", "bob"))
    lab.hosts["ada"].signal_all(signal.SIGSTOP)
    here.took_s.clear()
    wanted = [run["run_dir"] for run in lab.status().values()]
    requests.ask(Home(lab.home), "stop", {"runs": wanted, "reason": "stopped by a person"})
    here.until(lambda: lab.status()[near]["state"] == "cancelled", "the stop of the other host's training")
    here.until(lambda: lab.events("host_silent"), "the silence")
    check_rounds(here)
    assert lab.status()[away]["state"] == "stopping"
    before = steps_there(lab, "ada", away)
    here.until(lambda: steps_there(lab, "ada", away) > before, "further steps there")
    lab.hosts["ada"].signal_all(signal.SIGCONT)
    here.until_ended()
    run = lab.status()[away]
    assert (run["state"], run["attempts"], run["sync"]) == ("cancelled", 1, "done")
    assert run["points"] == steps_there(lab, "ada", away)


def test_all_that_piled_up_is_read_before_an_end_is_believed(
    lab: SshLab, here: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.launch(*gated_arms(lab, "A", pause_s=0.001))
    here.until(lambda: lab.status()["A-s0"]["step"] > 5, "the training")
    monkeypatch.setattr("provisioning.host_worker.ROUND_BYTES", 2_000)  # one look brings a small part
    host = lab.host_of("A-s0")
    lab.hosts[host].stop()
    here.until(lambda: lab.events("host_silent"), "the silence")
    until(lambda: steps_there(lab, host, "A-s0") > 400)
    gate_of(lab, "A").unlink()
    until((lab.there(host, "A-s0") / "attempt-1" / "exit.json").exists)
    lab.hosts[host].start()
    here.until_ended()
    run = lab.status()["A-s0"]
    assert (run["state"], run["sync"], run["rejected_lines"]) == ("finished", "done", 0)
    assert run["points"] == steps_there(lab, host, "A-s0")


def test_a_file_of_gigabytes_keeps_no_line_of_metrics_back(lab: SshLab, here: Rounds) -> None:
    here.launch(*gated_arms(lab, "A"))
    here.until(lambda: lab.status()["A-s0"]["step"] > 5, "the training")
    there = lab.there(lab.host_of("A-s0"), "A-s0")
    for name, size in (("a_cache.dat", 100 * 2**30), ("b_cache.dat", 20 * 2**20)):
        (there / name).touch()
        os.truncate(there / name, size)  # sparse; the first is more than a run may hold
    steps_soon(here, 50)
    gate_of(lab, "A").unlink()
    here.until_ended()
    run = lab.status()["A-s0"]
    assert (run["state"], run["sync"], run["attempts"]) == ("finished", "done", 1)
    assert run["points"] == steps_there(lab, lab.host_of("A-s0"), "A-s0")
    assert (lab.home / run["run_dir"] / "b_cache.dat").stat().st_size == 20 * 2**20
    (told,) = lab.event_data("synced")
    assert list(told["refused"]) == ["a_cache.dat"]


def test_a_connection_that_breaks_is_no_news_while_the_next_one_stands_soon(lab: SshLab) -> None:
    with rounds(lab, silent_s=20.0) as here:
        here.launch(*gated_arms(lab, "A"))
        here.until(lambda: lab.status()["A-s0"]["step"] > 5, "the training")
        for _ in range(2):
            host = lab.hosts[lab.host_of("A-s0")]
            host.stop()
            host.start()
            steps_soon(here, 10)
        assert lab.events("host_silent") == []
        assert lab.events("trouble") == []


class Moody:
    """An agent of a host that answers when a test says so."""

    def __init__(self) -> None:
        self.answers = True

    def ask(self, kind: TypeAdapter[Any], *_question: Any) -> Any:
        if not self.answers:
            raise HostLost("no route")
        return kind.validate_python(1)

    def close(self) -> None:
        pass


def test_a_host_that_nobody_asked_anything_was_not_silent() -> None:
    agent, now_s = Moody(), [1_000.0]
    made: Any = agent
    worker = HostWorker(made, silent_s=10.0, pause_s=0.0, monotonic=lambda: now_s[0] + time.monotonic())
    number = TypeAdapter(int)
    assert worker.ask(number, "memory_mib") == 1
    now_s[0] += 500.0
    agent.answers = False
    with pytest.raises(HostLost):
        worker.ask(number, "memory_mib")
    assert worker.silence() == "", "it has only just begun"
    now_s[0] += 11.0
    assert worker.silence() == "no route"
    agent.answers = True
    assert worker.ask(number, "memory_mib") == 1
    assert worker.silence() == ""
    worker.close()
    strange: Any = Moody()
    strange.answers = False
    worker = HostWorker(strange, silent_s=10.0, pause_s=0.0)
    with pytest.raises(HostLost):
        worker.ask(number, "memory_mib")
    assert worker.silence() == "no route", "it has never been heard"
    worker.close()
