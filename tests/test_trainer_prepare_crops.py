"""One file becomes one crop: upright, in sRGB on white, in the shape of its bucket, or rejected with a reason."""

from __future__ import annotations

import io
import math
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.fakes.photographs import ADOBE_RGB, ORIENTATION, drawn, encoded, icc_profile
from trainer.data.buckets import BUCKETS
from trainer.prepare.ingest.crop import MOST_ENLARGEMENT, cover, image_recipe, make_crop, nearest_bucket
from trainer.prepare.ingest.decode import opened, upright
from trainer.prepare.ingest.unusable import Unusable
from trainer.prepare.sizes import SIDES

SIDE = 256
sides_px = st.integers(1, 30_000)


def crop_of(content: bytes) -> np.ndarray:
    image_CHW = make_crop(content, SIDE).files["image.npy"]
    assert isinstance(image_CHW, np.ndarray)
    assert image_CHW.dtype == np.uint8
    return image_CHW


def facts_of(content: bytes) -> dict[str, object]:
    return dict(make_crop(content, SIDE).facts)


def colour_of(content: bytes) -> list[int]:
    """The one colour of a crop."""
    image_CHW = crop_of(content)
    assert (np.ptp(image_CHW, axis=(1, 2)) == 0).all()
    return image_CHW[:, 0, 0].tolist()


def flat(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (256, 256), colour)  # type: ignore[arg-type]


def reason(content: bytes) -> str:
    with pytest.raises(Unusable) as caught:
        make_crop(content, SIDE)
    return str(caught.value)


@given(sides_px, sides_px)
def test_the_bucket_is_the_nearest_by_the_logarithm_of_the_ratio(width: int, height: int) -> None:
    chosen = nearest_bucket(width, height)
    distances = {bucket: abs(math.log(bucket.width * height / (bucket.height * width))) for bucket in BUCKETS}
    assert distances[chosen] <= min(distances.values()) + 1e-9


@given(sides_px, sides_px)
def test_an_image_on_its_side_is_in_the_bucket_on_its_side(width: int, height: int) -> None:
    chosen, turned = nearest_bucket(width, height), nearest_bucket(height, width)
    assert (turned.height, turned.width) == (chosen.width, chosen.height)


def test_the_ratio_decides_and_not_its_difference() -> None:
    """1.23 lies between 1 and 1216/832 = 1.46: nearer to 1 as a difference, nearer to 1.46 as a ratio."""
    assert nearest_bucket(1230, 1000).name == "1216x832"
    assert nearest_bucket(1200, 1000).name == "1024x1024"
    assert nearest_bucket(5000, 1000).name == "1344x704"


@given(sides_px, sides_px, st.sampled_from(BUCKETS), st.sampled_from(SIDES))
def test_a_crop_covers_its_bucket_from_the_centre_and_uses_one_side_whole(
    width: int, height: int, bucket: object, side: int
) -> None:
    size = bucket.scaled(side)  # type: ignore[attr-defined]
    scale, (left, top, right, bottom) = cover(width, height, size)
    assert left >= 0
    assert top >= 0
    assert right <= width
    assert bottom <= height
    assert (left, right) == (0, width) or (top, bottom) == (0, height)
    assert left + right == pytest.approx(width)
    assert top + bottom == pytest.approx(height)
    assert ((bottom - top) * scale, (right - left) * scale) == pytest.approx(size)
    # No smaller scale would cover.
    assert scale == pytest.approx(max(size[0] / height, size[1] / width))


def test_a_crop_is_the_centre_of_the_image() -> None:
    image_HWC = np.zeros((256, 300, 3), np.uint8)
    image_HWC[:, 22:278] = np.asarray(drawn(3, 256, 256))
    assert (crop_of(encoded(Image.fromarray(image_HWC), "PNG")).transpose(1, 2, 0) == image_HWC[:, 22:278]).all()


def test_fine_stripes_become_grey_and_no_moire() -> None:
    stripes_HW = np.tile(np.array([0, 255], np.uint8), (1024, 512))
    image_CHW = crop_of(encoded(Image.fromarray(stripes_HW), "PNG"))
    assert np.abs(image_CHW[:, 8:-8, 8:-8].astype(int) - 127.5).max() < 3


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_all_eight_orientations_give_the_same_crop(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    image = drawn(1, 160, 120)
    expected_CHW = crop_of(encoded(image, "PNG"))
    back = {5: Image.Transpose.TRANSPOSE, 7: Image.Transpose.TRANSVERSE, 6: Image.Transpose.ROTATE_90}
    back |= {8: Image.Transpose.ROTATE_270, 2: Image.Transpose.FLIP_LEFT_RIGHT, 4: Image.Transpose.FLIP_TOP_BOTTOM}
    back |= {3: Image.Transpose.ROTATE_180}
    for orientation in range(1, 9):
        stored = image.transpose(back[orientation]) if orientation in back else image
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        content = encoded(stored, format, exif=exif, **options)
        facts = facts_of(content)
        assert (crop_of(content) == expected_CHW).all(), orientation
        assert (facts["width"], facts["height"], facts["orientation"]) == (160, 120, orientation)
        assert facts["bucket"] == "1216x832"


def test_a_telephone_s_jpeg_is_turned() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    content = encoded(drawn(1).transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)
    expected_CHW = crop_of(encoded(drawn(1), "PNG")).astype(int)
    assert np.abs(crop_of(content) - expected_CHW).mean() < 3


def test_exif_that_cannot_be_understood_is_a_flaw_and_no_reason_to_lose_an_image() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 9
    facts = facts_of(encoded(drawn(1), "PNG", exif=exif))
    assert facts["orientation"] == 1
    assert facts["flaws"] == "its EXIF orientation is 9, which is none of 1 to 8"
    assert "its EXIF is broken" in str(facts_of(encoded(drawn(1), "PNG", exif=b"Exif\0\0nothing of the kind"))["flaws"])


def to_srgb(adobe: tuple[int, int, int]) -> np.ndarray:
    """By the definitions of both colour spaces, in floating point."""
    srgb = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
    xyz = np.array(ADOBE_RGB).T @ (np.array(adobe) / 255) ** 2.2
    linear = np.linalg.solve(np.array(srgb).T, xyz).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("colour", [(60, 140, 90), (200, 120, 130), (128, 128, 128), (250, 250, 20)])
def test_a_wide_gamut_is_brought_to_srgb(colour: tuple[int, int, int]) -> None:
    content = encoded(flat("RGB", colour), "PNG", icc_profile=icc_profile("RGB", 2.2, ADOBE_RGB))
    assert colour_of(content) == pytest.approx(to_srgb(colour), abs=1.5)
    facts = facts_of(content)
    assert (facts["profile"], facts["profile_converted"], facts["flaws"]) == ("made for a test", True, "")


def test_a_grey_photograph_has_a_profile_of_greys_or_of_the_camera() -> None:
    linear = icc_profile("GRAY", 1.0)
    assert colour_of(encoded(flat("L", 55), "PNG", icc_profile=linear)) == pytest.approx([128] * 3, abs=1)
    assert colour_of(encoded(flat("LA", (55, 255)), "PNG", icc_profile=linear)) == pytest.approx([128] * 3, abs=1)
    camera = encoded(flat("L", 128), "JPEG", icc_profile=icc_profile("RGB", 1.0, ADOBE_RGB))
    assert colour_of(camera) == pytest.approx([188] * 3, abs=1)
    assert facts_of(camera)["profile_converted"] is True


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        (b"no profile at all", "its colour profile is broken"),
        (icc_profile("RGB", 2.2, ADOBE_RGB).replace(b"RGB ", b"RGB\xc6", 1), "its colour profile is broken"),
        (icc_profile("GRAY", 2.2), "its colour profile is for GRAY, the image is RGB"),
        (icc_profile("RGB", 2.2), "its colour profile cannot be converted"),
    ],
)
def test_a_broken_profile_is_named_and_the_pixels_are_used_as_they_are(profile: bytes, said: str) -> None:
    content = encoded(flat("RGB", (10, 20, 30)), "PNG", icc_profile=profile)
    assert colour_of(content) == [10, 20, 30]
    facts = facts_of(content)
    assert said in str(facts["flaws"])
    assert facts["profile_converted"] is False
    assert facts["profile"] != ""


@pytest.mark.parametrize("colour", [(255, 0, 0, 128), (10, 200, 30, 0), (10, 200, 30, 255)])
def test_what_can_be_seen_through_lies_on_white(colour: tuple[int, int, int, int]) -> None:
    expected = [255 - (255 - value) * colour[3] / 255 for value in colour[:3]]
    for format, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        content = encoded(flat("RGBA", colour), format, **options)
        assert colour_of(content) == pytest.approx(expected, abs=1)


def test_one_colour_of_a_palette_or_of_a_grey_can_stand_for_nothing() -> None:
    image = flat("P", 1)
    image.putpalette([9, 9, 9, 200, 10, 10])
    assert colour_of(encoded(image, "PNG")) == [200, 10, 10]
    assert colour_of(encoded(image, "PNG", transparency=1)) == [255, 255, 255]
    assert colour_of(encoded(image, "GIF")) == [200, 10, 10]
    assert colour_of(encoded(image, "GIF", transparency=1)) == [255, 255, 255]
    assert colour_of(encoded(flat("L", 40), "PNG", transparency=40)) == [255] * 3
    assert colour_of(encoded(flat("L", 40), "PNG", transparency=41)) == [40] * 3
    assert colour_of(encoded(flat("RGB", (1, 2, 3)), "PNG", transparency=(1, 2, 3))) == [255] * 3
    assert colour_of(encoded(flat("I;16", 4000), "PNG", transparency=4000)) == [255] * 3


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_greys_of_sixteen_bits_keep_their_shades(format: str) -> None:
    ramp_HW = np.linspace(0, 65535, 256).round().astype(np.uint16)[None, :].repeat(256, axis=0)
    image_CHW = crop_of(encoded(Image.fromarray(ramp_HW), format))
    assert (image_CHW == np.arange(256)).all()


def test_a_scan_that_counts_from_white_is_no_negative() -> None:
    deep = Image.fromarray(np.full((256, 256), 60_000, np.uint16))
    content = encoded(deep, "TIFF", tiffinfo={262: 1})
    assert colour_of(content) == [233] * 3
    entry = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
    assert content.count(entry) == 1
    assert colour_of(content.replace(entry, struct.pack("<HHIHH", 262, 3, 1, 0, 0))) == [22] * 3


def test_inks_become_colours() -> None:
    for inks, colour in [((0, 0, 0, 0), [255, 255, 255]), ((255, 0, 0, 0), [0, 255, 255]), ((0, 0, 0, 255), [0, 0, 0])]:
        assert colour_of(encoded(flat("CMYK", inks), "JPEG", quality=95)) == pytest.approx(colour, abs=2)
        assert colour_of(encoded(flat("CMYK", inks), "TIFF")) == colour


def test_colours_that_say_nothing_of_white_are_rejected() -> None:
    floats = Image.fromarray(np.ones((256, 256), np.float32))
    assert reason(encoded(floats, "TIFF")) == "its colours are F, which cannot be brought to sRGB"
    assert "sign or 32 bits" in reason(encoded(flat("I", 5), "TIFF"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_truncated_file_is_rejected_whatever_its_format(format: str) -> None:
    content = encoded(drawn(2), format)
    assert crop_of(content).shape == (3, 208, 304)
    assert "it is" in reason(content[: len(content) // 2])


def test_a_file_of_another_kind_is_rejected() -> None:
    assert reason(b"") == "it is no JPEG, PNG, WEBP, BMP, TIFF or GIF image"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == reason(b"")


def test_a_decompression_bomb_is_not_opened() -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    assert "it is too large" in reason(start + encoded(drawn(1, 8, 8), "PNG")[33:])


def test_an_image_that_had_to_grow_too_much_is_rejected() -> None:
    assert crop_of(encoded(drawn(1, 128, 128), "PNG")).shape == (3, SIDE, SIDE)
    assert facts_of(encoded(drawn(1, 128, 128), "PNG"))["scale"] == MOST_ENLARGEMENT
    assert reason(encoded(drawn(1, 127, 127), "PNG")) == (
        "it is too small: 127 x 127 pixels had to grow 2.02 times to cover 256 x 256; allowed: up to 2 times"
    )


@given(st.binary(max_size=40), st.integers(0, 400), st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"]))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_whatever_bytes_a_file_has_it_is_decoded_or_rejected(patch: bytes, place: int, format: str) -> None:
    content = bytearray(encoded(Image.new("RGB", (16, 12), (9, 99, 199)), format))
    content[place : place + len(patch)] = patch
    try:
        image = opened(bytes(content))
        if image.width * image.height < 1_000_000:
            assert upright(image).image.mode in ("L", "RGB", "CMYK")
    except Unusable as error:
        assert str(error) != ""  # noqa: PT017 - both ends are right


def test_the_recipe_follows_from_the_side_alone() -> None:
    assert image_recipe(512) == image_recipe(512)
    assert image_recipe(512).hash != image_recipe(1024).hash
    assert image_recipe(512).model == ""


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size_and_shows_the_same(orientation: int) -> None:
    """Beside the crop of the very same pixels stored without loss, which is decoded whole."""
    small = np.asarray(drawn(3).convert("RGB").resize((96, 128), Image.Resampling.BICUBIC))
    image = Image.fromarray(small).resize((1536, 2048), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, exif=exif)
    with Image.open(io.BytesIO(file.getvalue())) as stored:
        pixels = ImageOps.exif_transpose(stored.convert("RGB") if orientation == 1 else stored)
    plain = io.BytesIO()
    pixels.save(plain, "PNG", exif=b"")
    reduced, whole = make_crop(file.getvalue(), SIDE), make_crop(plain.getvalue(), SIDE)
    assert reduced.facts["width"] == whole.facts["width"]
    assert reduced.facts["bucket"] == whole.facts["bucket"]
    ours, theirs = (np.asarray(each.files["image.npy"], dtype=np.float64) for each in (reduced, whole))
    assert not np.array_equal(ours, theirs), "it was not decoded whole"
    assert np.abs(ours - theirs).mean() < 1.0, "of 255"
    assert np.abs(ours - theirs).max() < 16
