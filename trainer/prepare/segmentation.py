"""The optional pass for part maps: the 28 classes of Sapiens (arXiv 2408.12569) from an ONNX file. No torch.

Images keep their aspect on the canvas of the network, and the padding around them is left out before its answer is
brought back to their size.

Shapes: B images, C channels, H x W pixels, K classes, R rows and S columns of the network's answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from trainer.data.parts import SAPIENS_CLASSES
from trainer.errors import UsageError
from trainer.prepare.onnx_session import OnnxFile, OnnxModel, opened, revision
from trainer.prepare.options import Options
from trainer.prepare.passes import Encode, Failed, Inputs, Made, Pass
from trainer.prepare.placement import Placement, letterbox
from trainer.prepare.recipe import Recipe

FILE = "seg.npy"
WIDTH, HEIGHT = 768, 1024
_BATCH = 4
_ROUNDING = 1e-6
_FILL = (124, 116, 104)  # the mean colour, which the network sees as zero
_MEAN_C11 = np.asarray((123.5, 116.5, 103.5), dtype=np.float32)[:, None, None]
_SPREAD_C11 = np.asarray((58.5, 57.0, 57.5), dtype=np.float32)[:, None, None]
_REMEDY = "export a Sapiens segmentation network of 28 classes to ONNX and name the file with --seg-model"


def segmentation_pass(options: Options) -> Pass:
    """The pass for `seg`. Raises UsageError if no network is named."""
    if options.seg_model is None and not options.tiny:
        raise UsageError(f"part maps have no network of their own: {_REMEDY}, or leave out the pass seg")
    return SegmentationPass(options)


class SegmentationPass:
    """seg.npy: uint8 (H, W) at the size of the image, classes 0 to 27. The record says the share of background."""

    artefact = "seg"
    files = (FILE,)
    needs = ("image",)

    def __init__(self, options: Options) -> None:
        self._options = options
        self.batch = options.batch or _BATCH

    @cached_property
    def _network(self) -> OnnxFile:
        path, remedy = self._options.seg_model, _REMEDY
        if self._options.tiny:
            from trainer.prepare.tiny.onnx_models import SEGMENTATION, segmentation_folder

            folder = segmentation_folder()
            path, remedy = folder / SEGMENTATION, f"remove the folder {folder}, and it is built again"
        assert path is not None, "refused before"
        return OnnxFile(Path(path), (3, HEIGHT, WIDTH), ((len(SAPIENS_CLASSES), None, None),), remedy)

    @cached_property
    def recipe(self) -> Recipe:
        """What part maps are made with; see trainer.prepare.passes."""
        if not self._options.tiny:
            return Recipe(model="Sapiens", revision=revision(self._network))
        from trainer.prepare.tiny.onnx_models import PARTS_LABEL

        return Recipe(model="tiny-segmentation", revision=revision(self._network), label=PARTS_LABEL)

    @contextmanager
    def open(self) -> Iterator[Encode]:
        """The network."""
        with opened(self._network, self._options.device) as network:
            yield lambda inputs: _encode(network, inputs)


def _encode(network: OnnxModel, inputs: Sequence[Inputs]) -> list[Made | Failed]:
    places, canvases_BCHW, sizes = [], [], []
    for one in inputs:
        assert one.image_CHW is not None, "this pass needs the image"
        size = (one.image_CHW.shape[2], one.image_CHW.shape[1])
        places.append(letterbox(size, (WIDTH, HEIGHT), centred=True))
        sizes.append(size)
        canvases_BCHW.append(segmentation_input(one.image_CHW, places[-1]))
    (logits_BKRS,) = network(np.stack(canvases_BCHW))
    return [_made(*one) for one in zip(logits_BKRS, places, sizes, strict=True)]


def _made(logits_KRS: np.ndarray, place: Placement, size: tuple[int, int]) -> Made | Failed:
    if not np.isfinite(logits_KRS).all():
        return Failed("the network of part maps gave numbers that are not finite")
    classes_HW = parts_of_image(logits_KRS, place, size)
    return Made({FILE: classes_HW}, {"background_share": round(float((classes_HW == 0).mean()), 6)})


def segmentation_input(image_CHW: np.ndarray, place: Placement) -> np.ndarray:
    """A uint8 RGB image as the network wants it: in its normal colours, (3, 1024, 768) float32."""
    canvas_CHW = place.draw(image_CHW, (WIDTH, HEIGHT), _FILL).transpose(2, 0, 1)
    return np.ascontiguousarray((canvas_CHW - _MEAN_C11) / _SPREAD_C11, dtype=np.float32)


def parts_of_image(logits_KRS: np.ndarray, place: Placement, size: tuple[int, int]) -> np.ndarray:
    """The most likely class of every pixel of an image of `size` (width, height): (H, W) uint8; of equals the lowest.

    Logits are interpolated between the centres of their cells, those excepted that padding reaches into.
    """
    _, rows, columns = logits_KRS.shape
    above_H, below_H, down_H = _between(size[1], place.scale, place.top, rows / HEIGHT, rows)
    before_W, behind_W, across_W = _between(size[0], place.scale, place.left, columns / WIDTH, columns)
    best_HW = np.full((size[1], size[0]), -np.inf, dtype=np.float32)
    classes_HW = np.zeros((size[1], size[0]), dtype=np.uint8)
    for index, logits_RS in enumerate(logits_KRS):  # one class after the other: all at this size fill a memory
        wide_RW = logits_RS[:, before_W] * (1 - across_W) + logits_RS[:, behind_W] * across_W
        whole_HW = wide_RW[above_H] * (1 - down_H[:, None])
        whole_HW += wide_RW[below_H] * down_H[:, None]
        np.copyto(classes_HW, np.uint8(index), where=whole_HW > best_HW)
        np.maximum(best_HW, whole_HW, out=best_HW)
    return classes_HW


def _between(pixels: int, scale: float, start: float, density: float, cells: int) -> tuple[np.ndarray, ...]:
    """For each pixel along one axis the two cells that it lies between, and how far it is towards the second.

    The image begins at `start` on the canvas; `density` is in cells per pixel of the canvas.
    """
    first, last = start * density, (start + pixels * scale) * density
    inside = np.flatnonzero((np.arange(cells) >= first - _ROUNDING) & (np.arange(cells) + 1 <= last + _ROUNDING))
    place_P = ((np.arange(pixels) + 0.5) * scale + start) * density - 0.5
    place_P = place_P.clip(inside[0], inside[-1])
    lower_P = np.minimum(np.floor(place_P).astype(np.intp), max(inside[-1] - 1, inside[0]))
    return lower_P, np.minimum(lower_P + 1, inside[-1]), (place_P - lower_P).astype(np.float32)
