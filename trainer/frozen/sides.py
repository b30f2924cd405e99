"""The sizes in pixels at which frozen networks look at images. No torch here."""

from __future__ import annotations

import math

LPIPS_MULTIPLE = 16
"""LPIPS halves an image four times before its last layer."""
LPIPS_SMALLEST = 32
DINO_RANDOM_PATCH = 14
"""Patch of the stand-in, that of DINOv2."""


def looked_at(height: int, width: int, size: int | None, multiple: int) -> tuple[int, int]:
    """Height and width for an image of `height` x `width`: the area of `size` x `size`, the shape kept.

    Both are multiples of `multiple`, at least one. A `size` of None leaves the image as it is.
    """
    if size is None:
        return height, width
    scale = size / math.sqrt(height * width)
    return _nearest(height * scale, multiple), _nearest(width * scale, multiple)


def _nearest(length: float, multiple: int) -> int:
    return max(1, round(length / multiple)) * multiple
