"""A set of shards as it lies on disk: `<path>/bucket_<W>x<H>/shard-NNNNNN.tar`, and what its samples are made of.

`describe_set` looks at names and at the first sample of each bucket only, so that a configuration can be checked in no
time. A set that was packed here has an index beside its buckets, which must speak of the very shards that are there.
No torch here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from trainer.data.buckets import BUCKETS, Bucket, bucket_of, parse_folder
from trainer.data.npy_header import LONGEST_BYTES, read_header
from trainer.data.set_index import INDEX, PACK_AGAIN, SetIndex, find_index
from trainer.data.tar_index import Span, first_entry, read_span
from trainer.errors import DataError

FEATURE_CELL = 16
"""Side of the image cell, in pixels of the stored image, that one of the stored patch features describes."""
_SHARD = re.compile(r"shard-\d+\.tar")
_FEATURES = ("t5h.npy", "dinov3.npy", "dinov3_patches.npy")


class ShardFolder(NamedTuple):
    """The shards of one bucket; stored images are `height` x `width` pixels."""

    bucket: Bucket
    height: int
    width: int
    tars: tuple[Path, ...]

    @property
    def feature_grid(self) -> tuple[int, int]:
        """Rows and columns of the stored patch features."""
        return self.height // FEATURE_CELL, self.width // FEATURE_CELL


@dataclass(frozen=True, slots=True)
class ShardSet:
    """All buckets of a set in the order of `BUCKETS`.

    `side` is that of the stored square images, whether or not there are any; `left_alone` names what is no shard.
    `index` is what was packed, None for shards that were made elsewhere and came without one.
    The rest comes from the first sample of every bucket: `suffixes` of all their members, `widths` in features of
    `t5h.npy`, `dinov3.npy` and `dinov3_patches.npy`, and `text_length`, the tokens of the longest `t5h.npy`.
    """

    root: Path
    side: int
    folders: tuple[ShardFolder, ...]
    left_alone: tuple[str, ...]
    suffixes: frozenset[str]
    widths: Mapping[str, int]
    text_length: int
    index: SetIndex | None

    @property
    def labels(self) -> tuple[str, ...]:
        """What must not be believed of the features, as far as the index says."""
        return () if self.index is None else self.index.labels


def describe_set(root: Path) -> ShardSet:
    """The set in a folder. Raises DataError that says what is wrong with it and what to do."""
    folders, left_alone = _folders(root)
    statuses = _statuses(folders)
    index = _index(root, {tar.relative_to(root).as_posix(): status.st_size for tar, status in statuses})
    tars = tuple((str(tar), status.st_size, status.st_mtime_ns) for tar, status in statuses)
    return replace(_described(root, tuple(folders), tuple(left_alone), tars), index=index)


def _index(root: Path, sizes: Mapping[str, int]) -> SetIndex | None:
    """The index of a set, None if it has none. Raises DataError if it is of other shards.

    `sizes` are those of the shards that are there, in bytes by path.
    """
    index = find_index(root)
    if index is None:
        return None
    differences = index.differences(sizes)
    if differences:
        more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
        raise DataError(f"{root} is not what its {INDEX} says: {differences[0]}{more}: {PACK_AGAIN}")
    return index


def _statuses(folders: list[ShardFolder]) -> list[tuple[Path, os.stat_result]]:
    try:
        return [(tar, tar.stat()) for folder in folders for tar in folder.tars]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error


@lru_cache(maxsize=8)
def _described(
    root: Path,
    folders: tuple[ShardFolder, ...],
    left_alone: tuple[str, ...],
    identity: tuple[object, ...],
) -> ShardSet:
    """Looked up once as long as names, sizes and times of the shards (`identity`) stay what they are."""
    side = _common_side(root, folders)
    widths: dict[str, int] = {}
    suffixes: set[str] = set()
    longest = 0
    for folder in folders:
        members = first_entry(folder.tars[0])
        if not members:
            raise DataError(f"{folder.tars[0]} holds no samples: take it out of the set")
        suffixes.update(members)
        for suffix, shape in _shapes(folder.tars[0], members).items():
            if widths.setdefault(suffix, shape[-1]) != shape[-1]:
                raise DataError(
                    f"{folder.tars[0]}: its {suffix} has {shape[-1]} features, those of earlier buckets "
                    f"{widths[suffix]}: a set needs one encoder"
                )
            longest = max(longest, shape[0]) if suffix == "t5h.npy" else longest
    return ShardSet(root, side, folders, left_alone, frozenset(suffixes), widths, longest, index=None)


def _folders(root: Path) -> tuple[list[ShardFolder], list[str]]:
    """The buckets of a set and everything in it that is no shard."""
    found, left_alone = [], []
    for path in sorted(_listed(root)):
        if path.name.startswith("bucket_") and path.is_dir():
            folder, others = _folder(path)
            found += [folder]
            left_alone += others
        elif path.name != INDEX:
            left_alone.append(path.name)
    if not found:
        raise DataError(f"{root} holds no folder bucket_<width>x<height> with shard-NNNNNN.tar files in it")
    return sorted(found, key=lambda folder: BUCKETS.index(folder.bucket)), left_alone


def _folder(path: Path) -> tuple[ShardFolder, list[str]]:
    size = parse_folder(path.name)
    known = bucket_of(*size) if size else None
    if size is None or known is None:
        names = ", ".join(bucket.name for bucket in BUCKETS)
        raise DataError(f"{path} is no bucket: allowed are bucket_<width>x<height> with {names}, or all of them scaled")
    width, height = size
    if width % FEATURE_CELL or height % FEATURE_CELL:
        raise DataError(
            f"{path}: stored images must be multiples of {FEATURE_CELL} pixels, the cells of their features"
        )
    inside = sorted(_listed(path))
    tars = tuple(tar for tar in inside if _SHARD.fullmatch(tar.name) and tar.is_file())
    if not tars:
        raise DataError(f"{path} holds no shard-NNNNNN.tar: fill it, or take it out of the set")
    return ShardFolder(known[0], height, width, tars), [f"{path.name}/{one.name}" for one in inside if one not in tars]


def _listed(folder: Path) -> list[Path]:
    """What lies in a folder, hidden files aside."""
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error


def _common_side(root: Path, folders: tuple[ShardFolder, ...]) -> int:
    sides: dict[int, str] = {}
    for folder in folders:
        known = bucket_of(folder.width, folder.height)
        assert known is not None, "only known buckets become folders"
        sides.setdefault(known[1], folder.tars[0].parent.name)
    if len(sides) > 1:
        listed = ", ".join(f"{name} belongs to a square of {side}" for side, name in sides.items())
        raise DataError(f"{root} mixes resolutions: {listed}; put each resolution into a set of its own")
    return next(iter(sides))


def _shapes(tar: Path, members: Mapping[str, Span]) -> dict[str, tuple[int, ...]]:
    """Shapes of the features of one sample; what is broken in them is found when samples are checked."""
    descriptor = os.open(tar, os.O_RDONLY)
    try:
        found = {suffix: _shape(descriptor, members[suffix]) for suffix in _FEATURES if suffix in members}
    finally:
        os.close(descriptor)
    return {suffix: shape for suffix, shape in found.items() if shape}


def _shape(descriptor: int, span: Span) -> tuple[int, ...]:
    try:
        return read_header(read_span(descriptor, span._replace(size=min(span.size, LONGEST_BYTES)))).shape
    except (ValueError, EOFError):
        return ()
