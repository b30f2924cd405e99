"""What publishing a packed set means, file by file: what goes up, what is there already, what must go. No network here.

A published set has index.json and the bucket folders at its root, which is how `data.path: hub:OWNER/NAME` reads it,
and README.md, the card, beside them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from trainer.byte_progress import in_words
from trainer.data.set_index import INDEX, SetIndex, read_index
from trainer.errors import DataError
from trainer.prepare.pack import SHARDS

PUBLISHED = "published.json"
"""In the folder of the set: what its uploads left where."""
README = "README.md"
CARD, PICTURE = "card.md", "card.png"
LICENCE_NOTE = "these are your photographs: do you have the right to publish them, and do the people in them agree?"
_SHARD = re.compile(r"bucket_\d+x\d+/shard-\d+\.tar")


@dataclass(frozen=True, slots=True)
class File:
    """One file as it will stand in the repository. `content` is None for a shard, which is read from `source`."""

    path: str
    source: Path
    size: int
    sha256: str
    content: bytes | None = None

    @property
    def blob_id(self) -> str:
        """What git calls a file with this content, which the hub tells of files that are not in large storage."""
        return hashlib.sha1(b"blob %d\0" % self.size + (self.content or b""), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class There:
    """A file that the repository has: SHA-256 where it is in large storage, else its name in git."""

    path: str
    size: int
    sha256: str | None
    blob_id: str


@dataclass(frozen=True, slots=True)
class Difference:
    """What a repository lacks of a set, what it has of it, and the paths of shards that do not belong to it."""

    missing: tuple[File, ...]
    same: tuple[File, ...]
    obsolete: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of what is missing."""
        return sum(file.size for file in self.missing)


def files_of(data: Path, licence: str | None = None) -> tuple[SetIndex, tuple[File, ...]]:
    """The index of a prepared set and every file of its publication, shards first and the index last.

    Raises DataError if the set is not packed, has no card, or its shards are not as long as the index says.
    """
    shards = data / SHARDS
    index = read_index(shards)
    found = []
    for shard in index.shards:
        path = shards / shard.path
        size = path.stat().st_size if path.is_file() else None
        if size != shard.size_bytes:
            how = "is missing" if size is None else f"has {size:,} bytes, the index says {shard.size_bytes:,}"
            raise DataError(f"{path} {how}: pack the set again (--passes pack)")
        found.append(File(shard.path, path, shard.size_bytes, shard.sha256))
    card = _read(data / CARD)
    found.append(_small(README, data / CARD, _header(index, licence) + card))
    found.append(_small(PICTURE, data / PICTURE, _read(data / PICTURE)))
    found.append(_small(INDEX, shards / INDEX, index.content))
    return index, tuple(found)


def difference(files: Sequence[File], there: Sequence[There]) -> Difference:
    """Compare by path and content."""
    known = {file.path: file for file in there}
    same = tuple(file for file in files if file.path in known and _is_same(file, known[file.path]))
    ours = {file.path for file in files}
    obsolete = sorted(path for path in known if path not in ours and _SHARD.fullmatch(path))
    return Difference(tuple(file for file in files if file not in same), same, tuple(obsolete))


def summary(repository: str, index: SetIndex, found: Difference, visibility: str) -> str:
    """What an upload would do, for a person."""
    shards = sum(_SHARD.fullmatch(file.path) is not None for file in found.missing)
    lines = [
        f"hub:{repository} ({visibility}): {index.samples:,} samples in {len(index.shards)} shards, "
        f"{in_words(index.size_bytes)}; index {index.digest[:12]}…",
        f"  to upload: {len(found.missing)} files, {in_words(found.size)} ({shards} shards)",
        *(f"    {file.path:<44} {in_words(file.size):>12}" for file in found.missing),
        f"  already there: {len(found.same)} files",
        *(f"  to remove: {path}" for path in found.obsolete),
        *(f"  said in the card: {label}" for label in index.labels),
        f"  {LICENCE_NOTE}",
    ]
    return "\n".join(lines)


def as_json(repository: str, index: SetIndex, found: Difference, visibility: str, done: bool) -> Mapping[str, object]:
    """The same for a program."""
    return {
        "to": f"hub:{repository}",
        "visibility": visibility,
        "index": index.digest,
        "samples": index.samples,
        "upload": [{"path": file.path, "bytes": file.size, "sha256": file.sha256} for file in found.missing],
        "there": [file.path for file in found.same],
        "remove": list(found.obsolete),
        "labels": list(index.labels),
        "note": LICENCE_NOTE,
        "done": done,
    }


def _is_same(file: File, other: There) -> bool:
    if other.sha256 is not None:
        return other.sha256 == file.sha256
    return file.content is not None and other.blob_id == file.blob_id


def _small(path: str, source: Path, content: bytes) -> File:
    return File(path, source, len(content), hashlib.sha256(content).hexdigest(), content)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}): prepare the set, which writes it"
        ) from error


def _header(index: SetIndex, licence: str | None) -> bytes:
    """The metadata that the hub reads. Arrays are no rows for its viewer."""
    values = {
        **({"license": licence} if licence else {}),
        "tags": ["webdataset", "armature"],
        "size_categories": [_size_category(index.samples)],
        "viewer": False,
    }
    return b"---\n" + yaml.safe_dump(values, sort_keys=False).encode() + b"---\n\n"


def _size_category(samples: int) -> str:
    """The hub's own names for how many samples a set has."""
    bounds = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
    return next((name for bound, name in bounds if samples < bound), "10M<n<100M")
