"""A small prepared set, as the passes would leave it, with noise in place of what encoders say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.data.buckets import BUCKETS, Bucket
from trainer.prepare.manifest import ImageEntry, Manifest, Part, write_manifest
from trainer.prepare.passes import Made
from trainer.prepare.recipe import Recipe
from trainer.prepare.recipes import note_recipes
from trainer.prepare.records import Samples

SIDE = 256
"""Side of the stored square: the smallest at which all seven buckets have whole cells of 16 pixels."""
WIDTH = 8
NEEDS = {
    "image": (),
    "caption": ("image",),
    "t5": ("caption",),
    "dinov3": ("image",),
    "pose": ("image",),
    "seg": ("image",),
}
RECIPES = {
    "image": Recipe(options={"side": SIDE}),
    "caption": Recipe(model="txt"),
    "t5": Recipe(model="tiny-t5", revision="1", label="random stand-in (seed 0): says nothing about T5"),
    "dinov3": Recipe(model="tiny-dinov3", revision="1", label="random stand-in (seed 0): says nothing about DINO"),
    "pose": Recipe(model="dwpose", revision="1"),
    "seg": Recipe(model="sapiens", revision="1"),
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A set on disk: its folder, images, artefacts and recipes."""

    data: Path
    manifest: Manifest
    recipes: Mapping[str, Recipe]

    @property
    def samples(self) -> Samples:
        return Samples(self.data)

    @property
    def ids(self) -> list[str]:
        return [entry.id for entry in self.manifest.images]

    def make(self, id: str, artefact: str, **changes: np.ndarray | str) -> None:
        """Make one artefact of one image, with some files other than they should be."""
        [entry] = [entry for entry in self.manifest.images if entry.id == id]
        inputs = self.samples.digests(id, NEEDS[artefact])
        assert inputs is not None, f"{artefact} needs {NEEDS[artefact]}"
        files = {**content(entry, artefact), **{name.replace("__", "."): value for name, value in changes.items()}}
        self.samples.keep(id, artefact, self.recipes[artefact], inputs, Made(files))

    def without(self, *ids: str) -> Manifest:
        """Its manifest when some photographs are gone."""
        images = tuple(entry for entry in self.manifest.images if entry.id not in ids)
        return Manifest(self.manifest.photos, images)


def entries(counts: Mapping[Bucket, int]) -> tuple[ImageEntry, ...]:
    """So many images of each bucket, in the order of their paths."""
    found = []
    for bucket, count in counts.items():
        for number in range(count):
            path = f"{bucket.name}/{number:03d}.jpg"
            id = hashlib.sha256(path.encode()).hexdigest()[:16]
            found.append(ImageEntry(id, path, 1, 1, bucket.name, "0" * 16))
    return tuple(sorted(found, key=lambda entry: entry.path))


def content(entry: ImageEntry, artefact: str) -> dict[str, np.ndarray | str]:
    """What an artefact of an image consists of: noise that belongs to the image, in the shapes of real encoders."""
    noise = np.random.default_rng(list(f"{entry.id}/{artefact}".encode()))
    [bucket] = [bucket for bucket in BUCKETS if bucket.name == entry.bucket]
    size = bucket.scaled(SIDE)
    assert size is not None
    height, width = size
    if artefact == "image":
        return {"image.npy": noise.integers(0, 256, (3, height, width), dtype=np.uint8)}
    if artefact == "caption":
        return {"caption.txt": f"portrait {entry.id}, größer als sonst"}
    if artefact == "t5":
        tokens = int(noise.integers(3, 12))
        hidden_TD = noise.standard_normal((tokens, WIDTH)).astype(np.float16)
        return {"t5h.npy": hidden_TD, "t5m.npy": np.ones(tokens, np.uint8)}
    if artefact == "dinov3":
        patches_ND = noise.standard_normal((height * width // 256, WIDTH)).astype(np.float16)
        return {"dinov3.npy": noise.standard_normal(WIDTH).astype(np.float16), "dinov3_patches.npy": patches_ND}
    if artefact == "pose":
        joints_J3 = np.concatenate([noise.uniform(-1, 1, (133, 2)), noise.uniform(0.1, 1, (133, 1))], axis=1)
        return {"pose.npy": joints_J3.astype(np.float16)}
    return {"seg.npy": noise.integers(0, 28, (height, width), dtype=np.uint8)}


SMALL = {BUCKETS[0]: 6, BUCKETS[2]: 4}


def prepare(
    data: Path, counts: Mapping[Bucket, int] = SMALL, artefacts: Sequence[str] = tuple(RECIPES), **changed: Recipe
) -> Prepared:
    """Write a whole set."""
    recipes = {name: changed.get(name, RECIPES[name]) for name in artefacts}
    manifest = Manifest("/photographs", entries(counts))
    write_manifest(data, manifest, Part())
    note_recipes(data, recipes)
    prepared = Prepared(data, manifest, recipes)
    for id in prepared.ids:
        for artefact in artefacts:
            prepared.make(id, artefact)
    return prepared
