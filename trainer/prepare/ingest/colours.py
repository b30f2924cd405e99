"""From whatever colours a file has to 8-bit sRGB on white.

An embedded profile is converted. One that is broken, or of other colours than the image has, is named among the flaws
and the pixels are used as they are: that is what browsers show, and the image would be lost otherwise.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from trainer.prepare.ingest.unusable import Unusable

_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""Colour space of the profiles that belong to a mode."""
_COLOURED = ("P", "RGB", "RGBX", "YCbCr", "HSV")
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


class Colours(NamedTuple):
    """An sRGB image, the name of the profile that it had ('': none), whether that was converted, and what is wrong."""

    image: Image.Image
    profile: str = ""
    is_converted: bool = False
    flaw: str = ""


def flattened(image: Image.Image) -> Image.Image:
    """The image over white in L, RGB or CMYK, with 8 bits. Raises Unusable for colours we do not know.

    White is white in every profile, so that this can go first, and the profile be converted for the crop alone.
    """
    plain, alpha = _split(_as_bytes(image))
    if alpha is None or alpha.getextrema() == (255, 255):
        return plain
    page = Image.new(plain.mode, plain.size, "white")
    page.paste(plain, mask=alpha)
    return page


def to_srgb(image: Image.Image, content: bytes | None) -> Colours:
    """An image in L, RGB or CMYK, brought to sRGB by the content of its profile (None: it is taken for sRGB)."""
    as_it_is = Colours(image.convert("RGB"), profile="?" if content else "")
    if not content:
        return as_it_is
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        name, space = _name(profile), profile.profile.xcolor_space.strip()
    except (OSError, TypeError, ValueError, ImageCms.PyCMSError) as error:
        return as_it_is._replace(flaw=f"its colour profile is broken: {error}")
    if image.mode == "L" and space == "RGB":  # grey photographs often carry the profile of the camera
        image = image.convert("RGB")
    if space != _SPACES[image.mode]:
        flaw = f"its colour profile is for {space}, the image is {image.mode}"
        return as_it_is._replace(profile=name, flaw=flaw)
    try:
        converted = ImageCms.profileToProfile(
            image,
            profile,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except ImageCms.PyCMSError as error:
        return as_it_is._replace(profile=name, flaw=f"its colour profile cannot be converted: {error}")
    assert converted is not None, "a new image, as it is not converted in place"
    return Colours(converted, name, is_converted=True)


def _as_bytes(image: Image.Image) -> Image.Image:
    """A grey of 16 bits as one of 8, with a colour that stands for transparency as alpha; any other as it is."""
    if image.mode == "I" and image.format != "PNG":
        raise Unusable("its greys have a sign or 32 bits: nobody says which of them is white")
    if not image.mode.startswith("I"):
        return image
    deep_HW = np.asarray(image).astype(np.float32)
    tags = getattr(image, "tag_v2", {})
    white = 2.0 ** (tags.get(_TIFF_BITS, (16,))[0] if tags else 16) - 1.0
    grey_HW = np.clip(deep_HW * (255.0 / white), 0.0, 255.0).round().astype(np.uint8)
    if tags and tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey_HW = 255 - grey_HW
    grey = Image.fromarray(grey_HW)
    clear = image.info.get("transparency")
    if clear is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(deep_HW == clear, 0, 255).astype(np.uint8))))


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The image in L, RGB or CMYK, and its opacity, None if it has none."""
    is_clear = image.has_transparency_data
    if image.mode in ("1", "L", "LA", "La"):
        if not is_clear:
            return image.convert("L"), None
        image = image.convert("LA")
        return image.getchannel("L"), image.getchannel("A")
    if image.mode == "CMYK":
        return image, None
    if is_clear:
        image = image.convert("RGBA")
        return image.convert("RGB"), image.getchannel("A")
    if image.mode not in _COLOURED:
        raise Unusable(f"its colours are {image.mode}, which cannot be brought to sRGB")
    return image.convert("RGB"), None


def _name(profile: ImageCms.ImageCmsProfile) -> str:
    text = " ".join(ImageCms.getProfileDescription(profile).split())
    return text.encode("utf-8", "replace").decode() or "?"
