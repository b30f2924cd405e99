"""From the bytes of a file to an upright image without transparency, in colours of its own."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from trainer.prepare.ingest.colours import flattened
from trainer.prepare.ingest.unusable import Unusable

# Loaded here and not at the first file, as Pillow would: a decoder that cannot be loaded is no fault of that file.
_DECODERS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    BmpImagePlugin.BmpImageFile,
    TiffImagePlugin.TiffImageFile,
    GifImagePlugin.GifImageFile,
)
FORMATS = tuple(decoder.format for decoder in _DECODERS)
"""What a file may hold, whatever its suffix says. No other decoder ever sees a stranger's bytes."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by EXIF orientation; 1 is upright."""
_SIDEWAYS = (5, 6, 7, 8)
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    struct.error,
    zlib.error,
)
"""What decoders raise about broken files."""


class Upright(NamedTuple):
    """An image as a person would see it, in L, RGB or CMYK.

    `mode` is what the file held, `orientation` its EXIF orientation (1 to 8), `profile` the content of its colour
    profile (None if it has none), `flaw` what is wrong with its EXIF ('' if nothing).
    """

    image: Image.Image
    mode: str
    orientation: int
    profile: bytes | None
    flaw: str


def opened(content: bytes) -> Image.Image:
    """The image with its header read and no pixel decoded. Raises Unusable."""
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise Unusable(f"it is too large: {error}") from error
    except UnidentifiedImageError as error:
        raise Unusable(f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from error
    except _BROKEN as error:
        raise Unusable(f"it is broken: {_told(error)}") from error


def decode_reduced(image: Image.Image, detail: Callable[[int, int], float]) -> tuple[int, int] | None:
    """Let a JPEG be decoded at a half, a quarter or an eighth; the (width, height) that it has upright as a whole.

    `detail` says for that size which share of its pixels along each side is needed. JPEG's own transform averages
    blocks of pixels then, in a part of the time. None for other formats, which are left as they are.
    """
    if image.format != "JPEG":
        return None
    orientation, _ = _orientation(image)
    width, height = image.size
    whole = (height, width) if orientation in _SIDEWAYS else (width, height)
    share = detail(*whole)
    image.draft(image.mode, (math.ceil(width * share), math.ceil(height * share)))
    return whole


def upright(image: Image.Image) -> Upright:
    """Decode an image, lay it over white, turn it as EXIF says. Raises Unusable.

    EXIF that cannot be understood is a flaw: the image is then used as it is stored.
    """
    try:
        orientation, flaw = _orientation(image)
        image.load()
        plain = flattened(image)
        left, _ = _orientation(image)  # Pillow turns TIFF images by itself as it loads them
        turned = plain.transpose(_TURNS[left]) if left in _TURNS else plain
    except Unusable:
        raise
    except Image.DecompressionBombError as error:
        raise Unusable(f"it is too large: {error}") from error
    except _BROKEN as error:
        raise Unusable(f"it is broken: {_told(error)}") from error
    return Upright(turned, image.mode, orientation, image.info.get("icc_profile"), flaw)


def _orientation(image: Image.Image) -> tuple[int, str]:
    """1 to 8, and what is wrong with EXIF ('': nothing)."""
    try:
        given = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, struct.error, ValueError, LookupError, TypeError) as error:
        return 1, f"its EXIF is broken: {_told(error)}"
    if given in (1, *_TURNS):
        return int(given), ""
    return 1, "" if given == 0 else f"its EXIF orientation is {given!r}, which is none of 1 to 8"


def _told(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
