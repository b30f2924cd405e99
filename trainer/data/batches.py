"""The endless sequence of training samples, epoch after epoch, as a pure function of (seed, step, position)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch

from trainer.data.sample import Batch, Source, collate
from trainer.errors import DataError
from trainer.randomness import generator


class Batches:
    """Batches of `batch` samples per optimizer step, all accumulated micro-batches together.

    Sample `position` of step `step` (both from 0) is number step * batch + position of the concatenation of all epochs;
    an epoch is a permutation of the training ids from the counter stream `order`. Nothing has to be saved for a resume.
    """

    def __init__(self, source: Source, run_seed: int, batch: int) -> None:
        if not source.train_ids:
            raise DataError("there are no training images")
        self.source = source
        self.run_seed = run_seed
        self.samples_per_step = batch
        # Two epochs at most are needed at a time: the one that ends in a batch and the one that begins.
        self._permutation = lru_cache(maxsize=2)(self._permute)

    def ids(self, step: int, positions: Iterable[int]) -> list[str]:
        """Ids of the samples at `positions` of the effective batch of one step."""
        size = len(self.source.train_ids)
        chosen = []
        for position in positions:
            epoch, place = divmod(step * self.samples_per_step + position, size)
            chosen.append(self.source.train_ids[self._permutation(epoch)[place]])
        return chosen

    def batch(self, step: int, positions: Iterable[int]) -> Batch:
        """The samples at `positions` of the effective batch of one step, on the host."""
        return collate([self.source.load(id) for id in self.ids(step, positions)])

    def epochs_seen(self, steps: int) -> float:
        """How often the training images have been gone through after `steps` optimizer steps."""
        return steps * self.samples_per_step / len(self.source.train_ids)

    def _permute(self, epoch: int) -> list[int]:
        return torch.randperm(len(self.source.train_ids), generator=generator(self.run_seed, "order", epoch)).tolist()
