"""A prepared and packed set: drawn portraits with their joints, artefacts with records, shards with their index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.fakes.shards import SIDE, write_set
from trainer.data.anatomy import joints_of
from trainer.data.buckets import BUCKETS, Bucket
from trainer.data.captions import caption as caption_of
from trainer.data.drawing import draw
from trainer.data.portraits import portrait_of
from trainer.prepare.manifest import ImageEntry, Manifest, Part, write_manifest
from trainer.prepare.passes import Made
from trainer.prepare.recipe import Recipe
from trainer.prepare.records import Samples

LABEL = "random stand-in (seed 0): says nothing about T5"
RECIPES = {
    "image": Recipe(options={"side": 256}),
    "caption": Recipe(model="files beside the images"),
    "t5": Recipe(model="tiny-t5", revision="0123456789abcdef", label=LABEL),
    "dinov3": Recipe(model="tiny-dinov3", revision="1"),
    "pose": Recipe(model="dwpose", revision="1"),
}


def packed_set(root: Path, buckets: Sequence[Bucket] = BUCKETS[:2], **options: Any) -> Path:
    """Shards and index.json in `root`."""
    write_set(root, buckets, count=lambda index: 4 + index, per_shard=2, **options)
    write_index(root)
    return root


def write_index(root: Path, side: int = SIDE) -> None:
    """The index of whatever shards are there."""
    content = {
        "format": 1,
        "side": side,
        "seed": 0,
        "recipes": {name: recipe.as_json() for name, recipe in RECIPES.items()},
        "labels": [LABEL],
        "buckets": {},
        "splits": {"held_out": ["b0s00"], "probe": ["b0s01"]},
    }
    for bucket in BUCKETS:
        size = bucket.scaled(side)
        assert size is not None
        folder = root / f"bucket_{size[1]}x{size[0]}"
        if folder.is_dir():
            shards = [_shard(path) for path in sorted(folder.glob("shard-*.tar"))]
            samples = sum(shard["samples"] for shard in shards)
            content["buckets"][bucket.name] = {"folder": folder.name, "samples": samples, "shards": shards}
    (root / "index.json").write_text(json.dumps(content, indent=1))


def _shard(path: Path) -> dict[str, Any]:
    from trainer.data.tar_index import index_tar

    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return {"name": path.name, "samples": len(index_tar(path)), "bytes": len(content), "sha256": digest}


def prepared_set(data: Path, counts: Sequence[int] = (2, 1, 1, 1, 1, 1, 1), side: int = 256) -> Manifest:
    """Artefacts of so many drawn portraits of each bucket, with records and manifest."""
    samples, entries = Samples(data), []
    for bucket, count in zip(BUCKETS, counts, strict=True):
        for number in range(count):
            entries.append(_prepare(samples, bucket, number, side))
    entries.sort(key=lambda entry: entry.path)
    manifest = Manifest(
        "/photographs",
        tuple(entries),
        rejected=(("a|b*.jpg", "it is broken: 12 bytes are missing"), ("c.jpg", "it is broken: 7 bytes are missing")),
        copies=(("copy.jpg", entries[0].path),),
    )
    write_manifest(data, manifest, Part())
    return manifest


def _prepare(samples: Samples, bucket: Bucket, number: int, side: int) -> ImageEntry:
    path = f"{bucket.name}/{number:03d}.jpg"
    id = hashlib.sha256(path.encode()).hexdigest()[:16]
    size = bucket.scaled(side)
    assert size is not None
    portrait = portrait_of(id)
    caption = caption_of(portrait) + (" <script>alert(1)</script> in a *garden* of [links](http://x)" if number else "")
    pixels_HWC = draw(portrait, *size).pixels_HWC
    words = len(caption.split())
    has_person = number != 1
    made = {
        "image": Made({"image.npy": np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1))}),
        "caption": Made({"caption.txt": caption}),
        "t5": Made(
            {"t5h.npy": np.zeros((words, 8), np.float16), "t5m.npy": np.ones(words, np.uint8)},
            {"tokens": words, "truncated": 3 * number},
        ),
        "pose": Made(
            {"pose.npy": (joints_of(portrait, *size) * has_person).astype(np.float16)}, {"detected": has_person}
        ),
    }
    for artefact, each in made.items():
        samples.keep(id, artefact, RECIPES[artefact], {}, each)
    return ImageEntry(id, path, 1, 1, bucket.name, id)
