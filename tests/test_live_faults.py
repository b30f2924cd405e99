"""A short set of the live faults: the same functions, real processes, and a controller whose minutes pass faster."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import live_faults
from tests.live_faults import RECORDED, Told, bound, main, play

TIMES = 60


def told_of(folder: Path, *names: str) -> dict[str, Told]:
    """Some faults at once, for most of the time they wait."""
    with ThreadPoolExecutor(len(names)) as pool:
        found = [pool.submit(play, name, folder, 5, TIMES) for name in names]
        return {told.fault: told for one in found for told in one.result()}


def wrong(told: dict[str, Told]) -> list[Told]:
    return [one for one in told.values() if not one.is_right]


def test_what_a_gpu_says_and_a_limit_of_memory_are_called_what_they_are(tmp_path: Path) -> None:
    told = told_of(tmp_path, "recorded", "oom_command")
    assert wrong(told) == []
    assert told.keys() == {*RECORDED, "oom_command", "oom_first"}
    assert told["oom_first"].found == "failed(does_not_fit)"


@pytest.mark.long
def test_a_nan_is_seen_at_once_and_a_suspended_training_is_seen_and_forgiven(tmp_path: Path) -> None:
    told = told_of(tmp_path, "nan", "sigstop")
    assert wrong(told) == []
    assert told.keys() == {"nan", "sigstop", "sigcont"}


def test_a_fault_that_is_called_something_else_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.mkdtemp", lambda prefix: str(tmp_path))
    # The words of a full disk under the name of a lost peer.
    monkeypatch.setattr(live_faults, "RECORDED", {"nccl": ("nccl__remote_error", 0), "odd": ("exit__odd", 0)})
    monkeypatch.setattr(live_faults, "STDERR", tmp_path)
    (tmp_path / "nccl__remote_error.txt").write_text("OSError: [Errno 28] No space left on device\n")
    (tmp_path / "exit__odd.txt").write_text("")
    assert main(["--only", "recorded", "--times", str(TIMES)]) == 1
    out = capsys.readouterr().out
    assert "FAIL nccl: " in out
    assert "failed(disk_full), wanted failed(nccl)" in out
    assert f"FAILED: nccl, odd; kept in {tmp_path}" in out


def test_thirty_runs_without_a_stop_bound_the_rate_at_ten_percent() -> None:
    assert "below 9.5 %" in bound(0, 30)
    assert bound(3, 30) == "a rate of 10.0 % was seen"
