"""Processes that read batches ahead, so that the model need not wait for files.

They are torch's DataLoader workers with persistent state, started from a fork server: a process that was begun clean,
before any thread or CUDA context of the trainer could be copied into it. They obey nobody but the trainer: signals to
stop are blocked in them, because batches are needed until the checkpoint of a stop is written, and they die with it.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer.config import BATCHES_AHEAD
from trainer.data.reader import Loaded, Reader
from trainer.data.sample import Batch
from trainer.errors import DataError

Plan = Callable[[int], Sequence[Sequence[int]]]
"""From a step to the positions of its micro-batches, in the order in which they are asked for."""

_SHARED_MEMORY = Path("/dev/shm")
_STOPS = (signal.SIGTERM, signal.SIGINT)
_MIB = 2**20


class Workers:
    """Reads the batches of `plan` for steps below `steps` ahead, in `count` processes that start with the first batch.

    Any other order of questions is answered too: the processes start over from there.
    """

    def __init__(self, reader: Reader, plan: Plan, steps: int, count: int, pin: bool) -> None:
        self._reader, self._plan, self._steps, self._count, self._pin = reader, plan, steps, count, pin
        self._loaded: Iterator[Any] | None = None
        self._expected: Iterator[tuple[int, tuple[int, ...]]] = iter(())
        self._processes: list[BaseProcess] = []

    def load(self, step: int, positions: Sequence[int]) -> Loaded:
        """What the reader would read, with its noise. Raises DataError as it does, and if a process has died."""
        asked = (step, tuple(positions))
        if self._loaded is None or next(self._expected, None) != asked:
            self._start(*asked)
        assert self._loaded is not None
        try:
            found = next(self._loaded)
        except (RuntimeError, OSError, EOFError) as error:  # the last two: it died before its batch was fetched
            why = str(error) or "it is gone"
            raise DataError(f"a process that loads data failed (data.workers: 0 loads without any): {why}") from error
        if isinstance(found, DataError):
            raise found
        assert isinstance(found, Loaded)
        assert (found.step, found.positions) == asked, "workers answer in the order of the questions"
        return found

    def close(self) -> None:
        """End the processes."""
        self._loaded, self._expected = None, iter(())
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join()
        self._processes = []

    def _start(self, step: int, positions: tuple[int, ...]) -> None:
        self.close()
        requests = _Requests(self._plan, step, positions, self._steps)
        self._refuse_little_shared_memory(step, positions)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["trainer.data.reader"])
        before = set(multiprocessing.active_children())
        resource_tracker.ensure_running()  # which takes signals out of the mask when it starts: so it starts first
        # What is blocked here is blocked in every process that begins now; a stop that comes meanwhile arrives later.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        try:
            loader = DataLoader(
                _Requested(self._reader),
                sampler=requests,
                batch_size=None,
                num_workers=self._count,
                prefetch_factor=BATCHES_AHEAD,
                collate_fn=_as_it_is,
                pin_memory=self._pin,
                worker_init_fn=_begin_worker,
                multiprocessing_context=context,
                generator=torch.Generator(),  # its own: the global one stays untouched
            )
            self._loaded = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._processes = [process for process in multiprocessing.active_children() if process not in before]
        self._expected = iter(requests)
        next(self._expected)

    def _refuse_little_shared_memory(self, step: int, positions: Sequence[int]) -> None:
        """Batches come over in shared memory, of which containers often have 64 MiB; too little would be a crash."""
        if not _SHARED_MEMORY.is_dir():
            return
        largest = self._reader.stages.step_of_the_largest(step)
        one = _bytes_of(self._reader.read_with_noise(largest, positions[:1]).batch)
        needed, free = one * len(positions) * (self._count * BATCHES_AHEAD + 1), shutil.disk_usage(_SHARED_MEMORY).free
        if needed > free:
            raise DataError(
                f"{self._count} data workers need {needed / _MIB:,.0f} MiB of shared memory and {_SHARED_MEMORY} has "
                f"{free / _MIB:,.0f} MiB free: give the container more (--shm-size), or use data.workers: 0 or a "
                "smaller batch"
            )


class _Requests:
    """Endless supply of (step, positions) from one place of a plan on, the same each time it is gone through."""

    def __init__(self, plan: Plan, step: int, positions: tuple[int, ...], steps: int) -> None:
        self._plan, self._first, self._positions, self._steps = plan, step, positions, steps

    def __iter__(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        yield self._first, self._positions
        batches = [tuple(batch) for batch in self._plan(self._first)]
        done = batches.index(self._positions) + 1 if self._positions in batches else len(batches)
        yield from ((self._first, batch) for batch in batches[done:])
        for step in range(self._first + 1, self._steps):
            yield from ((step, tuple(batch)) for batch in self._plan(step))


class _Requested(Dataset[Any]):
    """What a worker does with a request; an error that a person can act on comes back as a value."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __getitem__(self, request: tuple[int, tuple[int, ...]]) -> Loaded | DataError:
        try:
            return self._reader.read_with_noise(*request)
        except DataError as error:
            return DataError(str(error))


def _as_it_is(loaded: Any) -> Any:
    return loaded


def _begin_worker(number: int) -> None:
    """First thing in every worker; torch has given it one thread already."""
    for each in _STOPS:
        signal.signal(each, signal.SIG_IGN)
    # The fork server lives as long as any of its workers, so the death of a parent tells nothing here; this pipe does.
    threading.Thread(target=_die_with_the_trainer, daemon=True).start()


def _die_with_the_trainer() -> None:
    trainer = multiprocessing.parent_process()
    assert trainer is not None, "a worker has a parent"
    wait([trainer.sentinel])
    os._exit(1)


def _bytes_of(batch: Batch) -> int:
    conditions = (getattr(batch.conditions, name) for name in batch.conditions.__slots__)
    parts = (batch.pixels_BCHW, batch.parts_BHW, batch.noise_BCHW, *conditions)
    return sum(part.nbytes for part in parts if isinstance(part, Tensor))
