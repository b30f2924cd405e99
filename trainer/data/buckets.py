"""Aspect-ratio buckets: seven shapes of about a megapixel, scaled to any size. No torch here.

A bucket is named after its pixels (width x height) at a square side of 1024; a set stored at another resolution, or a
run at another `data.size`, has the same seven scaled by side / 1024.
"""

from __future__ import annotations

import re
from typing import NamedTuple

SQUARE = 1024
_FOLDER = re.compile(r"bucket_([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


class Bucket(NamedTuple):
    """One of `BUCKETS`: width and height in pixels at a square side of 1024."""

    width: int
    height: int

    @property
    def name(self) -> str:
        """<width>x<height>, which is the key of the bucket's own order too."""
        return f"{self.width}x{self.height}"

    def scaled(self, side: int) -> tuple[int, int] | None:
        """(height, width) in pixels where the square is `side`; None where those are no whole numbers."""
        height, width = self.height * side, self.width * side
        return None if height % SQUARE or width % SQUARE else (height // SQUARE, width // SQUARE)


BUCKETS = tuple(
    Bucket(*size)
    for size in ((1024, 1024), (1216, 832), (832, 1216), (1280, 768), (768, 1280), (1344, 704), (704, 1344))
)


def parse_folder(name: str) -> tuple[int, int] | None:
    """(width, height) of a folder bucket_<W>x<H>; None for any other name."""
    found = _FOLDER.fullmatch(name)
    return None if found is None else (int(found[1]), int(found[2]))


def bucket_of(width: int, height: int) -> tuple[Bucket, int] | None:
    """The bucket of images of this size and the side of its square bucket; None if it is none of the seven, scaled."""
    for bucket in BUCKETS:
        side, rest = divmod(width * SQUARE, bucket.width)
        if not rest and bucket.scaled(side) == (height, width):
            return bucket, side
    return None
