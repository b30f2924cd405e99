"""Passes without models: small arithmetic on pixels and captions, to look at the machinery around passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainer.prepare.manifest import ImageEntry, Manifest
from trainer.prepare.passes import Encode, Failed, Inputs, Made
from trainer.prepare.recipe import Recipe
from trainer.prepare.records import Samples

IMAGE_RECIPE = Recipe(options={"side": 32})


@dataclass
class MeanColour:
    """Mean colour of an image, and the number of images that it was computed with: like a product, whose last bits
    depend on its batch. It fails for ids in `fails`, and raises `interrupt` before the `stop_at`-th batch."""

    artefact: str = "colour"
    files: tuple[str, ...] = ("colour.npy",)
    needs: tuple[str, ...] = ("image",)
    batch: int = 3
    threads: int = 1
    revision: str = "1"
    fails: frozenset[str] = frozenset()
    stop_at: int | None = None
    interrupt: type[BaseException] = KeyboardInterrupt
    batches: list[list[str]] = field(default_factory=list)
    is_open: bool = False

    @property
    def recipe(self) -> Recipe:
        return Recipe("mean", self.revision)

    @contextmanager
    def open(self) -> Iterator[Encode]:
        self.is_open = True
        try:
            yield self._encode
        finally:
            self.is_open = False

    def _encode(self, inputs: Sequence[Inputs]) -> list[Made | Failed]:
        if len(self.batches) == self.stop_at:
            raise self.interrupt
        self.batches.append([each.id for each in inputs])
        return [
            Failed("asked to") if each.id in self.fails else Made({"colour.npy": self._colour(each, len(inputs))})
            for each in inputs
        ]

    def _colour(self, each: Inputs, count: int) -> np.ndarray:
        if "image" not in self.needs:
            return np.array([len(each.caption or ""), count], dtype=np.float32)
        assert each.image_CHW is not None
        return np.append(each.image_CHW.mean(axis=(1, 2)), count).astype(np.float32)


def small_set(data: Path, count: int, buckets: Sequence[str] = ("1024x1024", "832x1216")) -> Manifest:
    """So many images of noise, in turns in each bucket, each with its artefact `image`."""
    samples, entries = Samples(data), []
    for number in range(count):
        noise = np.random.default_rng(number)
        bucket = buckets[number % len(buckets)]
        shape = (3, 32, 32) if bucket == "1024x1024" else (3, 48, 32)
        id = f"{int(noise.integers(2**62)):016x}"
        made = Made({"image.npy": noise.integers(0, 256, shape, dtype=np.uint8)})
        samples.keep(id, "image", IMAGE_RECIPE, {"source": f"{number:064x}"}, made)
        entries.append(ImageEntry(id, f"photo{number:03d}.jpg", 1000, number, bucket, f"{number:016x}"))
    return Manifest(str(data / "photos"), tuple(entries))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
