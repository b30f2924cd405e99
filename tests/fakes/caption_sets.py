"""Small prepared sets whose images are flat colours: what a caption pass works on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from trainer.prepare.manifest import ImageEntry, Manifest
from trainer.prepare.passes import Made
from trainer.prepare.recipe import Recipe
from trainer.prepare.records import Record, Samples

COLOUR_STEP = 8


def caption_set(root: Path, count: int) -> tuple[Samples, Manifest]:
    """A set of so many images of 32 x 48 pixels, made but without captions; image n has the grey value 8 n."""
    samples, entries = Samples(root / "data"), []
    (root / "photos").mkdir()
    for number in range(count):
        id = hashlib.sha256(str(number).encode()).hexdigest()[:16]
        name = f"{number:02}.jpg"
        (root / "photos" / name).write_bytes(b"a photograph")
        image_CHW = np.full((3, 48, 32), COLOUR_STEP * number, np.uint8)
        samples.keep(id, "image", Recipe(), {}, Made({"image.npy": image_CHW}))
        entries.append(ImageEntry(id, name, 12, 0, "32x48", "0" * 16))
    return samples, Manifest(str(root / "photos"), tuple(entries))


def captions_of(samples: Samples, manifest: Manifest) -> list[str]:
    """The captions in the order of the manifest."""
    return [samples.read(entry.id, "caption.txt").decode() for entry in manifest.images]


def caption_record(samples: Samples, manifest: Manifest, number: int) -> Record:
    """The record of one caption, which must be there."""
    record = samples.record(manifest.images[number].id, "caption")
    assert record is not None
    return record
