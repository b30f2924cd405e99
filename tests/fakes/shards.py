"""A set of shards in the published format, written by WebDataset itself, and ways to spoil one."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from trainer.data.buckets import BUCKETS, Bucket

SIDE = 256
"""Side of the stored square: the smallest at which all seven buckets have whole cells of 16 pixels."""
WIDTH = 8


def sample(id: str, height: int, width: int, features: int = WIDTH, **changes: Any) -> dict[str, Any]:
    """One sample as WebDataset writes it. Pixels and features are noise that belongs to the id; so is the caption."""
    noise = np.random.default_rng(list(id.encode()))
    length = int(noise.integers(3, 12))
    cells = (height // 16) * (width // 16)
    pose = np.concatenate([noise.uniform(-1.2, 1.2, (133, 2)), noise.uniform(0.0, 1.3, (133, 1))], axis=1)
    return {
        "__key__": id,
        "json": {"caption": f"portrait {id} with {length} tokens", "image_id": id},
        "image.npy": noise.uniform(0, 1, (3, height, width)).astype(np.float16),
        "dinov3.npy": noise.standard_normal(features).astype(np.float16),
        "dinov3_patches.npy": noise.standard_normal((cells, features)).astype(np.float16),
        "t5h.npy": noise.standard_normal((77, features)).astype(np.float16),
        "t5m.npy": (np.arange(77) < length).astype(np.uint8),
        "pose.npy": pose.astype(np.float16),
        **changes,
    }


def as_pixels(content: dict[str, Any]) -> dict[str, Any]:
    """The same sample with its image as uint8 pixels."""
    return {**content, "image.npy": (content["image.npy"].astype(np.float32) * 255).round().astype(np.uint8)}


def write_shards(folder: Path, samples: Sequence[Mapping[str, Any]], per_shard: int = 1000) -> list[Path]:
    """shard-000000.tar and so on in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(f"{folder}/shard-%06d.tar", maxcount=per_shard, verbose=0) as writer:
        for content in samples:
            writer.write({name: value for name, value in content.items() if value is not None})
    return sorted(folder.glob("shard-*.tar"))


def write_set(
    root: Path,
    buckets: Sequence[Bucket] = BUCKETS,
    count: Callable[[int], int] = lambda index: 4 + index,
    side: int = SIDE,
    per_shard: int = 3,
    **options: Any,
) -> Path:
    """A set of so many samples in each bucket; every other bucket stores its images as uint8."""
    for index, bucket in enumerate(buckets):
        size = bucket.scaled(side)
        assert size is not None
        samples = [sample(f"b{index}s{number:02d}", *size, **options) for number in range(count(index))]
        samples = [as_pixels(content) for content in samples] if index % 2 else samples
        write_shards(root / f"bucket_{size[1]}x{size[0]}", samples, per_shard)
    return root


def square_set(root: Path, samples: Sequence[Mapping[str, Any]], side: int = 32, per_shard: int = 1000) -> Path:
    """A set of one square bucket with these samples."""
    write_shards(root / f"bucket_{side}x{side}", samples, per_shard)
    return root


def npy(array: np.ndarray) -> bytes:
    """A .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """A tar of any members, for what WebDataset would never write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
