"""Random stand-ins for DWPose's two networks and for Sapiens' part maps, written as ONNX files. No torch.

Shapes: N images, F features; the rest are the real networks' own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trainer.cache import cache_folder
from trainer.data.parts import SAPIENS_CLASSES
from trainer.data.shapes import POSE_JOINTS
from trainer.errors import DataError
from trainer.prepare.onnx_session import needed_package
from trainer.prepare.tiny.onnx_graph import OnnxGraph

LABEL = "random stand-in (seed 0): says nothing about poses"
PARTS_LABEL = "random stand-in (seed 0): says nothing about part maps"
DETECTOR, POSE_MODEL, SEGMENTATION = "yolox_l.onnx", "dw-ll_ucoco_384.onnx", "segmentation.onnx"
VERSION = 1
_SEED = 0
_SIDE, _FEATURES, _COARSEST, _LAST_CELL = 640, 85, 32, 19


def pose_folder() -> Path:
    """The folder with a detector and a network of joints, built if it is not there. Raises DataError or UsageError."""
    return _built("dwpose", {DETECTOR: write_detector, POSE_MODEL: write_pose_model})


def segmentation_folder() -> Path:
    """The folder with a network of part maps, built if it is not there. Raises DataError or UsageError."""
    return _built("segmentation", {SEGMENTATION: write_segmentation})


def write_detector(path: Path) -> None:
    """A person in the middle of whatever is not padding; how large, and how sure, depends on the brightness."""
    graph = OnnxGraph("images", (1, 3, _SIDE, _SIDE))
    noise = np.random.default_rng(_SEED).standard_normal((_FEATURES, 3, 8, 8)) / (255 * 8)
    finest = graph.add("Conv", graph.input, noise, strides=[8, 8])
    maps = [finest, *(graph.add("AveragePool", finest, kernel_shape=[k, k], strides=[k, k]) for k in (2, 4))]
    flat = [graph.add("Reshape", one, np.asarray([1, _FEATURES, -1])) for one in maps]
    raw = graph.add("Transpose", graph.add("Concat", *flat, axis=2), perm=[0, 2, 1])
    box, unsure = graph.several("Split", 2, raw, np.asarray([4, _FEATURES - 4]), axis=2)
    unsure = graph.add("Sigmoid", graph.add("Sub", unsure, 8.0))
    everywhere = graph.add("Concat", box, unsure, axis=2)
    others = graph.add("Slice", everywhere, np.asarray([0]), np.asarray([-1]), np.asarray([1]))
    graph.save(path, {"output": (graph.add("Concat", others, _central_person(graph), axis=1), (1, 8400, _FEATURES))})


def _central_person(graph: OnnxGraph) -> str:
    """The numbers of the last anchor: (1, 1, 85)."""
    painted = graph.add("Clip", graph.add("Abs", graph.add("Sub", graph.input, 114.0)), 0.0, 1.0)
    bright = graph.add("Div", graph.add("ReduceMean", graph.input, axes=[1, 2, 3], keepdims=0), 255.0)
    bright = graph.add("Reshape", bright, np.asarray([1, 1, 1]))
    centres, sides, seen = [], [], ""
    for axes in ([1, 2], [1, 3]):  # columns that are not padding, then rows
        lit = graph.add("ReduceMax", painted, axes=axes, keepdims=0)
        extent = graph.add("Mul", graph.add("ReduceMean", lit, axes=[1], keepdims=0), float(_SIDE))
        extent = graph.add("Reshape", extent, np.asarray([1, 1, 1]))
        seen = graph.add("Clip", extent, 0.0, 1.0)
        centres.append(graph.add("Sub", graph.add("Div", extent, 2.0 * _COARSEST), float(_LAST_CELL)))
        share = graph.add("Add", graph.add("Mul", bright, 0.3), 0.5)
        side = graph.add("Clip", graph.add("Mul", extent, share), 1.0)
        sides.append(graph.add("Log", graph.add("Div", side, float(_COARSEST))))
    sure = graph.add("Mul", seen, graph.add("Add", graph.add("Mul", bright, 0.2), 0.75))
    rest = np.concatenate([np.full((1, 1, 1), 0.9), np.zeros((1, 1, _FEATURES - 6))], axis=2)
    return graph.add("Concat", *centres, *sides, sure, graph.constant(rest), axis=2)


def write_pose_model(path: Path) -> None:
    """Every joint has one peak on either axis, where random sums over a coarse copy of the image lead it."""
    graph = OnnxGraph("input", ("N", 3, 384, 288))
    coarse = graph.add("AveragePool", graph.input, kernel_shape=[32, 32], strides=[32, 32])
    features = 3 * 12 * 9
    weights = np.random.default_rng(_SEED).standard_normal((features, 3 * POSE_JOINTS)) / features**0.5
    joints = graph.add("Sigmoid", graph.add("MatMul", graph.add("Flatten", coarse), weights))
    x, y, sure = graph.several("Split", 3, graph.add("Reshape", joints, np.asarray([0, POSE_JOINTS, 3])), axis=2)
    outputs = {}
    for name, place, bins in (("simcc_x", x, 576), ("simcc_y", y, 768)):
        distance = graph.add("Sub", graph.add("Mul", place, float(bins)), np.arange(bins, dtype=np.float32))
        closeness = graph.add("Div", graph.add("Mul", distance, distance), -64.0)
        outputs[name] = (graph.add("Mul", graph.add("Exp", closeness), sure), ("N", POSE_JOINTS, bins))
    graph.save(path, outputs)


def write_segmentation(path: Path) -> None:
    """Classes by a random filter over a copy of the image at a quarter of its size."""
    graph = OnnxGraph("input", ("N", 3, 1024, 768))
    classes = len(SAPIENS_CLASSES)
    small = graph.add("AveragePool", graph.input, kernel_shape=[4, 4], strides=[4, 4])
    weights = np.random.default_rng(_SEED).standard_normal((classes, 3, 3, 3)) / 27**0.5
    logits = graph.add("Conv", small, weights, pads=[1, 1, 1, 1])
    graph.save(path, {"logits": (logits, ("N", classes, 256, 192))})


def _built(name: str, files: dict[str, Callable[[Path], None]]) -> Path:
    """Whole or not there: made in a folder beside it and renamed. Whoever comes second takes what the first made."""
    folder = cache_folder() / f"tiny-{name}-{VERSION}"
    if folder.is_dir():
        return folder
    needed_package("onnx")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for file, write in files.items():
                write(unfinished / file)
            os.rename(unfinished, folder)
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            if not folder.is_dir():
                raise
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error.strerror or error}; set XDG_CACHE_HOME to a place") from error
    return folder
