"""Writes one shard as WebDataset has it, the same bytes for the same plan, and knows whether it is there. No torch.

A tar is written beside its place and renamed. What plan it is of stands in a hidden file beside it, which is removed
before the tar is replaced and written after: it never speaks of another tar.

WebDataset's own TarWriter makes the same members; it is not used because importing it loads torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

from trainer.data.artefacts import CAPTION_FILE, IMAGE_MEMBER, JSON_MEMBER
from trainer.data.npy_header import read_header
from trainer.data.set_index import Shard, shard_from_json
from trainer.errors import DataError
from trainer.prepare.pipeline import in_order
from trainer.prepare.progress import Advance
from trainer.prepare.records import UNFINISHED, Samples, replace_file
from trainer.prepare.shard_plan import Packable, ShardPlan

_READERS = 2
_AHEAD = 4  # samples, of 15 MB each at 1024


def written_shard(root: Path, plan: ShardPlan) -> Shard | None:
    """The shard of a plan if it is there and whole as far as its size tells; None if it has to be written."""
    tar = root / plan.path
    try:
        content = json.loads(plan_file(tar).read_bytes())
        entry = shard_from_json(plan.folder, content["shard"])
        is_it = content["plan"] == plan.digest and entry.path == plan.path and tar.stat().st_size == entry.size_bytes
    except (OSError, ValueError, KeyError, TypeError):
        return None  # whatever is wrong with it, writing the shard again is right
    return entry if is_it else None


def write_shard(root: Path, plan: ShardPlan, samples: Samples, advance: Advance) -> Shard:
    """Write a shard. Raises OSError, and DataError if a file of a sample is not what its record says."""
    tar = root / plan.path
    tar.parent.mkdir(parents=True, exist_ok=True)
    plan_file(tar).unlink(missing_ok=True)
    unfinished = tar.with_name(f".{tar.name}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            hashing = _Hashing(file)
            with (
                tarfile.open(fileobj=hashing, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
                ThreadPoolExecutor(_READERS, "pack") as readers,
                closing(
                    in_order(plan.samples, lambda image: readers.submit(_members, samples, plan, image), _AHEAD)
                ) as read,
            ):
                for _, members in read:
                    for name, content in members:
                        archive.addfile(_header(name, len(content)), io.BytesIO(content))
                    advance(1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, tar)
    finally:
        unfinished.unlink(missing_ok=True)
    entry = Shard(plan.path, len(plan.samples), hashing.size_bytes, hashing.hash.hexdigest())
    noted = json.dumps({"plan": plan.digest, "shard": entry.as_json()}, indent=1)
    replace_file(plan_file(tar), noted.encode() + b"\n")
    return entry


def plan_file(tar: Path) -> Path:
    """Where the plan of a shard is noted."""
    return tar.with_name(f".{tar.stem}.json")


def json_member(image: Packable, caption: str, size: tuple[int, int]) -> bytes:
    """What a shard says of an image in words; `size` is (height, width) in pixels."""
    content = {
        "caption": caption,
        "image_id": image.id,
        "source": image.source,
        "bucket": image.bucket,
        "width": size[1],
        "height": size[0],
    }
    return json.dumps(content, ensure_ascii=False).encode()


class _Hashing(io.RawIOBase):
    """A file that can only be written, and that knows the hash and the size of what was."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.hash = hashlib.sha256()
        self.size_bytes = 0

    def write(self, content: Any, /) -> int:  # any buffer, for which Python 3.11 has no type
        written = self._file.write(content)
        self.hash.update(content)
        self.size_bytes += written
        return written


def _header(name: str, size_bytes: int) -> tarfile.TarInfo:
    """A plain file of nobody's, from 1970."""
    header = tarfile.TarInfo(name)
    header.size, header.mtime, header.mode = size_bytes, 0, 0o644
    return header


def _members(samples: Samples, plan: ShardPlan, image: Packable) -> list[tuple[str, bytes]]:
    contents = {name: _checked(samples, image, name, digest) for name, digest in image.files}
    _refuse_other_size(samples, plan, image, contents[IMAGE_MEMBER])
    caption = contents.pop(CAPTION_FILE, b"").decode()
    contents[JSON_MEMBER] = json_member(image, caption, plan.size)
    return [(f"{image.id}.{suffix}", content) for suffix, content in sorted(contents.items())]


def _checked(samples: Samples, image: Packable, name: str, digest: str) -> bytes:
    content = samples.read(image.id, name)
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(
            f"{samples.folder(image.id) / name} is not what its record says: run python -m trainer verify "
            f"{samples.root.parent} --fix, then prepare again"
        )
    return content


def _refuse_other_size(samples: Samples, plan: ShardPlan, image: Packable, content: bytes) -> None:
    try:
        shape = read_header(content).shape
    except ValueError:
        shape = ()
    if shape != (3, *plan.size):
        raise DataError(
            f"{samples.folder(image.id) / IMAGE_MEMBER} has the shape {shape}; bucket {plan.bucket.name} needs "
            f"{(3, *plan.size)}: run python -m trainer verify {samples.root.parent} --fix, then prepare again"
        )
