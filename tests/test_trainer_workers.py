"""Processes that read ahead: the same bits as without them, deaf to stops, dead with the trainer."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.fakes.shards import sample, square_set
from tests.fakes.trainer_parts import NoiseSource, tiny_config
from trainer.data import open_source, workers
from trainer.data.batches import Batches, open_batches
from trainer.data.sample import Batch
from trainer.document import parse_config
from trainer.errors import DataError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return square_set(tmp_path_factory.mktemp("shards"), [sample(f"s{n:02d}", 32, 32) for n in range(20)])


def config_of(path: Path, **data: Any) -> Any:
    return parse_config({"steps": 9, "batch": 4, "data": {"source": "shards", "path": str(path), **data}})


def halves(step: int) -> list[list[int]]:
    """Two micro-batches, sorted differently in every step."""
    return [[1, 0], [3, 2]] if step % 2 else [[0, 2], [1, 3]]


def same(one: Batch, other: Batch) -> bool:
    names = ("text_BTD", "text_mask_BT", "cls_BD", "patches_BPD", "pose_BJ3")
    pairs = [(getattr(one.conditions, name), getattr(other.conditions, name)) for name in names]
    return (one.ids, one.captions) == (other.ids, other.captions) and all(
        torch.equal(mine, yours) for mine, yours in [(one.pixels_BCHW, other.pixels_BCHW), *pairs]
    )


@pytest.fixture
def ahead(shards: Path) -> Iterator[Batches]:
    config = config_of(shards)
    with open_batches(config, open_source(config), 5) as batches:
        batches.read_ahead(halves, 9, 2, pin=False)
        yield batches


def test_workers_read_what_the_trainer_would_read_and_start_over_anywhere(ahead: Batches, shards: Path) -> None:
    config = config_of(shards)
    here = open_batches(config, open_source(config), 5)
    before = torch.get_rng_state()
    for step in (3, 4, 5):
        for positions in halves(step):
            assert same(ahead.batch(step, positions), here.batch(step, positions))
    for step, positions in ((1, [3, 2]), (2, [0, 2]), (8, [1, 3]), (7, [0, 1, 2, 3]), (0, [0, 2])):  # any place
        assert same(ahead.batch(step, positions), here.batch(step, positions))
    assert torch.equal(before, torch.get_rng_state())


def test_workers_are_clean_deaf_and_gone_after_closing(ahead: Batches) -> None:
    before = set(psutil.Process().children(recursive=True))
    ahead.batch(0, [0, 2])
    processes = multiprocessing.active_children()
    assert len(processes) == 2
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGINT)
        status = psutil.Process(process.pid)
        assert status.parent() != psutil.Process(), "from the fork server, not from us"
        assert len(os.listdir(f"/proc/{process.pid}/task")) < 5, "a handful of threads"
    for step in range(3):
        for positions in halves(step)[step == 0 :]:
            ahead.batch(step, positions)
    assert all(process.is_alive() for process in processes)
    ahead.__exit__(None, None, None)
    assert not multiprocessing.active_children()
    left = set(psutil.Process().children(recursive=True)) - before
    assert len(left) <= 2, "the fork server and multiprocessing's tracker stay"


def test_a_worker_that_dies_is_told(ahead: Batches) -> None:
    ahead.batch(0, [0, 2])
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(DataError, match=r"a process that loads data failed \(data.workers: 0"):
        [ahead.batch(step, positions) for step in range(9) for positions in halves(step)[step == 0 :]]


def test_errors_come_through_as_they_are(tmp_path: Path) -> None:
    config = config_of(square_set(tmp_path, [sample(f"s{n:02d}", 32, 32) for n in range(20)]), workers=1)
    with open_batches(config, open_source(config), 5) as batches:
        batches.read_ahead(halves, 9, 1, pin=False)
        batches.batch(0, [0, 2])
        for tar in tmp_path.glob("*/*.tar"):
            tar.unlink()
        with pytest.raises(DataError, match=r"^.*shard-000000.tar can no longer be read: No such file"):
            [batches.batch(step, positions) for step in range(9) for positions in halves(step)[step == 0 :]]


def test_little_shared_memory_is_refused_and_not_a_crash(ahead: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: Usage())
    with pytest.raises(DataError, match=r"2 data workers need 0 MiB of shared memory .*--shm-size"):
        ahead.batch(0, [0, 2])


class Usage:
    free = 1000


def test_other_sources_may_have_workers_too() -> None:
    config = tiny_config(data={"size": 8, "samples": 12, "held_out": 4, "workers": 1})
    source = open_source(config)
    with Batches(source, 5, 4) as batches, Batches(NoiseSource(config, 0), 5, 4) as noise:
        batches.read_ahead(halves, 9, config.data.worker_processes, pin=False)
        noise.read_ahead(halves, 9, 1, pin=False)
        assert same(batches.batch(2, [0, 2]), Batches(source, 5, 4).batch(2, [0, 2]))
        assert same(noise.batch(2, [0, 2]), Batches(NoiseSource(config, 0), 5, 4).batch(2, [0, 2]))


TRAINER = """
import os, sys, time
from pathlib import Path
from trainer.data import open_source
from trainer.data.batches import open_batches
from trainer.document import parse_config
import multiprocessing

if __name__ == "__main__":
    config = parse_config({"steps": 9, "data": {"source": "shards", "path": sys.argv[1]}})
    batches = open_batches(config, open_source(config), 0)
    batches.read_ahead(lambda step: [[0, 1], [2, 3]], 9, 2, pin=False)
    batches.batch(0, [0, 1])
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


def test_workers_die_with_a_trainer_that_is_killed(shards: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TRAINER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(shards)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as trainer:
        assert trainer.stdout is not None
        pids = [int(word) for word in trainer.stdout.readline().split()]
        assert len(pids) == 2
        trainer.kill()
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < deadline, "a worker outlives its trainer"
        time.sleep(0.05)
