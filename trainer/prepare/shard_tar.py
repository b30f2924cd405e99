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
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from trainer.data.npy_header import read_header
from trainer.errors import DataError
from trainer.prepare.artefacts import CAPTION_FILE, JSON_MEMBER
from trainer.prepare.progress import Advance
from trainer.prepare.records import UNFINISHED, Samples, replace_file
from trainer.prepare.shard_index import ShardEntry, shard_from_json, shard_json
from trainer.prepare.shard_plan import Packable, ShardPlan

_READERS = 2
_AHEAD = 4  # samples, of 15 MB each at 1024


def written_shard(root: Path, plan: ShardPlan) -> ShardEntry | None:
    """The shard of a plan if it is there and whole as far as its size tells; None if it has to be written."""
    tar = root / plan.path
    try:
        content = json.loads(plan_file(tar).read_bytes())
        entry = shard_from_json(content["shard"])
        is_it = content["plan"] == plan.digest and entry.name == plan.name and tar.stat().st_size == entry.size_bytes
    except (OSError, ValueError, KeyError, TypeError):
        return None  # whatever is wrong with it, writing the shard again is right
    return entry if is_it else None


def write_shard(root: Path, plan: ShardPlan, samples: Samples, advance: Advance) -> ShardEntry:
    """Write a shard. Raises OSError, and DataError if a file of a sample is not what its record says."""
    tar = root / plan.path
    tar.parent.mkdir(parents=True, exist_ok=True)
    plan_file(tar).unlink(missing_ok=True)
    unfinished = tar.with_name(f".{tar.name}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            hashing = _Hashing(file)
            with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.USTAR_FORMAT) as archive:
                for members in _read_ahead(plan, samples):
                    for name, content in members:
                        archive.addfile(_header(name, len(content)), io.BytesIO(content))
                    advance(1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, tar)
    finally:
        unfinished.unlink(missing_ok=True)
    entry = ShardEntry(plan.name, len(plan.samples), hashing.size_bytes, hashing.hash.hexdigest())
    content = json.dumps({"plan": plan.digest, "shard": shard_json(entry)}, indent=1)
    replace_file(plan_file(tar), content.encode() + b"\n")
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


class _Hashing:
    """A file that can only be written, and that knows the hash and the size of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.size_bytes = 0

    def write(self, content: bytes) -> int:
        self.hash.update(content)
        self.size_bytes += len(content)
        return self._file.write(content)


def _header(name: str, size_bytes: int) -> tarfile.TarInfo:
    """A plain file of nobody's, from 1970."""
    header = tarfile.TarInfo(name)
    header.size, header.mtime, header.mode = size_bytes, 0, 0o644
    return header


def _read_ahead(plan: ShardPlan, samples: Samples) -> Iterator[list[tuple[str, bytes]]]:
    """Members of every sample in their order, read while earlier ones are written."""
    with ThreadPoolExecutor(_READERS, "pack") as readers:
        following = iter(plan.samples)
        ahead: deque[Future[list[tuple[str, bytes]]]] = deque()
        try:
            while True:
                room = _AHEAD - len(ahead)
                ahead.extend(readers.submit(_members, samples, plan, image) for image in islice(following, room))
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()


def _members(samples: Samples, plan: ShardPlan, image: Packable) -> list[tuple[str, bytes]]:
    contents = {name: _checked(samples, image, name, digest) for name, digest in image.files}
    _refuse_other_size(samples, plan, image, contents["image.npy"])
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
            f"{samples.folder(image.id) / 'image.npy'} has the shape {shape}; bucket {plan.bucket.name} needs "
            f"{(3, *plan.size)}: run python -m trainer verify {samples.root.parent} --fix, then prepare again"
        )
