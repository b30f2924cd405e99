"""index.json of a packed set: which shards it has, how large they are, and what they hash to. No torch.

    {"format": 1, "side": 1024, "seed": 0, "recipes": {"t5": {…}, …}, "labels": […],
     "buckets": {"1024x1024": {"folder": "bucket_1024x1024", "samples": 5,
                               "shards": [{"name": "shard-000000.tar", "samples": 5, "bytes": 9, "sha256": "…"}]}},
     "splits": {"held_out": […], "probe": […]}}

It may come from anybody: names become paths only if they are exactly those that the packer gives.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trainer.data.buckets import Bucket, bucket_of, parse_folder
from trainer.errors import DataError

FILE = "index.json"
FORMAT = 1
MOST_BYTES = 64 * 2**20
"""A longer index is none: a set of a million shards has one of this size."""
_SHARD = re.compile(r"shard-\d{6}\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Shard(NamedTuple):
    """One file: `path` below the set as bucket_WxH/shard-NNNNNN.tar, its size in bytes and its SHA-256 in hex."""

    path: str
    samples: int
    size: int
    sha256: str


class IndexedBucket(NamedTuple):
    """The shards of one bucket; stored images are `height` x `width` pixels."""

    bucket: Bucket
    height: int
    width: int
    samples: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True, slots=True)
class SetIndex:
    """What an index says. `digest` is the SHA-256 in hex of its very bytes, the identity of the set.

    `side` is that of the square bucket in pixels; `recipes` and `splits` are as they stand there.
    """

    digest: str
    side: int
    buckets: tuple[IndexedBucket, ...]
    recipes: Mapping[str, Any]
    labels: tuple[str, ...]
    splits: Mapping[str, Any]

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, bucket by bucket."""
        return tuple(shard for bucket in self.buckets for shard in bucket.shards)

    @property
    def samples(self) -> int:
        """All samples."""
        return sum(bucket.samples for bucket in self.buckets)

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)


def read_index(folder: Path) -> SetIndex:
    """The index of the set in a folder. Raises DataError if there is none or it is not in order."""
    path = folder / FILE
    try:
        return parse_index(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): is it a packed set?") from error


def parse_index(content: bytes, name: str) -> SetIndex:
    """The index in these bytes; `name` says where they are from. Raises DataError."""
    try:
        values = json.loads(content)
        if not isinstance(values, dict) or "format" not in values:
            raise ValueError("it has no format")
        if values["format"] != FORMAT:
            raise DataError(
                f"{name} has the format {values['format']!r}; this version reads {FORMAT}: pack the set again, or "
                "install the version that packed it"
            )
        if values.get("unfinished"):
            raise DataError(f"{name} says that the set is being packed, or that this was interrupted: pack it again")
        buckets = tuple(_bucket(key, bucket) for key, bucket in values["buckets"].items())
        found = SetIndex(
            digest=hashlib.sha256(content).hexdigest(),
            side=_count(values, "side"),
            buckets=buckets,
            recipes=_mapping(values.get("recipes", {}), "recipes"),
            labels=tuple(str(label) for label in values.get("labels", ())),
            splits=_mapping(values.get("splits", {}), "splits"),
        )
        _require_consistent(found)
        return found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise DataError(f"{name} is no index of shards: {what}") from error


def _bucket(key: str, values: Mapping[str, Any]) -> IndexedBucket:
    folder = values["folder"]
    size = parse_folder(folder) if isinstance(folder, str) else None
    known = bucket_of(*size) if size else None
    if size is None or known is None or known[0].name != key:
        raise ValueError(f"{folder!r:.80} is no folder of bucket {key!r:.40}")
    shards = tuple(_shard(folder, one) for one in values["shards"])
    if not shards or len({shard.path for shard in shards}) < len(shards):
        raise ValueError(f"{folder} has no shards, or one of them twice")
    return IndexedBucket(known[0], size[1], size[0], _count(values, "samples"), shards)


def _shard(folder: str, values: Mapping[str, Any]) -> Shard:
    name, digest = values["name"], values["sha256"]
    if not isinstance(name, str) or not _SHARD.fullmatch(name):
        raise ValueError(f"{name!r:.80} is no shard-NNNNNN.tar")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ValueError(f"{name} has no SHA-256")
    return Shard(f"{folder}/{name}", _count(values, "samples"), _count(values, "bytes"), digest)


def _count(values: Mapping[str, Any], key: str) -> int:
    number = values[key]
    if type(number) is not int or number < 1:
        raise ValueError(f"{key} is {number!r:.40}, not a whole number from 1 on")
    return number


def _mapping(values: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{key} is no mapping")
    return values


def _require_consistent(index: SetIndex) -> None:
    if not index.buckets:
        raise ValueError("it has no buckets")
    for bucket in index.buckets:
        if bucket.bucket.scaled(index.side) != (bucket.height, bucket.width):
            raise ValueError(f"bucket {bucket.bucket.name} is not stored at side {index.side}")
        if sum(shard.samples for shard in bucket.shards) != bucket.samples:
            raise ValueError(f"the shards of bucket {bucket.bucket.name} do not hold {bucket.samples} samples")
