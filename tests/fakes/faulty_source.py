"""A data source that goes wrong, put under the real trainer from outside; and scripts that go wrong by themselves.

`faulty_python` writes an interpreter that an arm can name as environment.python. A training that it starts is the real
one, but its batches come through this file, which looks at a plan (a JSON file) before each of them. `write_plan` may
change the plan while the training runs. Its keys, all of them optional:

    pace_s      what a batch takes at least, so that a training lasts long and costs little
    nan_at      one value of each condition is not a number in the batch that follows so many steps
    stuck_at    the batch that follows so many steps never comes: its storage, the FIFO `stuck_on`, does not answer
    has_worker  the samples are loaded by a worker process, torch's own
    disk_s      what a slow disk adds to every batch and to every flush
"""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

SAYS_STUCK = "the storage of the images does not answer"


def faulty_python(folder: Path, **plan: Any) -> tuple[Path, Path]:
    """An interpreter whose trainings follow a plan, and the file of that plan."""
    path, plan_file = folder / "faulty-python", folder / "plan.json"
    write_plan(plan_file, **plan)
    here = Path(__file__).resolve()
    path.write_text(
        f'#!/bin/sh\ncase "$1 $2 $3" in "-m trainer train") exec {sys.executable} -P {here} {plan_file} "$@";; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return path, plan_file


def write_plan(path: Path, **plan: Any) -> None:
    """Make this the plan, at once."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(plan))
    part.replace(path)


def limited_python(folder: Path, address_space_mib: int) -> Path:
    """An interpreter that may not have more memory than this, by the kernel's RLIMIT_AS."""
    path = folder / "limited-python"
    path.write_text(f'#!/bin/sh\nulimit -v {address_space_mib * 1024}\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


LEAKS = """
import sys
first_mib, each_mib, steps = map(int, sys.argv[1:])
kept = [bytearray(first_mib << 20)]
for step in range(1, steps + 1):
    kept.append(bytearray(each_mib << 20))
    print(f"step {step}/{steps} loss={1.0 / step:.9f}", flush=True)
"""
"""A script that keeps more with each step, until there is no more."""

LAST_WORDS = """
import os, signal, sys
from pathlib import Path
words, number = Path(sys.argv[1]).read_bytes(), int(sys.argv[2])
for step in range(1, 21):
    print(f"step {step}/400 loss={1.0 / step:.9f}", flush=True)
os.write(2, words)
if number:
    os.kill(os.getpid(), number)
sys.exit(1)
"""
"""A script that trains for twenty steps and ends with the last words of a recorded process, by a signal or with 1."""


def main(argv: list[str]) -> None:
    """PLAN -m trainer train …: be the trainer, with batches that follow the plan."""
    plan_file, command = Path(argv[0]), argv[3:]
    _spoil_batches(plan_file)
    sys.argv = ["trainer", *command]
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)


def _spoil_batches(plan_file: Path) -> None:
    from trainer.data.batches import Batches

    def plan() -> dict[str, Any]:
        return dict(json.loads(plan_file.read_bytes()))

    whole = Batches.batch
    loader = _Loader(whole)

    def batch(self: Batches, step: int, positions: Iterable[int]) -> Any:
        asked = plan()
        time.sleep(asked.get("pace_s", 0.0) + asked.get("disk_s", 0.0))
        if asked.get("stuck_at") == step:
            print(f"{SAYS_STUCK}: {asked['stuck_on']}", file=sys.stderr, flush=True)
            Path(asked["stuck_on"]).read_bytes()  # a FIFO that nobody writes to: the kernel lets us wait
        found = loader(self, step, list(positions)) if asked.get("has_worker") else whole(self, step, positions)
        return _without_numbers(found) if asked.get("nan_at") == step else found

    Batches.batch = batch  # type: ignore[method-assign]
    os.fsync = _slow(os.fsync, plan)  # type: ignore[assignment]


def _slow(flush: Callable[[Any], None], plan: Callable[[], dict[str, Any]]) -> Callable[[Any], None]:
    def slowly(descriptor: Any) -> None:
        time.sleep(plan().get("disk_s", 0.0))
        flush(descriptor)

    return slowly


def _without_numbers(batch: Any) -> Any:
    """The batch of a damaged file of features; pixels are whole numbers and have no NaN."""
    import torch

    def spoilt(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        value = value.clone()
        value.view(len(value), -1)[:, 0] = torch.nan
        return value

    conditions = batch.conditions
    values = {name: spoilt(getattr(conditions, name)) for name in conditions.__slots__}
    return dataclasses.replace(batch, conditions=dataclasses.replace(conditions, **values))


class _Loader:
    """The same batches, their samples loaded ahead by one worker process of torch's DataLoader."""

    def __init__(self, whole: Callable[..., Any]) -> None:
        self._whole = whole
        self._steps: Iterator[dict[str, Any]] | None = None

    def __call__(self, batches: Any, step: int, positions: list[int]) -> Any:
        from trainer.data.sample import collate

        if self._steps is None:
            self._steps = self._begin(batches, step)
        samples = next(self._steps)
        return collate([samples[id] for id in batches.ids(step, positions)])

    @staticmethod
    def _begin(batches: Any, first: int) -> Iterator[dict[str, Any]]:
        from torch.utils.data import DataLoader, Dataset

        class Steps(Dataset[dict[str, Any]]):
            def __getitem__(self, step: int) -> dict[str, Any]:
                ids = batches.ids(step, range(batches.samples_per_step))
                return {id: batches.source.load(id) for id in ids}

        return iter(
            DataLoader(Steps(), sampler=range(first, 10**9), batch_size=None, num_workers=1, collate_fn=lambda one: one)
        )


if __name__ == "__main__":
    main(sys.argv[1:])
