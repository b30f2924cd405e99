"""Part maps: every pixel gets the class that a network which knows its colour gives it, up to the very edge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainer.data.buckets import BUCKETS
from trainer.errors import DataError, UsageError
from trainer.prepare.options import Options
from trainer.prepare.passes import Inputs, Made
from trainer.prepare.placement import letterbox
from trainer.prepare.run import checked
from trainer.prepare.segmentation import parts_of_image, segmentation_pass
from trainer.prepare.tiny.onnx_graph import OnnxGraph

CLASSES = 28
COLOURS = np.stack(np.meshgrid([10, 120, 240], [10, 120, 240], [10, 80, 160, 240]), axis=-1).reshape(-1, 3)[:CLASSES]
CELL = 4  # pixels of the canvas to a cell of the answer
_MEAN, _SPREAD = (123.5, 116.5, 103.5), (58.5, 57.0, 57.5)


def write_seeing_network(path: Path, classes: int = CLASSES) -> None:
    """Says of each cell how little its mean colour is off from that of each class: 2 u·c - u·u."""
    graph = OnnxGraph("input", ("N", 3, 1024, 768))
    small = graph.add("AveragePool", graph.input, kernel_shape=[CELL, CELL], strides=[CELL, CELL])
    spread, mean = (np.asarray(part).reshape(1, 3, 1, 1) for part in (_SPREAD, _MEAN))
    rgb = graph.add("Add", graph.add("Mul", small, spread), mean)
    colours = COLOURS[:classes].astype(np.float64)
    logits = graph.add("Conv", rgb, 2 * colours[:, :, None, None], -(colours**2).sum(axis=1))
    graph.save(path, {"logits": (logits, ("N", classes, 256, 192))})


def striped(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of 4 x 7 rectangles, one a class, and its classes: (3, H, W) and (H, W)."""
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 7 // width
    classes_HW = (rows[:, None] * 7 + columns).astype(np.uint8)
    return COLOURS[classes_HW].transpose(2, 0, 1).astype(np.uint8), classes_HW


def near_another(classes_HW: np.ndarray, reach: int) -> np.ndarray:
    """Pixels that have another class within `reach`."""
    near_HW = np.zeros(classes_HW.shape, dtype=bool)
    for axis in (0, 1):
        for step in range(1, reach + 1):
            ahead, behind = [slice(None)] * 2, [slice(None)] * 2
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            differs = classes_HW[tuple(ahead)] != classes_HW[tuple(behind)]
            near_HW[tuple(ahead)] |= differs
            near_HW[tuple(behind)] |= differs
    return near_HW


def test_every_pixel_of_every_bucket_gets_its_class(tmp_path: Path) -> None:
    write_seeing_network(tmp_path / "parts.onnx")
    work = segmentation_pass(Options(seg_model=tmp_path / "parts.onnx", device="cpu"))
    assert (work.artefact, work.files, work.needs) == ("seg", ("seg.npy",), ("image",))
    with work.open() as encode:
        for bucket in BUCKETS:
            height, width = bucket.scaled(256)
            image_CHW, classes_HW = striped(height, width)
            mirrored = np.ascontiguousarray(image_CHW[:, :, ::-1])
            made, flipped = encode([Inputs("a", tmp_path, image_CHW), Inputs("b", tmp_path, mirrored)])
            found_HW = checked(work, made).files["seg.npy"]
            assert (found_HW.shape, found_HW.dtype) == ((height, width), np.uint8)
            pixels_per_cell = CELL / letterbox((width, height), (768, 1024)).scale
            certain_HW = ~near_another(classes_HW, int(np.ceil(1.5 * pixels_per_cell)))
            assert certain_HW[[0, 0, -1, -1], [0, -1, 0, -1]].all()
            np.testing.assert_array_equal(found_HW[certain_HW], classes_HW[certain_HW], bucket.name)
            assert (found_HW == classes_HW).mean() > 0.9
            np.testing.assert_array_equal(
                flipped.files["seg.npy"][:, ::-1][certain_HW], classes_HW[certain_HW], bucket.name
            )


def test_an_image_gets_the_same_parts_alone_and_among_others(tmp_path: Path) -> None:
    write_seeing_network(tmp_path / "parts.onnx")
    images = [np.random.default_rng(seed).integers(0, 255, (3, 256, 256), dtype=np.uint8) for seed in range(2)]
    with segmentation_pass(Options(seg_model=tmp_path / "parts.onnx")).open() as encode:
        together = encode([Inputs("a", tmp_path, image_CHW) for image_CHW in images])
        for image_CHW, made in zip(images, together, strict=True):
            (alone,) = encode([Inputs("a", tmp_path, image_CHW)])
            np.testing.assert_array_equal(alone.files["seg.npy"], made.files["seg.npy"])


def test_edges_lie_where_they_are_to_a_fraction_of_a_cell() -> None:
    """Two classes whose logits cross at a known column of the canvas, in cells of 32 pixels."""
    columns, rows = 24, 32
    crossing = 301.0
    slope_S = ((np.arange(columns) + 0.5) * 32 - crossing).astype(np.float32)
    logits_KRS = np.stack([np.broadcast_to(-slope_S, (rows, columns)), np.broadcast_to(slope_S, (rows, columns))])
    size = (1000, 700)
    place = letterbox(size, (768, 1024), centred=True)
    classes_HW = parts_of_image(logits_KRS, place, size)
    first = classes_HW.argmax(axis=1)
    expected = (crossing - place.left) / place.scale
    assert np.abs(first - expected).max() <= 1.0


def test_padding_says_nothing_about_the_image() -> None:
    logits_KRS = np.zeros((2, 32, 24), dtype=np.float32)
    place = letterbox((1344, 704), (768, 1024), centred=True)
    first, last = place.top / 32, (1024 - place.top) / 32
    centres_R = np.arange(32) + 0.5
    logits_KRS[1, (centres_R < first) | (centres_R > last)] = 1000.0
    logits_KRS[0] = 0.5
    assert not parts_of_image(logits_KRS, place, (1344, 704)).any()


def test_a_network_of_other_classes_is_refused(tmp_path: Path) -> None:
    write_seeing_network(tmp_path / "parts.onnx", classes=20)
    work = segmentation_pass(Options(seg_model=tmp_path / "parts.onnx", device="cpu"))
    with pytest.raises(DataError, match=r"\(N, 20, 256, 192\).*needed.*\(B, 28, \?, \?\)"), work.open():
        pytest.fail("opened")


def test_no_network_is_a_matter_of_the_command_line() -> None:
    with pytest.raises(UsageError, match="--seg-model"):
        segmentation_pass(Options())


def test_the_stand_in_says_that_it_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    work = segmentation_pass(Options(tiny=True, device="cpu"))
    assert work.recipe.model == "tiny-segmentation"
    assert "random stand-in" in work.recipe.label
    image_CHW = np.random.default_rng(0).integers(0, 255, (3, 208, 304), dtype=np.uint8)
    with work.open() as encode:
        (made,) = encode([Inputs("a", tmp_path, image_CHW)])
    assert isinstance(checked(work, made), Made)
    assert made.files["seg.npy"].max() < CLASSES
    assert len(np.unique(made.files["seg.npy"])) > 1
