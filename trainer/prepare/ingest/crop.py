"""The artefact `image`: one crop in the shape of a bucket, covered as tightly as the shape allows.

Shapes: C channels, H x W pixels.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image

from trainer.data.buckets import BUCKETS, Bucket
from trainer.prepare.ingest.colours import to_srgb
from trainer.prepare.ingest.decode import decode_reduced, opened, upright
from trainer.prepare.ingest.unusable import Unusable
from trainer.prepare.passes import JsonValue, Made
from trainer.prepare.recipe import Recipe

FILE = "image.npy"
MOST_ENLARGEMENT = 2.0
"""An image that had to grow by more to cover its bucket is rejected: it has no detail to learn from."""
JPEG_DETAIL = 2
"""A JPEG is decoded at a half, a quarter or an eighth only if each side still has so many times the pixels it needs."""
_LARGE_PX = 32_000_000
_one_large_image = threading.Lock()


class Cover(NamedTuple):
    """The centre of an image that has the shape of a bucket.

    `box` is (left, top, right, bottom) in pixels of the image, with fractions; `scale` is bucket pixels per image pixel
    along each side.
    """

    scale: float
    box: tuple[float, float, float, float]


def image_recipe(side: int) -> Recipe:
    """What crops are made with; `side` is that of the square bucket in pixels."""
    return Recipe(
        preprocessing=1,
        options={
            "side": side,
            "buckets": " ".join(bucket.name for bucket in BUCKETS),
            "filter": "lanczos",
            "jpeg_detail": JPEG_DETAIL,
            "colours": "sRGB",
            "background": "white",
            "most_enlargement": MOST_ENLARGEMENT,
            "perceptual_hash": "phash 8x8",
        },
    )


def nearest_bucket(width: int, height: int, allowed: Sequence[Bucket] = BUCKETS) -> Bucket:
    """The allowed bucket whose shape is nearest to that of an image by the logarithm of width / height.

    The first of equals. By the logarithm a wide image and the same one on its side are equally far from their buckets.
    """
    ratio = math.log(width / height)
    return min(allowed, key=lambda bucket: abs(math.log(bucket.width / bucket.height) - ratio))


def cover(width: int, height: int, size: tuple[int, int]) -> Cover:
    """How an image covers `size` (height, width): one of its sides is used whole, the other is cut on both ends."""
    size_height, size_width = size
    if width * size_height >= height * size_width:
        used = height * size_width / size_height
        left = (width - used) / 2.0
        return Cover(size_height / height, (left, 0.0, left + used, float(height)))
    used = width * size_height / size_width
    top = (height - used) / 2.0
    return Cover(size_width / width, (0.0, top, float(width), top + used))


class _Fitted(NamedTuple):
    """The bucket of an image, its `size` (height, width) in pixels, and how the image covers it."""

    bucket: Bucket
    size: tuple[int, int]
    scale: float
    box: tuple[float, float, float, float]


def _fitted(width: int, height: int, side: int, allowed: Sequence[Bucket]) -> _Fitted:
    bucket = nearest_bucket(width, height, allowed)
    size = bucket.scaled(side)
    assert size is not None, f"{side} is no side of a set"
    return _Fitted(bucket, size, *cover(width, height, size))


def _shrunk(
    box: tuple[float, float, float, float], whole: tuple[int, int], decoded: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A box of the whole image, both (width, height), in pixels of the image as it was decoded."""
    across, down = decoded[0] / whole[0], decoded[1] / whole[1]
    return (box[0] * across, box[1] * down, min(box[2] * across, decoded[0]), min(box[3] * down, decoded[1]))


def make_crop(content: bytes, side: int, allowed: Sequence[Bucket] = BUCKETS) -> Made:
    """The crop of an image file in the nearest allowed bucket, and what was done to get it. Raises Unusable.

    Large images are decoded one at a time, whatever the number of threads: each takes a gigabyte and more.
    """
    image = opened(content)
    with _one_large_image if image.width * image.height > _LARGE_PX else nullcontext():
        as_it_was = decode_reduced(
            image, lambda width, height: JPEG_DETAIL * _fitted(width, height, side, allowed).scale
        )
        whole = upright(image)
        width, height = as_it_was or whole.image.size
        fitted = _fitted(width, height, side, allowed)
        if fitted.scale > MOST_ENLARGEMENT:
            raise Unusable(
                f"it is too small: {width} x {height} pixels had to grow {fitted.scale:.2f} times to cover "
                f"{fitted.size[1]} x {fitted.size[0]}; allowed: up to {MOST_ENLARGEMENT:g} times"
            )
        box = _shrunk(fitted.box, (width, height), whole.image.size)
        crop = whole.image.resize(fitted.size[::-1], Image.Resampling.LANCZOS, box=box)
    colours = to_srgb(crop, whole.profile)
    facts: dict[str, JsonValue] = {
        "width": width,
        "height": height,
        "bucket": fitted.bucket.name,
        "scale": fitted.scale,
        "mode": whole.mode,
        "orientation": whole.orientation,
        "profile": colours.profile,
        "profile_converted": colours.is_converted,
        "flaws": "; ".join(flaw for flaw in (whole.flaw, colours.flaw) if flaw),
        "perceptual_hash": str(imagehash.phash(colours.image)),
    }
    return Made({FILE: np.asarray(colours.image).transpose(2, 0, 1)}, facts)
