"""Photographs with a planted person, and networks that really see it: by colour, with convolutions, where it is drawn.

The person is a black rectangle on a light wall with a marker in its middle. Each joint is a soft dot in a colour of its
own, so whoever finds it at the right place, with the right index, had the right pixels in the right channels. The
networks know neither where anything was planted nor how the image came onto their canvas.

Shapes: J joints, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from trainer.data.shapes import POSE_JOINTS
from trainer.prepare.dwpose.crop import person_crop
from trainer.prepare.tiny.onnx_graph import OnnxGraph

WALL = np.asarray((225.0, 215.0, 205.0))
MARKER = np.asarray((250.0, 0.0, 110.0))
BRIGHTEST = 250.0
_DOT_IN_CROP = 1.3  # spread in pixels of the crop; coarser ones would be sampled too thinly to have a centre
_SMALLEST_DOT = 1.2  # spread in pixels of the image
_ANGLE = 0.042  # a colour counts as that of a joint up to here; those of two joints are more than twice as far apart
_DARKEST = 25.0  # rounding to whole numbers turns a darker colour by too much
_MEAN, _SPREAD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass(frozen=True, slots=True)
class PlantedPerson:
    """An image (3, H, W) uint8, the box of the person in it, and its joints in pixels; of unseen joints nan."""

    image_CHW: np.ndarray
    box_4: np.ndarray
    joint_J2: np.ndarray
    pixels_per_bin: float


def confidences() -> np.ndarray:
    """What the network says of joints that it sees: another for each."""
    return np.linspace(0.3, 0.95, POSE_JOINTS)


@cache
def colours() -> np.ndarray:
    """Unit vectors in RGB, far from each other, from the wall and from the marker: (J, 3)."""
    candidates = np.abs(np.random.default_rng(0).standard_normal((4000, 3)))
    candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
    taken = [WALL / np.linalg.norm(WALL), MARKER / np.linalg.norm(MARKER)]
    nearest = np.max(candidates @ np.stack(taken).T, axis=1)
    chosen = []
    for _ in range(POSE_JOINTS):
        index = int(np.argmin(nearest))
        chosen.append(candidates[index])
        nearest = np.maximum(nearest, candidates @ candidates[index])
    alike = np.stack([*taken, *chosen]) @ np.stack(chosen).T
    assert np.sort(alike, axis=0)[-2].max() < math.cos(2 * _ANGLE), "two joints have nearly one colour"
    return np.stack(chosen)


def planted_person(size: tuple[int, int], box: tuple[int, int, int, int], seed: int = 0) -> PlantedPerson:
    """A person in a box (x0, y0, x1, y1) that may reach out of an image of `size` (width, height)."""
    width, height = size
    image_HWC = np.broadcast_to(WALL, (height, width, 3)).copy()
    x0, y0, x1, y1 = box
    inside = (max(0, x0), max(0, y0), min(width, x1), min(height, y1))
    image_HWC[inside[1] : inside[3], inside[0] : inside[2]] = 0.0
    box_4 = np.asarray(inside, dtype=np.float64)
    scale = person_crop(box_4).scale
    spread = max(_SMALLEST_DOT, _DOT_IN_CROP / scale)
    marker = max(4, round(10 * max(size) / 640))
    centre = (box_4[:2] + box_4[2:]) / 2
    joint_J2 = _joints(np.asarray(box), centre, spread, marker, np.random.default_rng(seed))
    whole = (joint_J2 > 3 * spread).all(axis=1) & (joint_J2 < np.asarray(size) - 3 * spread).all(axis=1)
    joint_J2[~whole] = np.nan
    for place, colour in zip(joint_J2[whole], colours()[whole], strict=True):
        _draw_dot(image_HWC, place, spread, colour)
    left, top = np.round(centre - marker / 2).astype(int)
    image_HWC[top : top + marker, left : left + marker] = MARKER
    pixels = image_HWC.round().clip(0, 255).astype(np.uint8)
    return PlantedPerson(np.ascontiguousarray(pixels.transpose(2, 0, 1)), box_4, joint_J2, 0.5 / scale)


def _joints(box: np.ndarray, centre: np.ndarray, spread: float, marker: int, random: np.random.Generator) -> np.ndarray:
    """A place for every joint on a grid in the box, a little off its knots, none under the marker: (J, 2)."""
    sides = (box[2:] - box[:2]).astype(float)
    knots = np.zeros((0, 2))
    wanted = POSE_JOINTS
    while len(knots) < POSE_JOINTS:
        columns = math.ceil(math.sqrt(wanted * sides[0] / sides[1]))
        rows = math.ceil(wanted / columns)
        cell = sides / (columns, rows)
        grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
        knots = box[:2] + (grid + 0.5) * cell
        knots = knots[(np.abs(knots - centre) > marker / 2 + 4 * spread + 1).any(axis=1)]
        wanted += 1
    room = cell / 2 - 3.2 * spread
    assert (room > 0).all(), f"dots of {spread:.1f} do not fit into cells of {cell}"
    knots = random.permutation(knots)[:POSE_JOINTS]
    return np.asarray(knots + random.uniform(-1, 1, knots.shape) * np.minimum(room, 3.0))


def _draw_dot(image_HWC: np.ndarray, place: np.ndarray, spread: float, colour: np.ndarray) -> None:
    reach = math.ceil(3.2 * spread)
    x, y = (int(part) for part in place)
    rows = slice(max(0, y - reach), y + reach + 1)
    columns = slice(max(0, x - reach), x + reach + 1)
    part = image_HWC[rows, columns]
    down = np.arange(rows.start, rows.start + part.shape[0]) + 0.5 - place[1]
    across = np.arange(columns.start, columns.start + part.shape[1]) + 0.5 - place[0]
    strength = np.exp(-(down[:, None] ** 2 + across**2) / (2 * spread**2))
    part += BRIGHTEST * strength[:, :, None] * colour


def write_seeing_detector(path: Path) -> None:
    """A network with YOLOX's input (BGR) and output that finds the marker, and how far the black around it reaches."""
    graph = OnnxGraph("images", (1, 3, 640, 640))
    width, height = (_extent(graph, _likeness(graph, np.zeros(3), 30.0), axis) for axis in (2, 3))
    marker = _likeness(graph, MARKER[::-1], 40.0)
    most = graph.add("Add", graph.add("ReduceMax", marker, keepdims=1), 1e-6)
    strides = []
    for stride in (8, 16, 32):
        steps = np.broadcast_to((np.arange(stride) + 0.5) / stride, (stride, stride))
        kernels = np.stack([np.ones((stride, stride)), steps, steps.T])[:, None]
        moments = graph.add("Conv", marker, kernels, strides=[stride, stride])
        mass, x, y = graph.several("Split", 3, moments, axis=1)
        x, y = (graph.add("Div", part, graph.add("Add", mass, 1e-6)) for part in (x, y))
        nothing = graph.add("Mul", mass, 0.0)
        sides = [
            graph.add("Add", nothing, graph.add("Log", graph.add("Div", side, float(stride))))
            for side in (width, height)
        ]
        area = graph.add("ReduceSum", marker, keepdims=1)
        share = graph.add("Mul", graph.add("Div", mass, graph.add("Add", area, 1e-6)), most)
        classes = [graph.add("Add", nothing, 0.9), *(nothing for _ in range(79))]
        all_of_it = graph.add("Concat", x, y, *sides, share, *classes, axis=1)
        strides.append(graph.add("Reshape", all_of_it, np.asarray([1, 85, -1])))
    output = graph.add("Transpose", graph.add("Concat", *strides, axis=2), perm=[0, 2, 1])
    graph.save(path, {"output": (output, (1, 8400, 85))})


def _likeness(graph: OnnxGraph, colour: np.ndarray, radius: float) -> str:
    """1 where a pixel has exactly this colour, 0 beyond `radius`: (1, 1, H, W)."""
    off = graph.add("Sub", graph.input, colour.reshape(1, 3, 1, 1))
    distance = graph.add("ReduceSum", graph.add("Mul", off, off), np.asarray([1]), keepdims=1)
    return graph.add("Clip", graph.add("Sub", 1.0, graph.add("Div", distance, radius**2)), 0.0, 1.0)


def _extent(graph: OnnxGraph, map: str, reduced: int) -> str:
    """From the first to the last pixel along the other axis where the map is more than a half; at least 1."""
    lit = graph.add("ReduceMax", map, axes=[reduced], keepdims=1)
    lit = graph.add("Clip", graph.add("Ceil", graph.add("Sub", lit, 0.5)), 0.0, 1.0)
    shape = (1, 1, 1, 640) if reduced == 2 else (1, 1, 640, 1)
    up = np.arange(1, 641, dtype=np.float64).reshape(shape)
    last = graph.add("ReduceMax", graph.add("Mul", lit, up), keepdims=1)
    left = graph.add("ReduceMax", graph.add("Mul", lit, 641 - up), keepdims=1)
    return graph.add("Clip", graph.add("Sub", graph.add("Add", last, left), 640.0), 1.0)


def write_seeing_pose_model(path: Path) -> None:
    """A network with the inputs (RGB) and outputs of DWPose's second one: peaks at the centres of mass of the dots.

    What a pixel says of a joint is c·u - |c| cos(angle), so only a colour along u says anything, and the more the
    brighter it is.
    """
    graph = OnnxGraph("input", ("N", 3, 384, 288))
    spread, mean = (np.asarray(part).reshape(1, 3, 1, 1) for part in (_SPREAD, _MEAN))
    rgb = graph.add("Add", graph.add("Mul", graph.input, spread), mean)
    strength = graph.add("Sqrt", graph.add("ReduceSum", graph.add("Mul", rgb, rgb), np.asarray([1]), keepdims=1))
    weights = np.concatenate([colours(), np.full((POSE_JOINTS, 1), -math.cos(_ANGLE))], axis=1)
    floor = np.full(POSE_JOINTS, -_DARKEST * (1 - math.cos(_ANGLE)))
    likeness = graph.add("Conv", graph.add("Concat", rgb, strength, axis=1), weights[:, :, None, None], floor)
    likeness = graph.add("Relu", likeness)
    outputs = {}
    for name, reduced, pixels in (("simcc_x", 2, 288), ("simcc_y", 3, 384)):
        profile = graph.add("ReduceSum", likeness, np.asarray([reduced]), keepdims=0)
        mass = graph.add("ReduceSum", profile, np.asarray([2]), keepdims=1)
        moment = graph.add("MatMul", profile, np.arange(pixels, dtype=np.float64)[:, None])
        bin = graph.add("Mul", graph.add("Div", moment, graph.add("Add", mass, 1e-6)), 2.0)
        off = graph.add("Abs", graph.add("Sub", bin, np.arange(2 * pixels, dtype=np.float64)))
        peak = graph.add("Relu", graph.add("Sub", 1.0, graph.add("Mul", off, 1e-3)))
        seen = graph.add("Clip", mass, 0.0, 1.0)
        sure = graph.add("Mul", graph.add("Mul", peak, seen), confidences()[:, None])
        outputs[name] = (sure, ("N", POSE_JOINTS, 2 * pixels))
    graph.save(path, outputs)
