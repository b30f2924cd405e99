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
from trainer import checkpoint
from trainer.check import check
from trainer.data import open_source, workers
from trainer.data.batches import Batches, open_batches
from trainer.data.reader import Reader
from trainer.data.sample import Batch, StreamShapes
from trainer.document import Document, parse_config
from trainer.errors import ConfigError, DataError
from trainer.objective.draws import StepDraws

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
            read = ahead.batch(step, positions)
            assert same(read, here.batch(step, positions))
            assert read.noise_BCHW is not None
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
import os, signal, sys, time
from pathlib import Path
from trainer.data import open_source
from trainer.data.batches import open_batches
from trainer.document import parse_config
import multiprocessing

if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    config = parse_config({"steps": 9, "data": {"source": "shards", "path": sys.argv[1]}})
    batches = open_batches(config, open_source(config), 0)
    batches.read_ahead(lambda step: [[0, 1], [2, 3]], 9, 2, pin=False)
    batches.batch(0, [0, 1])
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    sys.stdin.readline()
    for step in range(9):
        for positions in ([0, 1], [2, 3]):
            if (step, positions) != (0, [0, 1]):
                batches.batch(step, positions)
    print("all batches came", flush=True)
    time.sleep(60)
"""


def test_workers_outlive_a_stop_of_the_whole_group_and_die_with_a_trainer_that_is_killed(
    shards: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(TRAINER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(shards)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=environment, start_new_session=True) as trainer:
        assert trainer.stdin is not None
        assert trainer.stdout is not None
        pids = [int(word) for word in trainer.stdout.readline().split()]
        assert len(pids) == 2
        for number in (signal.SIGTERM, signal.SIGINT):
            os.killpg(trainer.pid, number)
        trainer.stdin.write("on\n")
        trainer.stdin.flush()
        assert trainer.stdout.readline() == "all batches came\n"
        trainer.kill()
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < deadline, "a worker outlives its trainer"
        time.sleep(0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_beside_a_gpu_batches_come_in_pinned_memory(shards: Path) -> None:
    torch.zeros(1, device="cuda")  # a context that must not be copied into any worker
    config = config_of(shards)
    with open_batches(config, open_source(config), 5) as batches:
        batches.read_ahead(halves, 9, 2, pin=True)
        batch = batches.batch(0, [0, 2])
        assert batch.pixels_BCHW.is_pinned()
        assert batch.conditions.patches_BPD.is_pinned()
        assert same(batch, open_batches(config, open_source(config), 5).batch(0, [0, 2]))


# ---- what the number of workers is no part of ------------------------------------------------------------------------


def test_a_checkpoint_may_be_resumed_with_other_workers_and_from_before_there_were_any(shards: Path) -> None:
    documents = [Document(config_of(shards, workers=count), 3, "run") for count in (0, 5)]
    state = checkpoint.describe(documents[0], StreamShapes())
    checkpoint.require_same_run(state, documents[1])
    checkpoint.require_same_model(state, documents[1])
    with pytest.raises(ConfigError, match=r"data\.flip"):
        checkpoint.require_same_run(state, Document(config_of(shards, flip=0.5), 3, "run"))
    before = Document(tiny_config(), 3, "run")
    old = checkpoint.describe(before, StreamShapes())
    for key in ("flip", "workers"):
        del old["config"]["data"][key]
    checkpoint.require_same_run(old, before)


def test_what_is_read_ahead_takes_memory(shards: Path) -> None:
    sizes = [check(1, {"steps": 1, "data": {"size": 32, "workers": count}})["memory_mib"] for count in (0, 8, 16)]
    assert sizes[1] - sizes[0] > sizes[2] - sizes[1] > 0


def test_a_source_of_shards_encodes_no_words(shards: Path) -> None:
    with pytest.raises(DataError, match="no other words can be encoded"):
        open_source(config_of(shards)).encode_caption("a portrait")


def test_workers_draw_the_noise_that_the_step_would_draw(shards: Path) -> None:
    config = config_of(shards)
    batch = Reader(open_source(config), 5, config.samples_per_step).read_with_noise(4, [2, 0]).batch
    height, width = batch.pixels_BCHW.shape[2:]
    drawn = StepDraws(config, 5, 4).of([2, 0], (height, width))
    assert batch.noise_BCHW is not None
    assert torch.equal(batch.noise_BCHW, drawn.noise_BCHW)
    assert StepDraws(config, 5, 4).of([2, 0], (height, width), batch.noise_BCHW).noise_BCHW is batch.noise_BCHW
