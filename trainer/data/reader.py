"""Reads the samples of a batch: in their order, mirrored by chance, the next good one in place of a broken one.

A reader has no state that matters, so one in a worker process reads the same batch as one in the trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from trainer.data.order import BucketIds, Order
from trainer.data.rejection import RejectedSample, first_few
from trainer.data.sample import Batch, Sample, Source, collate
from trainer.data.stages import Stage, Stages
from trainer.errors import DataError
from trainer.randomness import noise_rows, uniform


@runtime_checkable
class Bucketed(Protocol):
    """A source whose training images have several shapes; `train_ids` names the images of all `train_buckets`."""

    train_buckets: tuple[BucketIds, ...]


@runtime_checkable
class Mirroring(Protocol):
    """A source that can mirror its images with all that is known about them."""

    def mirrored(self, id: str) -> Sample:
        """The image `id` mirrored, or as it is if that cannot be done right."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """The batch at some positions of a step, and (name, reason) of every broken sample that it skipped."""

    step: int
    positions: tuple[int, ...]
    batch: Batch
    rejected: tuple[tuple[str, str], ...]

    def pin_memory(self) -> Loaded:
        """The same in page-locked memory, from which a GPU copies without making the CPU wait (torch calls this)."""
        return Loaded(self.step, self.positions, self.batch.pin_memory(), self.rejected)


class Reader:
    """Reads batches of a source in the order of a run; with probability `flip` an image is mirrored.

    In the steps of `stages` its images have other sizes.
    """

    def __init__(
        self, source: Source, run_seed: int, samples_per_step: int, flip: float = 0.0, stages: Sequence[Stage] = ()
    ) -> None:
        self.stages = Stages(source, stages)
        self.order = Order(buckets_of(source), run_seed, samples_per_step)
        self._run_seed = run_seed
        self._flip = flip
        if flip and not isinstance(source, Mirroring):
            raise DataError(f"data.flip {flip:g}: this source cannot mirror its images; allowed: 0")

    def read(self, step: int, positions: Sequence[int]) -> Loaded:
        """The samples at `positions` of the effective batch of one step, on the host.

        Raises DataError if one of them cannot be read, or if a bucket has no usable sample left.
        """
        rejected: list[tuple[str, str]] = []
        samples = [self._sample(step, position, rejected) for position in positions]
        return Loaded(step, tuple(positions), collate(samples), tuple(rejected))

    def read_with_noise(self, step: int, positions: Sequence[int]) -> Loaded:
        """What `read` finds, and the noise for it: at large sizes drawing it takes long, and here nobody waits."""
        loaded = self.read(step, positions)
        shape = loaded.batch.pixels_BCHW.shape[1:]
        noise_BCHW = noise_rows(shape, self._run_seed, step, positions)
        return replace(loaded, batch=replace(loaded.batch, noise_BCHW=noise_BCHW))

    def _sample(self, step: int, position: int, rejected: list[tuple[str, str]]) -> Sample:
        """One sample. A broken one is replaced by the next of the same bucket, which then comes twice."""
        bucket, number = self.order.number(step, position)
        ids = self.order.buckets[bucket].ids
        source, is_mirrored = self.stages.of(step), self._is_mirrored(step, position)
        faults: list[tuple[str, str]] = []
        for following in range(2 * len(ids)):  # wherever it starts, this comes by every image of the bucket
            id = self.order.id(bucket, number + following)
            try:
                sample = source.mirrored(id) if is_mirrored else source.load(id)  # type: ignore[attr-defined]
            except RejectedSample as fault:
                faults.append(fault.entry)
                continue
            rejected += faults
            return sample
        name = self.order.buckets[bucket].name
        raise DataError(f"no sample of bucket {name} can be used: {first_few(faults)}; take the bucket out of the set")

    def _is_mirrored(self, step: int, position: int) -> bool:
        return self._flip > 0 and float(uniform((1,), self._run_seed, "augment", step, position)) < self._flip


def buckets_of(source: Source) -> tuple[BucketIds, ...]:
    """The training images by shape; a source that says nothing has one shape."""
    return source.train_buckets if isinstance(source, Bucketed) else (BucketIds("", source.train_ids),)
