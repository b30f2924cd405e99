"""Which image stands at which position of which optimizer step: a pure function of the images, the seed and the step.

All samples of a step come from one bucket, so that they have one shape, whatever the micro-batches are. Which bucket
that is follows from the numbers of images alone: always the one that lags most behind its share, so after any number of
steps every bucket has had its share of them to within a few steps, and nothing about it is random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from trainer.errors import DataError
from trainer.randomness import generator


class BucketIds(NamedTuple):
    """Training images of one shape; `name` is their bucket's."""

    name: str
    ids: tuple[str, ...]


class Order:
    """The endless sequence of training images, epoch after epoch of every bucket.

    If a step is the n-th of its bucket (from 0), its position p is number n * samples_per_step + p of the concatenation
    of the bucket's epochs; an epoch is a permutation of the bucket's images from the counter stream `order`, with the
    key (epoch), or (name of the bucket, epoch) where there are several. Nothing has to be saved for a resume.
    """

    def __init__(self, buckets: Sequence[BucketIds], run_seed: int, samples_per_step: int) -> None:
        if not any(bucket.ids for bucket in buckets):
            raise DataError("there are no training images")
        self.buckets = tuple(bucket for bucket in buckets if bucket.ids)
        self.samples_per_step = samples_per_step
        self._run_seed = run_seed
        self._total = sum(len(bucket.ids) for bucket in self.buckets)
        self._schedule: list[tuple[int, int]] = []
        self._used = [0] * len(self.buckets)
        self._permutations: dict[tuple[int, int], list[int]] = {}

    def bucket(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and how many steps before it had the same one.

        With c images of C in a bucket that had u of the first k steps, step k takes the bucket of the largest deficit
        (k + 1) c / C - u, the first of equals.
        """
        if len(self.buckets) == 1:
            return 0, step
        while len(self._schedule) <= step:
            number = len(self._schedule) + 1
            deficits = [
                number * len(bucket.ids) - used * self._total
                for bucket, used in zip(self.buckets, self._used, strict=True)
            ]
            chosen = deficits.index(max(deficits))
            self._schedule.append((chosen, self._used[chosen]))
            self._used[chosen] += 1
        return self._schedule[step]

    def number(self, step: int, position: int) -> tuple[int, int]:
        """Bucket of a position of a step, and its number in the sequence of that bucket."""
        bucket, earlier = self.bucket(step)
        return bucket, earlier * self.samples_per_step + position

    def id(self, bucket: int, number: int) -> str:
        """The image of a number in the sequence of a bucket."""
        ids = self.buckets[bucket].ids
        epoch, place = divmod(number, len(ids))
        return ids[self._permutation(bucket, epoch)[place]]

    def _permutation(self, bucket: int, epoch: int) -> list[int]:
        if (bucket, epoch) not in self._permutations:
            # Two epochs at most are needed at a time: the one that ends in a step and the one that begins.
            for old in [key for key in self._permutations if key[0] == bucket and abs(key[1] - epoch) > 1]:
                del self._permutations[old]
            own, several = self.buckets[bucket], len(self.buckets) > 1
            drawn = generator(self._run_seed, "order", *((own.name, epoch) if several else (epoch,)))
            self._permutations[bucket, epoch] = torch.randperm(len(own.ids), generator=drawn).tolist()
        return self._permutations[bucket, epoch]
