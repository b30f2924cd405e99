"""index.json of a packed set: which shards it has, what they hash to, what they were made with, how ids are split.

    {"format": 1, "side": 1024, "seed": 0, "recipes": {"t5": {…}, …}, "labels": […],
     "buckets": {"1024x1024": {"folder": "bucket_1024x1024", "samples": 5,
                               "shards": [{"name": "shard-000000.tar", "samples": 5, "bytes": 9, "sha256": "…"}]}},
     "splits": {"held_out": […], "probe": […]}}

It is written when everything else is there. While shards change, an index without content stands in its place, so that
nobody trains on half a set. It may come from anybody: names become paths only if they are exactly those that the packer
gives. No torch, no NumPy: a check of a configuration reads it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trainer.data.buckets import Bucket, bucket_of, parse_folder
from trainer.errors import DataError

INDEX = "index.json"
FORMAT = 1
MOST_BYTES = 64 * 2**20
"""A longer index is none: a set of a million shards has one of this size."""
UNFINISHED_INDEX = b'{"format": 1, "unfinished": true}\n'
"""Stands where the index will be for as long as shards are written and removed."""
PACK_AGAIN = "pack the set again (python -m trainer prepare PHOTOS --out DATA --passes pack), or copy it again"
_SHARD = re.compile(r"shard-[0-9]{6}\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Shard(NamedTuple):
    """One file: `path` below the set as bucket_WxH/shard-NNNNNN.tar, its size in bytes and its SHA-256 in hex."""

    path: str
    samples: int
    size_bytes: int
    sha256: str

    def as_json(self) -> dict[str, object]:
        """The shard as the index lists it: by its name in the folder of its bucket."""
        name = self.path.rpartition("/")[2]
        return {"name": name, "samples": self.samples, "bytes": self.size_bytes, "sha256": self.sha256}


class IndexedBucket(NamedTuple):
    """The shards of one bucket; stored images are `height` x `width` pixels."""

    bucket: Bucket
    height: int
    width: int
    shards: tuple[Shard, ...]

    @property
    def folder(self) -> str:
        """Where they lie below the set."""
        return f"bucket_{self.width}x{self.height}"

    @property
    def samples(self) -> int:
        """Samples of all shards."""
        return sum(shard.samples for shard in self.shards)


@dataclass(frozen=True, slots=True)
class SetIndex:
    """What an index says. `content` is its very bytes and `digest` their SHA-256 in hex, the identity of the set.

    `side` is that of the square bucket in pixels, `seed` that of the order. `recipes` are plain JSON by artefact,
    `labels` say what must not be believed of them; `held_out` and `probe` are ids that are not trained on.
    """

    content: bytes = field(repr=False)
    digest: str
    side: int
    seed: int
    recipes: Mapping[str, Mapping[str, Any]]
    labels: tuple[str, ...]
    buckets: tuple[IndexedBucket, ...]
    held_out: tuple[str, ...]
    probe: tuple[str, ...]

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, bucket by bucket."""
        return tuple(shard for bucket in self.buckets for shard in bucket.shards)

    @property
    def samples(self) -> int:
        """Samples of all shards."""
        return sum(bucket.samples for bucket in self.buckets)

    @property
    def size_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size_bytes for shard in self.shards)

    def differences(self, sizes: Mapping[str, int]) -> list[str]:
        """How the shards that are there, with their sizes in bytes by path, differ from the index."""
        listed = {shard.path: shard.size_bytes for shard in self.shards}
        return [
            *(f"{path} is missing" for path in listed if path not in sizes),
            *(
                f"{path} has {sizes[path]:,} bytes where the index says {size:,}"
                for path, size in listed.items()
                if sizes.get(path, size) != size
            ),
            *(f"{path} is not in the index" for path in sizes if path not in listed),
        ]


def index_of(
    side: int,
    seed: int,
    recipes: Mapping[str, Mapping[str, object]],
    labels: Sequence[str],
    buckets: Sequence[IndexedBucket],
    held_out: Sequence[str],
    probe: Sequence[str],
) -> SetIndex:
    """The index of a set, with the bytes that are written. They hold no time and no path outside the set: the same set
    makes the same bytes. Raises DataError for what no reader would take, such as a set without shards."""
    values = {
        "format": FORMAT,
        "side": side,
        "seed": seed,
        "recipes": dict(sorted(recipes.items())),
        "labels": list(labels),
        "buckets": {each.bucket.name: _bucket_json(each) for each in buckets},
        "splits": {"held_out": list(held_out), "probe": list(probe)},
    }
    content = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    return parse_index(content, f"the new {INDEX}")


def find_index(root: Path) -> SetIndex | None:
    """The index of the set in a folder; None if it has none. Raises DataError as `parse_index` does."""
    path = root / INDEX
    try:
        return parse_index(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def read_index(root: Path) -> SetIndex:
    """The index of the set in a folder. Raises DataError if there is none or it is not in order."""
    found = find_index(root)
    if found is None:
        raise DataError(f"{root / INDEX} is not there: is it a packed set? {PACK_AGAIN}")
    return found


def parse_index(content: bytes, name: str) -> SetIndex:
    """The index in these bytes; `name` says where they are from.

    Raises DataError if they cannot be understood, or if shards were being written when somebody stopped.
    """
    try:
        values = json.loads(content, parse_constant=_refuse_constant)
        if not isinstance(values, dict) or "format" not in values:
            raise ValueError("it has no format")
        if values["format"] != FORMAT:
            raise DataError(
                f"{name} has the format {values['format']!r:.40}; this version reads {FORMAT}: {PACK_AGAIN}, or "
                "install the version that packed it"
            )
        if values.get("unfinished"):
            raise DataError(f"{name}: the set is being packed, or that was interrupted: wait for it, or {PACK_AGAIN}")
        return _parsed(values, content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise DataError(f"{name} is no index of shards ({what}): {PACK_AGAIN}") from error


def shard_from_json(folder: str, values: Mapping[str, Any]) -> Shard:
    """What `Shard.as_json` made, in the folder of its bucket. Raises KeyError, TypeError or ValueError otherwise."""
    name, digest = values["name"], values["sha256"]
    if not isinstance(name, str) or not _SHARD.fullmatch(name):
        raise ValueError(f"{name!r:.80} is no shard-NNNNNN.tar")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ValueError(f"{name} has no SHA-256")
    return Shard(f"{folder}/{name}", _count(values, "samples"), _count(values, "bytes"), digest)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _bucket_json(bucket: IndexedBucket) -> dict[str, object]:
    shards = [shard.as_json() for shard in bucket.shards]
    return {"folder": bucket.folder, "samples": bucket.samples, "shards": shards}


def _parsed(values: Mapping[str, Any], content: bytes) -> SetIndex:
    side = _count(values, "side")
    buckets = tuple(_bucket(key, bucket, side) for key, bucket in _mapping(values, "buckets").items())
    recipes, splits = _mapping(values, "recipes"), _mapping(values, "splits")
    held_out, probe = _texts(splits, "held_out"), _texts(splits, "probe")
    found = SetIndex(
        content=content,
        digest=hashlib.sha256(content).hexdigest(),
        side=side,
        seed=_whole(values, "seed"),
        recipes={name: _mapping(recipes, name) for name in recipes},
        labels=_texts(values, "labels"),
        buckets=buckets,
        held_out=held_out,
        probe=probe,
    )
    if not buckets:
        raise ValueError("it has no buckets")
    if len({*held_out, *probe}) < len(held_out) + len(probe):
        raise ValueError("an id is in its splits twice")
    if len(held_out) + len(probe) > found.samples:
        raise ValueError(f"its splits hold more ids than its {found.samples} samples")
    return found


def _bucket(key: str, values: Mapping[str, Any], side: int) -> IndexedBucket:
    folder = values["folder"]
    size = parse_folder(folder) if isinstance(folder, str) else None
    known = bucket_of(*size) if size else None
    if size is None or known is None or known[0].name != key:
        raise ValueError(f"{folder!r:.80} is no folder of bucket {key!r:.40}")
    if known[1] != side:
        raise ValueError(f"bucket {key} is not stored at side {side}")
    shards = tuple(shard_from_json(folder, one) for one in values["shards"])
    if not shards or len({shard.path for shard in shards}) < len(shards):
        raise ValueError(f"{folder} has no shards, or one of them twice")
    found, promised = IndexedBucket(known[0], size[1], size[0], shards), _count(values, "samples")
    if found.samples != promised:
        raise ValueError(f"bucket {key} has {promised} samples, its shards have {found.samples}")
    return found


def _count(values: Mapping[str, Any], key: str) -> int:
    number = _whole(values, key)
    if number < 1:
        raise ValueError(f"{key} is {number}, not a whole number from 1 on")
    return number


def _whole(values: Mapping[str, Any], key: str) -> int:
    number = values[key]
    if type(number) is not int:
        raise ValueError(f"{key} is {number!r:.40}, not a whole number")
    return number


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values[key]
    if not isinstance(found, dict):
        raise ValueError(f"{key} is no mapping")
    return found


def _texts(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = values[key]
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"{key} is no list of texts")
    return tuple(found)
