"""A person's own image as the photographs of the set were prepared: decoded, upright, cut to a bucket.

Shapes: C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.asking.encoders import recipe_of
from trainer.data.buckets import BUCKETS, Bucket
from trainer.data.set_record import SetRecord
from trainer.errors import DataError, UsageError
from trainer.prepare.ingest import image_recipe
from trainer.prepare.ingest.crop import FILE, make_crop
from trainer.prepare.ingest.source import read_content
from trainer.prepare.ingest.unusable import Unusable


@dataclass(frozen=True, slots=True)
class Crop:
    """`image_CHW` is uint8 sRGB in the stored size of `bucket`; `notes` say what is odd about its file."""

    source: Path
    bucket: Bucket
    image_CHW: np.ndarray
    notes: tuple[str, ...] = ()


def crop_of(record: SetRecord, path: Path, allowed: Sequence[Bucket], option: str) -> Crop:
    """The crop of an image file in the nearest of the allowed buckets.

    Raises UsageError that begins with `option` if the file cannot be used, DataError if the photographs of the set were
    cut in another way.
    """
    wanted, ours = recipe_of(record, "image"), image_recipe(record.side)
    if wanted.as_json() != ours.as_json():
        raise DataError(
            f"the photographs of this run were cut in another way than this version does it: {wanted.as_json()}, here "
            f"{ours.as_json()}; prepare the set again and train on it, or ask with --prompt alone"
        )
    try:
        made = make_crop(read_content(path)[0], record.side, allowed)
    except Unusable as error:
        raise UsageError(f"{option} {path} cannot be used: {error}") from error
    image_CHW = made.files[FILE]
    assert isinstance(image_CHW, np.ndarray), "a crop is an array"
    bucket = next(bucket for bucket in BUCKETS if bucket.name == made.facts["bucket"])
    flaws = str(made.facts["flaws"])
    return Crop(path, bucket, image_CHW, (f"{option} {path}: {flaws}",) if flaws else ())
