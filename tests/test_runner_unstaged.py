"""A run whose machine falls silent before anything was started there goes back to the queue, and only that one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.home import Home
from runner.records import RunState
from runner.store.facts import read_run
from runner.unstaged import PATIENCE_S, Unstaged
from tests.fakes.arms import command_arm
from tests.fakes.stored_study import StoredStudy


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredStudy]:
    found = StoredStudy(Home(tmp_path / "runs"))
    yield found
    found.close()


def state(stored: StoredStudy, run: str) -> tuple[RunState, str]:
    with stored.session.reading() as connection:
        found = read_run(connection, run)
    assert found.attempt is not None
    return found.state, found.attempt.phase


def test_only_a_long_silence_before_the_start_takes_a_run_back(stored: StoredStudy) -> None:
    clock = [0.0]
    unstaged = Unstaged(stored.session, lambda: 1_000.0 + clock[0], lambda: clock[0])
    staging = stored.run(command_arm(arm="A"), state=RunState.STAGING)
    stored.attempt(staging, 1)
    starting = stored.run(command_arm(arm="B"), state=RunState.STARTING)
    stored.attempt(starting, 1)
    for _ in range(10):
        clock[0] += PATIENCE_S / 2
        unstaged.lost(staging)
        assert state(stored, staging) == (RunState.STAGING, "intended")
        unstaged.reached(staging)
    for run in (staging, starting):
        unstaged.lost(run)
    clock[0] += PATIENCE_S - 1
    for run in (staging, starting):
        unstaged.lost(run)
    assert state(stored, staging) == (RunState.STAGING, "intended")
    clock[0] += 1
    for run in (staging, starting):
        unstaged.lost(run)
    assert state(stored, staging) == (RunState.QUEUED, "gone")
    assert state(stored, starting) == (RunState.STARTING, "intended")  # it may live there
