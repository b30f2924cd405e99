"""The lock of a home: one holder, told apart from those who only ask."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from runner.lock import HomeLock, holder_pid, is_held


def test_it_has_one_holder_and_is_free_again_afterwards(tmp_path: Path) -> None:
    lock, other = HomeLock(tmp_path / "lock"), HomeLock(tmp_path / "lock")
    assert not is_held(tmp_path / "lock")
    assert lock.acquire()
    assert lock.acquire(), "it is ours already"
    assert is_held(tmp_path / "lock")
    assert holder_pid(tmp_path / "lock") is not None
    assert not other.acquire()
    lock.release()
    assert not is_held(tmp_path / "lock")
    assert other.acquire()
    other.release()


def test_who_only_asks_takes_it_from_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an instant `is_held` shares the lock: a controller that starts then must not take that for another one."""
    path = tmp_path / "lock"
    asking = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(asking, fcntl.LOCK_SH)
    looks: list[float] = []

    def rest(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            os.close(asking)

    monkeypatch.setattr("runner.lock.time.sleep", rest)
    lock = HomeLock(path)
    assert lock.acquire()
    assert len(looks) == 2
    lock.release()
