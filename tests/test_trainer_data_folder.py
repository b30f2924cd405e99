"""A folder of images: real photographs, broken files, odd formats, and what is said about them."""

from __future__ import annotations

from pathlib import Path

import matplotlib.cbook
import numpy as np
import pytest
import skimage.data
from PIL import Image

from trainer.data import open_source
from trainer.data.folder import FolderSource, read_image
from trainer.document import parse_config
from trainer.errors import DataError

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "camera", "page")


def folder_source(root: Path, size: int = 16, **data: object) -> FolderSource:
    block = {"source": "folder", "path": str(root), "size": size, **data}
    return open_source(parse_config({"steps": 2, "data": block}))


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (20, 20)) -> Image.Image:
    return Image.new("RGB", size, colour)


def fill(root: Path, number: int) -> None:
    """Images with captions."""
    for index in range(number):
        plain((index, 2 * index, 200)).save(root / f"image-{index:02d}.png")
        (root / f"image-{index:02d}.txt").write_text(f"colour number {index}")


def test_real_photographs_in_three_formats(tmp_path: Path) -> None:
    for name, suffix in zip(
        PHOTOGRAPHS, (".png", ".jpg", ".webp", ".jpeg", ".JPG", ".png", ".png", ".jpg"), strict=True
    ):
        Image.fromarray(getattr(skimage.data, name)()).save(tmp_path / f"{name}{suffix}")
        (tmp_path / f"{name}.txt").write_text(f"A photograph: {name.replace('_', ' ')}.\n")
    hopper = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    Image.open(hopper).save(tmp_path / "grace_hopper.jpg")
    photographs = folder_source(tmp_path, size=32)
    assert photographs.rejected == ()
    assert len(photographs.train_ids) + len(photographs.held_out_ids) + len(photographs.probe_ids) == 9
    assert photographs.probe_ids
    assert len(photographs.held_out_ids) >= 2
    assert any("1 of 9 images without a caption file" in note for note in photographs.notes)
    assert any("cls, patches, pose off" in note for note in photographs.notes)
    sample = photographs.load("hubble_deep_field")
    assert sample.caption == "A photograph: hubble deep field."
    assert sample.pixels_HWC.shape == (32, 32, 3)
    assert sample.text_TD is not None
    assert sample.text_TD.shape == (5, 64)
    assert (sample.cls_D, sample.patches_PD, sample.pose_J3) == (None, None, None)
    assert photographs.load("grace_hopper").caption == ""
    assert photographs.edit("astronaut") is None
    assert photographs.load("camera").pixels_HWC.std() > 20


def test_the_square_is_covered_and_cut_at_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, :20], wide[:, 20:40], wide[:, 40:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    for name in ("wide", "tall"):
        pixels_HWC = read_image(tmp_path / f"{name}.png", 10)
        np.testing.assert_allclose(pixels_HWC[1:9, 1:9], np.broadcast_to((0, 255, 0), (8, 8, 3)), atol=30)
        assert np.abs(pixels_HWC[4:6, 4:6] - np.array((0.0, 255.0, 0.0))).max() <= 2


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = plain((0, 0, 0), (16, 16))
    image.paste((255, 255, 255), (0, 0, 16, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: the white top becomes the right side
    image.save(tmp_path / "turned.png", exif=exif)
    pixels_HWC = read_image(tmp_path / "turned.png", 16)
    assert pixels_HWC[:, 10:].min() > 200
    assert pixels_HWC[:, :6].max() < 50


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    if mode == "I;16":
        Image.fromarray(np.full((8, 8), 51400, np.uint16)).save(path)
    else:
        Image.new("RGB", (8, 8), (200, 200, 200)).convert(mode).save(path)
    pixels_HWC = read_image(path, 8)
    assert (pixels_HWC.shape, pixels_HWC.dtype) == ((8, 8, 3), np.uint8)
    assert abs(float(pixels_HWC.mean()) - (200 if mode != "1" else pixels_HWC.mean())) < 4


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "logo.png")
    assert (read_image(tmp_path / "logo.png", 8) == 255).all()


def test_broken_files_are_named_and_the_rest_is_used(tmp_path: Path) -> None:
    fill(tmp_path, 40)
    whole = (tmp_path / "image-00.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.webp").write_text("no image at all")
    (tmp_path / "lonely.txt").write_text("a caption without its image")
    plain((1, 2, 3)).save(tmp_path / "latin.png")
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    plain((1, 2, 3)).save(tmp_path / "image-01.jpg")
    found = folder_source(tmp_path, max_rejected_share=0.2)
    rejected = dict(found.rejected)
    assert set(rejected) == {"cut.png", "empty.jpg", "text.webp", "lonely.txt", "latin.png", "image-01.png"}
    assert rejected["text.webp"] == "not an image"
    assert rejected["lonely.txt"] == "a caption without an image"
    assert "UTF-8" in rejected["latin.png"]
    assert "image-01.jpg" in rejected["image-01.png"]
    assert len(found.train_ids) + len(found.held_out_ids) + len(found.probe_ids) == 40
    assert found.notes[-1] == "6 files rejected"


def test_too_many_broken_files_end_the_run_with_their_names(tmp_path: Path) -> None:
    fill(tmp_path, 8)
    for index in range(7):
        (tmp_path / f"bad-{index}.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"7 of 15 files .* 0\.05 .*bad-0\.png: not an image.*; and 2 more") as caught:
        folder_source(tmp_path)
    assert caught.value.exit_code == 65


def test_folders_below_and_strange_names(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    (tmp_path / "more files").mkdir()
    (tmp_path / ".hidden").mkdir()
    plain((9, 9, 9)).save(tmp_path / "more files" / "image-00.png")
    plain((9, 9, 9)).save(tmp_path / "more_files_image-00.png")
    plain((9, 9, 9)).save(tmp_path / ".hidden" / "image.png")
    (tmp_path / "notes.md").write_text("left alone")
    found = folder_source(tmp_path)
    ids = {*found.train_ids, *found.held_out_ids, *found.probe_ids}
    assert len(ids) == 6
    assert all(id == Path(id).name and " " not in id for id in ids)


def test_two_images_leave_none_for_probes_and_say_so(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    found = folder_source(tmp_path)
    assert (len(found.train_ids), len(found.held_out_ids), found.probe_ids) == (1, 1, ())
    assert "2 images are too few to keep one for probes: no probes" in found.notes
    fill(tmp_path, 3)
    found = folder_source(tmp_path)
    assert (len(found.train_ids), len(found.held_out_ids), len(found.probe_ids)) == (1, 1, 1)
    assert not any("probes" in note for note in found.notes)


def test_long_captions_and_small_images_are_noted(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    (tmp_path / "image-02.txt").write_text("word " * 100)
    found = folder_source(tmp_path, size=32)
    assert any("1 of 4 images with a caption of more than 64 words" in note for note in found.notes)
    assert any("4 of 4 images smaller than 32 pixels" in note for note in found.notes)
    assert len(found.encode_caption("word " * 100)) == 64


@pytest.mark.parametrize("number", [0, 1])
def test_too_few_images(tmp_path: Path, number: int) -> None:
    fill(tmp_path, number)
    with pytest.raises(DataError, match=f"holds {number} usable images .*at least 2"):
        folder_source(tmp_path)


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        folder_source(tmp_path / "nowhere")


def test_a_file_that_vanishes_later_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.cache.LIMIT_MIB", 0)
    fill(tmp_path, 3)
    found = folder_source(tmp_path)
    id = found.train_ids[0]
    assert found.load(id) is not found.load(id), "nothing is kept beyond the limit"
    (tmp_path / f"{id}.png").unlink()
    with pytest.raises(DataError, match=rf"{id}\.png can no longer be read"):
        found.load(id)
