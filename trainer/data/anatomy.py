"""Where everything in a portrait lies, and its 133 COCO-WholeBody joints.

Lengths are in units of the shorter side of the frame, the origin is its centre, x points right and y down. The names
"left" and "right" of joints are the person's own, as in COCO: the left eye is on the right of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from trainer.data.portraits import Portrait
from trainer.data.shapes import POSE_JOINTS

PLACE_OFFSETS = {
    "left": (-0.13, 0.0),
    "middle": (0.0, 0.0),
    "right": (0.13, 0.0),
    "high": (0.0, -0.07),
    "low": (0.0, 0.09),
}
SIDE = {"left": -1.0, "forward": 0.0, "ahead": 0.0, "right": 1.0}
FACE_JOINTS = 23
_OCCLUDED = 0.5
SIDES = (-1, 1)
Side = TypeVar("Side")


@dataclass(frozen=True, slots=True)
class Spot:
    """An axis-aligned ellipse: centre and radii."""

    x: float
    y: float
    rx: float
    ry: float

    def at(self, degrees: float, scale: float = 1.0) -> tuple[float, float]:
        """A point on the outline; 0 degrees is right, 90 is down."""
        angle = math.radians(degrees)
        return self.x + scale * self.rx * math.cos(angle), self.y + scale * self.ry * math.sin(angle)

    def grown(self, by: float) -> Spot:
        """The same ellipse with radii larger by a factor."""
        return Spot(self.x, self.y, self.rx * by, self.ry * by)


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The parts of one portrait. `eyes`, `ears`, `brows`: the image's left one first."""

    head: Spot
    eyes: tuple[Spot, Spot]
    irises: tuple[Spot, Spot]
    brows: tuple[Spot, Spot]
    ears: tuple[Spot, Spot]
    nose: Spot
    mouth: Spot
    neck: Spot
    shoulders: Spot
    turn: float


def anatomy_of(portrait: Portrait, height: int, width: int) -> Anatomy:
    """Place the parts in a frame of height x width pixels; wider or taller frames show more around the same head."""
    short = min(height, width)
    offset_x, offset_y = PLACE_OFFSETS[portrait.place]
    # In a wide frame "left" is further left; in a tall one "high" is further up, and the head stays above the middle.
    x = offset_x * width / short
    y = -0.06 + offset_y * height / short - 0.12 * (height / short - 1.0)
    turn = SIDE[portrait.yaw]
    head = Spot(x, y, 0.215, 0.275)
    face_x = x + 0.075 * turn
    eyes = _both(lambda side: Spot(face_x + side * 0.088, y - 0.015, 0.052 - 0.012 * (side == turn), 0.036), SIDES)
    look = 0.022 * SIDE[portrait.gaze]
    shoulders_y = y + head.ry + 0.30
    return Anatomy(
        head=head,
        eyes=eyes,
        irises=_both(lambda eye: Spot(eye.x + look, eye.y, 0.026, 0.030), eyes),
        brows=_both(lambda eye: Spot(eye.x, eye.y - 0.030, eye.rx * 1.25, 0.052), eyes),
        ears=_both(
            lambda side: Spot(
                x + side * (head.rx + 0.004) - 0.030 * turn, y + 0.02, 0.034 + 0.008 * (side == -turn), 0.058
            ),
            SIDES,
        ),
        nose=Spot(face_x + 0.030 * turn, y + 0.075, 0.026, 0.026),
        mouth=_mouth(portrait, face_x + 0.008 * turn, y + 0.152),
        neck=Spot(x, y + head.ry, 0.095, 0.16),
        shoulders=Spot(x * 0.9, shoulders_y, 0.40, 0.225),
        turn=turn,
    )


def _both(make: Callable[[Side], Spot], of: tuple[Side, Side]) -> tuple[Spot, Spot]:
    return make(of[0]), make(of[1])


def _mouth(portrait: Portrait, x: float, y: float) -> Spot:
    if portrait.mouth == "smiling":
        return Spot(x, y - 0.018, 0.092, 0.068)
    return Spot(x, y, 0.070, 0.017) if portrait.mouth == "serious" else Spot(x, y + 0.010, 0.044, 0.056)


def joints_of(portrait: Portrait, height: int, width: int) -> np.ndarray:
    """The 133 joints as (x, y, confidence), float32, (133, 3); x and y in [-1, 1] over the frame.

    0-16 body, 17-22 feet, 23-90 face, 91-132 hands. Confidence is 1 for what can be seen, 0.5 for what hair covers, and
    0, at (0, 0), for what is not drawn or lies out of the frame: a portrait has no hips, feet or hands.
    """
    anatomy = anatomy_of(portrait, height, width)
    joints_J3 = np.zeros((POSE_JOINTS, 3), dtype=np.float32)
    for index, (x, y, confidence) in {**_body(portrait, anatomy), **_face(anatomy)}.items():
        joints_J3[index] = x, y, confidence
    short = min(height, width)
    joints_J3[:, 0] *= 2.0 * short / width
    joints_J3[:, 1] *= 2.0 * short / height
    joints_J3[np.abs(joints_J3[:, :2]).max(axis=1) > 1.0] = 0.0
    return joints_J3


def _body(portrait: Portrait, anatomy: Anatomy) -> dict[int, tuple[float, float, float]]:
    covered = portrait.hair_style in ("long", "curly")
    points = {
        0: (anatomy.nose.x, anatomy.nose.y, 1.0),
        1: (anatomy.eyes[1].x, anatomy.eyes[1].y, 1.0),
        2: (anatomy.eyes[0].x, anatomy.eyes[0].y, 1.0),
    }
    for index, side in ((3, 1), (4, 0)):
        ear = anatomy.ears[side]
        turned_away = anatomy.turn == (-1.0, 1.0)[side]
        points[index] = (ear.x, ear.y, _OCCLUDED if covered or turned_away else 1.0)
    for index, outwards in ((5, 1.0), (6, -1.0)):
        # Long hair falls in front of the shoulders only near the neck, so their tips stay visible.
        points[index] = (anatomy.shoulders.x + outwards * 0.33, anatomy.shoulders.y - 0.09, 1.0)
    return points


def _face(anatomy: Anatomy) -> dict[int, tuple[float, float, float]]:
    """The 68 face landmarks: jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, outer lips 48-59, inner lips 60-67."""
    head, nose, mouth = anatomy.head, anatomy.nose, anatomy.mouth
    points = [head.at(180.0 - 180.0 * step / 16) for step in range(17)]
    for brow in anatomy.brows:
        points += [brow.at(205.0 + 130.0 * step / 4) for step in range(5)]
    top = anatomy.eyes[0].y
    points += [(nose.x, top + (nose.y - top) * step / 3) for step in range(4)]
    points += [nose.at(160.0 - 140.0 * step / 4) for step in range(5)]
    for eye in anatomy.eyes:
        points += [eye.at(180.0 + 60.0 * step) for step in range(6)]
    points += [mouth.at(180.0 + 30.0 * step) for step in range(12)]
    points += [mouth.at(180.0 + 45.0 * step, scale=0.7) for step in range(8)]
    return {FACE_JOINTS + index: (x, y, 1.0) for index, (x, y) in enumerate(points)}


def _mirrored_joints() -> tuple[int, ...]:
    """For every joint the one that takes its place when left and right are exchanged (order of COCO-WholeBody)."""
    # Eyes, ears, shoulders, elbows, wrists, hips, knees, ankles; then big toe, small toe, heel of either foot.
    pairs = [(left, left + 1) for left in range(1, 17, 2)] + [(17, 20), (18, 21), (19, 22)]
    # The 68 landmarks of the face, as in iBUG's 300-W scheme, counted from the image's left.
    pairs += [(FACE_JOINTS + left, FACE_JOINTS + right) for left, right in _FACE_PAIRS]
    pairs += [(91 + joint, 112 + joint) for joint in range(21)]
    other = list(range(POSE_JOINTS))
    for left, right in pairs:
        other[left], other[right] = right, left
    return tuple(other)


_FACE_PAIRS = (
    *((jaw, 16 - jaw) for jaw in range(8)),
    *((17 + brow, 26 - brow) for brow in range(5)),
    (31, 35),
    (32, 34),
    *((36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46)),
    *((48, 54), (49, 53), (50, 52), (55, 59), (56, 58)),
    *((60, 64), (61, 63), (65, 67)),
)
MIRRORED_JOINTS = _mirrored_joints()
