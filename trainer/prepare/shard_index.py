"""index.json beside the buckets of a packed set: what its shards are, what they were made with, how ids are split.

It is written when everything else is there. While shards change, an index without content stands in its place, so that
nobody trains on half a set. No torch, no NumPy: a check of a configuration reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import DataError

FORMAT = 1
INDEX = "index.json"
UNFINISHED_INDEX = b'{"format": 1, "unfinished": true}\n'
"""Stands where the index will be for as long as shards are written and removed."""
PACK_AGAIN = "pack the set again (python -m trainer prepare PHOTOS --out DATA --passes pack), or copy it again"


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard: name of the file, number of samples, size in bytes, SHA-256 in hex."""

    name: str
    samples: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class BucketEntry:
    """The shards of one bucket; `bucket` is its name at 1024, `folder` where they lie."""

    bucket: str
    folder: str
    shards: tuple[ShardEntry, ...]

    @property
    def samples(self) -> int:
        """Samples of all shards."""
        return sum(shard.samples for shard in self.shards)


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """A packed set: side of the square bucket in pixels, seed of the order, JSON of the recipes by artefact, what must
    not be believed of them, buckets in the order of training, and the ids that are not trained on."""

    side: int
    seed: int
    recipes: Mapping[str, Mapping[str, object]]
    labels: tuple[str, ...]
    buckets: tuple[BucketEntry, ...]
    held_out: tuple[str, ...]
    probe: tuple[str, ...]

    @property
    def samples(self) -> int:
        """Samples of all buckets."""
        return sum(bucket.samples for bucket in self.buckets)

    @property
    def shards(self) -> Iterator[tuple[str, ShardEntry]]:
        """(path relative to the index, shard) of all buckets."""
        return ((f"{bucket.folder}/{shard.name}", shard) for bucket in self.buckets for shard in bucket.shards)

    def differences(self, sizes: Mapping[str, int]) -> list[str]:
        """How the shards that are there, with their sizes in bytes by path, differ from the index."""
        listed = {path: shard.size_bytes for path, shard in self.shards}
        return [
            *(f"{path} is missing" for path in listed if path not in sizes),
            *(
                f"{path} has {sizes[path]:,} bytes where the index says {size:,}"
                for path, size in listed.items()
                if sizes.get(path, size) != size
            ),
            *(f"{path} is not in the index" for path in sizes if path not in listed),
        ]


def as_bytes(index: ShardIndex) -> bytes:
    """The content of index.json. It holds no time and no path outside the set: the same set makes the same bytes."""
    content = {
        "format": FORMAT,
        "side": index.side,
        "seed": index.seed,
        "recipes": dict(sorted(index.recipes.items())),
        "labels": index.labels,
        "buckets": {bucket.bucket: _bucket_json(bucket) for bucket in index.buckets},
        "splits": {"held_out": index.held_out, "probe": index.probe},
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def shard_json(shard: ShardEntry) -> dict[str, object]:
    """A shard as the index lists it."""
    return {"name": shard.name, "samples": shard.samples, "bytes": shard.size_bytes, "sha256": shard.sha256}


def shard_from_json(content: Mapping[str, Any]) -> ShardEntry:
    """What `shard_json` made. Raises KeyError, TypeError or ValueError for anything else."""
    return ShardEntry(str(content["name"]), int(content["samples"]), int(content["bytes"]), str(content["sha256"]))


def read_index(root: Path) -> ShardIndex | None:
    """The index of the set in a folder; None if it has none.

    Raises DataError if it cannot be understood, or if shards were being written when somebody stopped.
    """
    path = root / INDEX
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise DataError(f"{path} has the format {content['format']!r}; this version reads {FORMAT}: {PACK_AGAIN}")
        if content.get("unfinished"):
            raise DataError(f"{root} is being packed, or that was interrupted: wait for it, or {PACK_AGAIN}")
        return _parsed(content)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no index of shards ({error}): {PACK_AGAIN}") from error


def _parsed(content: Mapping[str, Any]) -> ShardIndex:
    buckets = tuple(_bucket(name, listed) for name, listed in content["buckets"].items())
    for bucket in buckets:
        promised = content["buckets"][bucket.bucket]["samples"]
        if promised != bucket.samples:
            raise ValueError(f"bucket {bucket.bucket} has {promised} samples, its shards have {bucket.samples}")
    return ShardIndex(
        side=int(content["side"]),
        seed=int(content["seed"]),
        recipes={name: dict(recipe) for name, recipe in content["recipes"].items()},
        labels=tuple(map(str, content["labels"])),
        buckets=buckets,
        held_out=tuple(map(str, content["splits"]["held_out"])),
        probe=tuple(map(str, content["splits"]["probe"])),
    )


def _bucket(name: str, content: Mapping[str, Any]) -> BucketEntry:
    return BucketEntry(name, str(content["folder"]), tuple(map(shard_from_json, content["shards"])))


def _bucket_json(bucket: BucketEntry) -> dict[str, object]:
    return {
        "folder": bucket.folder,
        "samples": bucket.samples,
        "shards": [shard_json(shard) for shard in bucket.shards],
    }
