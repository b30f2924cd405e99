"""Which samples go into which shard, in which order: a pure function of the images and a seed. No torch.

Inside a bucket, samples stand in the order of SHA-256 of "<seed>:<id>", so the order of the photographs is gone and
another seed gives another one. Shards hold at most 1000 samples, and those of a bucket differ by at most one sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from trainer.data.buckets import BUCKETS, Bucket
from trainer.errors import DataError

MOST_SAMPLES = 1000
_VERSION = 1  # of how a plan becomes bytes: grows whenever the same plan would make another tar


@dataclass(frozen=True, slots=True)
class Packable:
    """An image of which everything is there: its source relative to the photographs, and its files with SHA-256."""

    id: str
    source: str
    bucket: str
    files: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard before it is written; `side` is that of the square bucket in pixels."""

    bucket: Bucket
    side: int
    number: int
    samples: tuple[Packable, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its images in pixels."""
        size = self.bucket.scaled(self.side)
        assert size is not None, "a set is only stored at sides at which every bucket is whole"
        return size

    @property
    def folder(self) -> str:
        """Name of the bucket's folder."""
        height, width = self.size
        return f"bucket_{width}x{height}"

    @property
    def name(self) -> str:
        """Name of the file."""
        return f"shard-{self.number:06d}.tar"

    @property
    def path(self) -> str:
        """Relative to the folder of the set, in POSIX form."""
        return f"{self.folder}/{self.name}"

    @property
    def digest(self) -> str:
        """SHA-256 of all that the bytes of the shard follow from."""
        samples = [[one.id, one.source, one.files] for one in self.samples]
        content = [_VERSION, self.bucket.name, self.side, samples]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def plan_shards(
    images: Iterable[Packable], side: int, seed: int, most_samples: int = MOST_SAMPLES
) -> tuple[ShardPlan, ...]:
    """Every shard of a set, buckets in the order in which training has them.

    Raises DataError for an image of a bucket that does not exist.
    """
    by_bucket: dict[str, list[Packable]] = {bucket.name: [] for bucket in BUCKETS}
    for image in images:
        if image.bucket not in by_bucket:
            raise DataError(f"{image.source} is in bucket {image.bucket}; there are {', '.join(by_bucket)}")
        by_bucket[image.bucket].append(image)
    return tuple(
        ShardPlan(bucket, side, number, chunk)
        for bucket in BUCKETS
        for number, chunk in enumerate(_chunks(_shuffled(by_bucket[bucket.name], seed), most_samples))
    )


def balanced(count: int, most: int) -> list[int]:
    """As few parts of at most `most` as make up `count`, the larger ones first; they differ by at most one."""
    parts = -(-count // most)
    return [count // parts + (number < count % parts) for number in range(parts)]


def _shuffled(images: Iterable[Packable], seed: int) -> list[Packable]:
    return sorted(images, key=lambda image: (hashlib.sha256(f"{seed}:{image.id}".encode()).digest(), image.id))


def _chunks(images: list[Packable], most: int) -> Iterable[tuple[Packable, ...]]:
    start = 0
    for size in balanced(len(images), most):
        yield tuple(images[start : start + size])
        start += size
