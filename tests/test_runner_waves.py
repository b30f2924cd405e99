"""Queue, barriers and retries with a real database and real processes, one round at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from provisioning.base import Handle, Shell, Spawned
from provisioning.local import LocalProvider
from runner.accept import barrier
from runner.controller import Controller
from runner.detach import SUPERVISOR
from runner.errors import SpecError
from runner.home import Home
from runner.launching import Options, commit, prepare
from runner.plan import Intent, PlannedRun
from runner.store import tables
from runner.store.session import Session
from tests.fakes.lab import Lab

FAILS_ONCE = """
import os, sys
from pathlib import Path
run_dir = Path(os.environ["RUNNER_RUN_DIR"])
print("step 1/1 loss=1", flush=True)
if not (run_dir / "seen").exists():
    (run_dir / "seen").touch()
    os.kill(os.getpid(), 9)
"""


class CountingShell:
    """A real shell that notes how many attempts each call spawned."""

    def __init__(self, shell: Shell, calls: list[int]) -> None:
        self._shell = shell
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shell, name)

    def spawn(self, launch_specs: Sequence[Mapping[str, Any]]) -> tuple[Spawned, ...]:
        self._calls.append(len(launch_specs))
        return self._shell.spawn(launch_specs)


class CountingProvider(LocalProvider):
    """This machine, with a shell that counts."""

    def __init__(self, calls: list[int]) -> None:
        super().__init__(str(SUPERVISOR), os.environ)
        self._calls = calls

    def shell(self, handle: Handle) -> Any:
        return CountingShell(super().shell(handle), self._calls)


class Quick:
    """Real clocks, short waits."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float, descriptors: Collection[int] = ()) -> frozenset[int]:
        time.sleep(min(seconds, 0.01))
        return frozenset()


class _Done:
    def poll(self) -> int:
        return 0


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path, draws_reports=False)
    yield found
    found.clean_up()


def work(lab: Lab, calls: list[int]) -> None:
    """A controller in this process, round by round, until nothing is open."""
    home = Home(lab.home)
    session = Session(home.database, pid=os.getpid(), now=time.time())
    report: Callable[..., Any] = lambda *_: _Done()  # noqa: E731 - the report is not what is tested
    found = Controller(home, session, {"local": CountingProvider(calls)}, Quick(), dict(os.environ), report)
    deadline = time.monotonic() + 60
    while found.step().open:
        assert time.monotonic() < deadline
        found.wait(0.01)
    assert found.let_go()
    found.close()


def launch(lab: Lab, *arms: Path, **options: Any) -> None:
    commit(prepare(Home(lab.home), list(arms), Options(slots=2, **options)))


def started(lab: Lab) -> list[str]:
    """Arms in the order in which they were placed."""
    session = Session(Home(lab.home).database, pid=0, now=0.0)
    with session.reading() as connection:
        rows = connection.execute(
            select(tables.runs.c.arm)
            .join(tables.events, tables.events.c.run == tables.runs.c.run)
            .where(tables.events.c.what == "placed")
            .order_by(tables.events.c.id)
        ).all()
    session.close()
    return [row.arm for row in rows]


def test_the_first_wave_is_spawned_in_one_call_and_the_rest_as_slots_come_free(lab: Lab) -> None:
    calls: list[int] = []
    launch(lab, *(lab.arm(name, steps=2) for name in "abcd"))
    work(lab, calls)
    assert calls[0] == 2
    assert sum(calls) == 4
    assert started(lab) == ["a", "b", "c", "d"]


def test_require_makes_every_seed_start_together(lab: Lab) -> None:
    calls: list[int] = []
    required = {"gpus": 0, "colocate": "require"}
    launch(lab, *(lab.arm(name, steps=2, seeds=[0, 1], resources=required) for name in "ab"))
    work(lab, calls)
    assert calls == [2, 2]


def test_off_starts_each_as_soon_as_it_can(lab: Lab) -> None:
    calls: list[int] = []
    alone = {"gpus": 0, "colocate": "off"}
    launch(lab, *(lab.arm(name, steps=2, resources=alone) for name in "ab"))
    work(lab, calls)
    assert calls == [1, 1]


def test_require_is_refused_when_a_wave_cannot_hold_all_arms_of_a_seed(lab: Lab) -> None:
    required = {"gpus": 0, "colocate": "require"}
    arms = [lab.arm(name, resources=required) for name in "abc"]
    with pytest.raises(SpecError, match="3 arms share seed 0; this host has room for 2 of them at once"):
        prepare(Home(lab.home), arms, Options(slots=2))
    assert not lab.home.exists()


def test_a_later_launch_of_higher_priority_goes_first(lab: Lab) -> None:
    commit(prepare(Home(lab.home), [lab.arm("slow", steps=2)], Options(slots=1)))
    commit(prepare(Home(lab.home), [lab.arm("urgent", steps=2, study="other")], Options(slots=1, priority=1)))
    work(lab, [])
    assert started(lab) == ["urgent", "slow"]


def test_a_killed_attempt_is_tried_again_and_its_failure_is_kept(lab: Lab) -> None:
    launch(lab, lab.arm("once", FAILS_ONCE, steps=1))
    work(lab, [])
    (run,) = lab.status().values()
    assert (run["state"], run["attempts"]) == ("finished", 2)
    session = Session(Home(lab.home).database, pid=0, now=0.0)
    with session.reading() as connection:
        attempts = connection.execute(select(tables.attempts).order_by(tables.attempts.c.attempt)).all()
        events = connection.execute(select(tables.events.c.what, tables.events.c.reason)).all()
    session.close()
    assert [attempt.failure for attempt in attempts] == ["killed", None]
    assert any(event.what == "queued" and "retry 1 of 2 after killed" in event.reason for event in events)


def test_retries_end_and_the_run_has_failed(lab: Lab) -> None:
    launch(lab, lab.arm("never", "import os; os.kill(os.getpid(), 9)", steps=1, retries=1))
    work(lab, [])
    (run,) = lab.status().values()
    assert (run["state"], run["attempts"]) == ("failed(killed)", 2)
    assert "no retries are left" in run["reason"]


@pytest.mark.parametrize(
    ("colocate", "wave", "expected"),
    [("prefer", 0, 0), ("prefer", 1, None), ("require", 1, 1), ("off", 0, None), ("require", None, None)],
)
def test_which_runs_stand_behind_a_barrier(colocate: str, wave: int | None, expected: int | None) -> None:
    planned = PlannedRun("s", "a", 0, "0" * 8, "x", 1, Intent.START, "starts", 1, 0, wave=wave)
    assert barrier(planned, colocate) == expected
