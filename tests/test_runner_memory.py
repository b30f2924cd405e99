"""Following live attempts: one transaction a round, nothing read twice, an end only when all before it is known, and
the judge asked at its own pace."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select

import runner.follow
import runner.ingest
from provisioning.base import HostLost
from provisioning.local_shell import LocalShell
from provisioning.processes import identity_of
from runner.detach import SUPERVISOR
from runner.follow import Follow
from runner.home import Home
from runner.launch_spec import attempt_dir
from runner.pace import JUDGING_SHARE, Pace
from runner.records import RunState
from runner.store import tables
from runner.store.curves import read_curves
from runner.store.facts import StoredRun, open_runs
from runner.store.opening import driver_of
from tests.fakes.arms import command_arm
from tests.fakes.stored_study import StoredStudy, with_primary


class Clock:
    """Seconds that a test decides."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Bench:
    """Live attempts whose process is this one, with metrics files that a test writes."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder)
        self.stored = StoredStudy(self.home)
        self.session = self.stored.session
        self.shell = LocalShell(str(SUPERVISOR))
        self.clock = Clock()
        self.follow = self.fresh()

    def fresh(self) -> Follow:
        """Another controller's memory: an empty one."""
        places: Any = SimpleNamespace(by_lease=lambda _lease: SimpleNamespace(shell=self.shell))
        return Follow(self.session, self.home, places, lambda: 50.0, self.clock)

    def run(self, name: str, steps: int = 100) -> str:
        """A live run of one attempt."""
        arm = replace(command_arm(), arm=name, metrics={"source": "jsonl", "path": "metrics.jsonl"}, steps=steps)
        run = self.stored.run(with_primary(arm), state=RunState.RUNNING)
        identity = identity_of(os.getpid())
        assert identity is not None
        self.stored.attempt(run, 1, phase="live", identity=asdict(identity), started=1.0)
        attempt_dir(self.home.root / run, 1).mkdir(parents=True)
        return run

    def write(self, run: str, *losses: float, start: int = 1) -> None:
        """Append one record a step."""
        with (self.home.root / run / "metrics.jsonl").open("a") as file:
            for step, loss in enumerate(losses, start):
                file.write(json.dumps({"step": step, "time": 100.0 + step, "loss": loss}) + "\n")

    def end(self, run: str) -> None:
        """The supervisor's record of the end."""
        record = {"code": 0, "signal": None, "cause": "exited"}
        (attempt_dir(self.home.root / run, 1) / "exit.json").write_text(json.dumps(record))

    def runs(self) -> tuple[StoredRun, ...]:
        with self.session.reading() as connection:
            return open_runs(connection)

    def round(self, troubles: dict[str, Exception] | None = None) -> bool:
        """One round as the controller makes it."""

        def guarded(run: StoredRun, act: Any) -> None:
            try:
                act(run)
            except (HostLost, ZeroDivisionError) as error:
                assert troubles is not None
                troubles[run.run] = error

        return self.follow.follow_all(self.runs(), guarded)

    def losses(self, run: str) -> tuple[float, ...]:
        with self.session.reading() as connection:
            curve = read_curves(connection, run).get("loss")
        return () if curve is None else curve.values

    def phase(self, run: str) -> str:
        with self.session.reading() as connection:
            return str(
                connection.execute(select(tables.attempts.c.phase).where(tables.attempts.c.run == run)).scalar_one()
            )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.shell.close()
    found.stored.close()


@pytest.fixture
def judgings(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the loss curves that were judged; each judging takes a second of the bench's clock."""
    lengths: list[int] = []
    judge = runner.follow.judge

    def slow(series: Any, **options: Any) -> Any:
        bench.clock.seconds += 1.0
        lengths.append(len(series["loss"].steps))
        return judge(series, **options)

    monkeypatch.setattr(runner.follow, "judge", slow)
    return lengths


def test_a_round_stores_what_all_runs_wrote_in_one_transaction_and_an_idle_one_writes_nothing(bench: Bench) -> None:
    runs = [bench.run(name) for name in "ABC"]
    for run in runs:
        bench.write(run, 1.0)
    bench.round()  # the first one also stores verdicts
    for run in runs:
        bench.write(run, 0.9, start=2)
    said: list[str] = []
    with bench.session.reading() as connection:
        driver_of(connection).set_trace_callback(said.append)
    bench.clock.seconds += 1000.0
    bench.round()
    assert said.count("BEGIN IMMEDIATE") == 1
    assert [bench.losses(run) for run in runs] == [(1.0, 0.9)] * 3
    said.clear()
    bench.round()
    assert said.count("BEGIN IMMEDIATE") == 0
    assert not [text for text in said if text.startswith(("INSERT", "UPDATE"))]


def test_the_trouble_of_one_run_undoes_nothing_of_the_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad, gone = (bench.run(name) for name in "ABC")
    for run in (good, bad, gone):
        bench.write(run, 1.0)
    bench.end(bad)
    write_taken, stamp = runner.follow.write_taken, bench.shell.stamp

    def failing(connection: Any, run: str, *rest: Any) -> Any:
        written = write_taken(connection, run, *rest)
        return written if run != bad else 1 / 0

    def lost(path: str) -> Any:
        if f"{gone}/metrics" in path:
            raise HostLost("no answer")
        return stamp(path)

    monkeypatch.setattr(runner.follow, "write_taken", failing)
    monkeypatch.setattr(bench.shell, "stamp", lost)
    troubles: dict[str, Exception] = {}
    bench.round(troubles)
    assert set(troubles) == {bad, gone}
    assert (bench.losses(good), bench.losses(bad), bench.losses(gone)) == ((1.0,), (), ())
    assert bench.phase(bad) == "live", "what it wrote is not stored, so its end is not known yet"
    monkeypatch.undo()
    bench.round()
    assert (bench.losses(bad), bench.losses(gone)) == ((1.0,), (1.0,))
    assert bench.phase(bad) == "ended"


def test_what_piled_up_is_read_over_several_rounds_and_the_end_comes_last(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.ingest, "CHUNK_BYTES", 512)
    monkeypatch.setattr(runner.follow, "ROUND_BYTES", 2048)
    first, second = bench.run("A"), bench.run("B")
    losses = tuple(1.0 / step for step in range(1, 301))
    for run in (first, second):
        bench.write(run, *losses)
        bench.end(run)
    assert bench.round()
    seen = len(bench.losses(first))
    assert 0 < seen < 300
    assert seen * 30 < 2048 + 512
    assert (bench.phase(first), bench.phase(second)) == ("live", "live")
    rounds = 1
    while bench.round():
        rounds += 1
        assert (bench.phase(first) == "ended") <= (bench.losses(first) == losses)
    assert rounds > 5
    assert bench.losses(first) == bench.losses(second) == losses
    assert (bench.phase(first), bench.phase(second)) == ("ended", "ended")


def test_the_judge_waits_for_its_share_but_never_with_an_end_or_with_a_value_that_is_not_finite(
    bench: Bench, judgings: list[int]
) -> None:
    run = bench.run("A")
    bench.write(run, 1.0)
    bench.round()
    assert judgings == [1]
    bench.write(run, 0.9, start=2)
    bench.round()
    assert judgings == [1], "a second of judging is to be followed by nineteen without"
    bench.clock.seconds += 1.0 / JUDGING_SHARE
    bench.round()
    assert judgings == [1, 2]
    bench.round()
    assert judgings == [1, 2], "nothing is new"
    bench.write(run, math.nan, start=3)
    bench.round()
    assert judgings == [1, 2, 3]
    (stored,) = bench.runs()
    assert stored.verdict is not None
    assert stored.verdict["rule"] == "non_finite"
    bench.write(run, math.nan, start=4)
    bench.round()
    assert judgings == [1, 2, 3], "the second bad value of a metric tells nothing new"
    bench.end(run)
    bench.round()
    assert judgings == [1, 2, 3, 4]
    assert bench.phase(run) == "ended"


def test_what_an_earlier_controller_stored_and_did_not_judge_is_judged(bench: Bench, judgings: list[int]) -> None:
    run = bench.run("A")
    bench.write(run, 1.0)
    bench.round()
    bench.write(run, 0.5, start=2)
    bench.round()  # stored, and not judged: this controller is killed now
    assert (judgings, len(bench.losses(run))) == ([1], 2)
    bench.follow = bench.fresh()
    bench.round()
    assert judgings == [1, 2]


def test_many_live_runs_share_what_judging_may_take() -> None:
    clock = Clock()
    pace = Pace(clock)
    waits = []
    for live in (1, 10, 200):
        pace.judged("r", 1, 0.01, live)
        pace.news("r", 1, frozenset())
        start = clock.seconds
        while not pace.is_due("r", 1, at_end=False):
            clock.seconds += 0.05
        waits.append(clock.seconds - start)
    assert waits == pytest.approx([0.01 * live / JUDGING_SHARE for live in (1, 10, 200)], abs=0.06)


@pytest.mark.parametrize("how", ["truncated", "replaced", "gone for a while"])
def test_a_metrics_file_that_starts_again_contradicts_nothing_and_loses_nothing(bench: Bench, how: str) -> None:
    run = bench.run("A")
    path = bench.home.root / run / "metrics.jsonl"
    bench.write(run, 1.0, 0.9, 0.8)
    bench.round()
    if how == "truncated":
        path.write_bytes(b"")
        bench.round()
    else:
        path.unlink()
        bench.round()
        if how == "replaced":
            path.with_suffix(".new").touch()  # so that the inode is not the same again
    with path.open("a") as file:
        file.write("a line of the new process\n")
    bench.write(run, 1.0, 0.9, 0.8, 0.7)
    with path.open("a") as file:
        file.write("no record\n")
    bench.round()
    bench.write(run, 0.6, start=5)
    bench.round()
    assert bench.losses(run) == (1.0, 0.9, 0.8, 0.7, 0.6)
    with bench.session.reading() as connection:
        row = connection.execute(select(tables.files)).one()
        events = connection.execute(select(tables.events.c.what)).scalars().all()
    assert row.rejected == 2
    assert events.count("metrics_restarted") >= 1
