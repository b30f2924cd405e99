"""Draws a portrait: parts are painted over each other on a fine grid of labels, then averaged down to pixels.

Shapes: H x W pixels, L labels, P parts. Averaging counts labels, so anti-aliased colours and part coverage are exact
and the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trainer.data.anatomy import Anatomy, Spot, anatomy_of
from trainer.data.parts import PROCEDURAL_CLASSES
from trainer.data.portraits import BACKGROUND_RGB, HAIR_RGB, SHIRT_RGB, SKIN_RGB, Portrait

PARTS = PROCEDURAL_CLASSES
LABELS = (
    ("background", "background"),
    ("hair", "hair"),
    ("hair_shade", "hair"),
    ("brow", "hair"),
    ("skin", "face"),
    ("ear", "face"),
    ("cheek", "face"),
    ("nose", "face"),
    ("eye_white", "eyes"),
    ("iris", "eyes"),
    ("glint", "eyes"),
    ("lips", "mouth"),
    ("mouth_inside", "mouth"),
    ("neck", "neck"),
    ("shirt", "shirt"),
    ("collar", "shirt"),
)
_LABEL = {name: index for index, (name, _) in enumerate(LABELS)}
_PART_OF_LABEL_LP = np.array([[part == own for part in PARTS] for _, own in LABELS], dtype=np.float32)
_EVERYWHERE = 1e9


class Drawing(NamedTuple):
    """`pixels_HWC` uint8, and how much of every pixel each part covers: `coverage_HWP` float32, summing to 1."""

    pixels_HWC: np.ndarray
    coverage_HWP: np.ndarray

    @property
    def parts_HW(self) -> np.ndarray:
        """The part that covers most of every pixel, as an index into PARTS; the first one of equals. uint8."""
        parts_HW: np.ndarray = self.coverage_HWP.argmax(axis=2).astype(np.uint8)
        return parts_HW


def draw(portrait: Portrait, height: int, width: int) -> Drawing:
    """Draw a portrait of any size, at least 8 x 8 pixels."""
    fine = 4 if min(height, width) <= 128 else 3 if min(height, width) <= 384 else 2
    canvas = _Canvas(height, width, fine)
    _paint(canvas, portrait, anatomy_of(portrait, height, width))
    counts_HWL = canvas.counts()
    colours_HWC = (counts_HWL @ _palette(portrait)) / fine**2 * _light(height, width)
    pixels_HWC = np.clip(np.floor(colours_HWC + 0.5), 0, 255).astype(np.uint8)
    return Drawing(pixels_HWC, (counts_HWL.astype(np.float32) @ _PART_OF_LABEL_LP) / np.float32(fine**2))


@dataclass(frozen=True, slots=True)
class _Band:
    """Horizontal limits of a shape: it is painted between `top` and `bottom` only."""

    top: float = -_EVERYWHERE
    bottom: float = _EVERYWHERE


class _Canvas:
    """Label per fine point, `fine` x `fine` of them in a pixel."""

    def __init__(self, height: int, width: int, fine: int) -> None:
        self.height, self.width, self.fine = height, width, fine
        scale = min(height, width) * fine
        self.x = (np.arange(width * fine, dtype=np.float32) + np.float32(0.5 - width * fine / 2)) / np.float32(scale)
        self.y = (np.arange(height * fine, dtype=np.float32) + np.float32(0.5 - height * fine / 2)) / np.float32(scale)
        self.labels = np.zeros((height * fine, width * fine), dtype=np.uint8)

    def ellipse(self, label: str, spot: Spot, hole: Spot | None = None, band: _Band = _Band()) -> None:
        """Fill an ellipse, without the part inside `hole` and outside `band`."""
        top, bottom = max(spot.y - spot.ry, band.top), min(spot.y + spot.ry, band.bottom)
        rows = slice(*np.searchsorted(self.y, (top, bottom)))
        columns = slice(*np.searchsorted(self.x, (spot.x - spot.rx, spot.x + spot.rx)))
        inside = self._inside(spot, rows, columns)
        if hole is not None:
            inside &= ~self._inside(hole, rows, columns)
        self.labels[rows, columns][inside] = _LABEL[label]

    def box(self, label: str, left: float, right: float, top: float, bottom: float = _EVERYWHERE) -> None:
        """Fill a rectangle."""
        rows = slice(*np.searchsorted(self.y, (top, bottom)))
        self.labels[rows, slice(*np.searchsorted(self.x, (left, right)))] = _LABEL[label]

    def counts(self) -> np.ndarray:
        """How many fine points of every pixel carry each label: (H, W, L) int64."""
        row = np.arange(self.height * self.fine) // self.fine
        column = np.arange(self.width * self.fine) // self.fine
        pixel = (row[:, None] * self.width + column) * len(LABELS)
        counts = np.bincount((pixel + self.labels).ravel(), minlength=self.height * self.width * len(LABELS))
        return counts.reshape(self.height, self.width, len(LABELS))

    def _inside(self, spot: Spot, rows: slice, columns: slice) -> np.ndarray:
        across = ((self.x[columns] - np.float32(spot.x)) / np.float32(spot.rx)) ** 2
        down = ((self.y[rows] - np.float32(spot.y)) / np.float32(spot.ry)) ** 2
        return across + down[:, None] <= 1.0


def _paint(canvas: _Canvas, portrait: Portrait, anatomy: Anatomy) -> None:
    """Back to front."""
    _paint_hair_behind(canvas, portrait, anatomy)
    _paint_body(canvas, anatomy)
    if portrait.hair_style == "long":
        _paint_locks(canvas, anatomy)
    for ear in anatomy.ears:
        canvas.ellipse("ear", ear)
    canvas.ellipse("skin", anatomy.head)
    _paint_face(canvas, portrait, anatomy)
    _paint_fringe(canvas, portrait, anatomy)


def _paint_body(canvas: _Canvas, anatomy: Anatomy) -> None:
    shoulders, neck = anatomy.shoulders, anatomy.neck
    canvas.ellipse("shirt", shoulders)
    canvas.box("shirt", shoulders.x - shoulders.rx, shoulders.x + shoulders.rx, shoulders.y)
    canvas.ellipse("collar", Spot(neck.x, neck.y + 0.115, neck.rx + 0.035, 0.085))
    canvas.ellipse("neck", Spot(neck.x, neck.y + 0.095, neck.rx, 0.075))
    canvas.box("neck", neck.x - neck.rx, neck.x + neck.rx, neck.y - 0.06, neck.y + 0.095)


def _paint_hair_behind(canvas: _Canvas, portrait: Portrait, anatomy: Anatomy) -> None:
    head = anatomy.head
    if portrait.hair_style == "curly":
        for degrees in range(160, 400, 20):
            x, y = head.at(degrees, scale=1.08)
            canvas.ellipse("hair_shade", Spot(x, y, 0.098, 0.098))
        for degrees in range(170, 390, 40):
            x, y = head.at(degrees, scale=1.06)
            canvas.ellipse("hair", Spot(x, y, 0.088, 0.088))
    elif portrait.hair_style == "bun":
        canvas.ellipse("hair_shade", Spot(head.x - 0.03 * anatomy.turn, head.y - head.ry - 0.055, 0.105, 0.090))
        canvas.ellipse("hair", Spot(head.x - 0.03 * anatomy.turn, head.y - head.ry - 0.065, 0.080, 0.066))
    elif portrait.hair_style == "long":
        canvas.ellipse(
            "hair_shade", Spot(head.x - 0.02 * anatomy.turn, head.y - 0.02, head.rx + 0.085, head.ry + 0.065)
        )


def _paint_locks(canvas: _Canvas, anatomy: Anatomy) -> None:
    """Hair that falls beside the neck and over the shirt."""
    head = anatomy.head
    for side in (-1.0, 1.0):
        x = head.x + side * (head.rx - 0.005) - 0.02 * anatomy.turn
        canvas.ellipse("hair_shade", Spot(x, head.y + 0.17, 0.105, 0.31), band=_Band(top=head.y))
        canvas.ellipse("hair", Spot(x + side * 0.02, head.y + 0.15, 0.075, 0.29), band=_Band(top=head.y))


def _paint_face(canvas: _Canvas, portrait: Portrait, anatomy: Anatomy) -> None:
    head = anatomy.head
    for side in (-1.0, 1.0):
        x = anatomy.mouth.x + side * 0.105
        if abs(x - head.x) < head.rx - 0.045:
            canvas.ellipse("cheek", Spot(x, head.y + 0.085, 0.042, 0.030))
    for eye, iris, brow in zip(anatomy.eyes, anatomy.irises, anatomy.brows, strict=True):
        canvas.ellipse(
            "brow", brow, hole=Spot(brow.x, brow.y + 0.022, brow.rx * 1.02, brow.ry), band=_Band(bottom=brow.y)
        )
        canvas.ellipse("eye_white", eye)
        canvas.ellipse("iris", iris)
        canvas.ellipse("glint", Spot(iris.x - 0.008, iris.y - 0.011, 0.008, 0.008))
    canvas.ellipse("nose", anatomy.nose, band=_Band(top=anatomy.nose.y))
    _paint_mouth(canvas, portrait, anatomy.mouth)


def _paint_mouth(canvas: _Canvas, portrait: Portrait, mouth: Spot) -> None:
    if portrait.mouth == "smiling":
        canvas.ellipse("lips", mouth, band=_Band(top=mouth.y))
        canvas.ellipse("eye_white", Spot(mouth.x, mouth.y, mouth.rx * 0.76, mouth.ry * 0.55), band=_Band(top=mouth.y))
    else:
        canvas.ellipse("lips", mouth)
        if portrait.mouth == "surprised":
            canvas.ellipse("mouth_inside", mouth.grown(0.62))


def _paint_fringe(canvas: _Canvas, portrait: Portrait, anatomy: Anatomy) -> None:
    """The hair in front: a cap over the skull, open where the face looks out."""
    head, turn = anatomy.head, anatomy.turn
    cap = Spot(head.x - 0.014 * turn, head.y - 0.020, head.rx + 0.026, head.ry + 0.030)
    opening = Spot(head.x + 0.060 * turn, head.y + 0.075, head.rx * 0.93, head.ry * 0.80)
    canvas.ellipse("hair", cap, hole=opening, band=_Band(bottom=head.y + 0.03))
    if portrait.hair_style == "curly":
        for step in (-2, -1, 0, 1, 2):
            x, y = opening.at(270.0 + 27.0 * step, scale=1.06)
            canvas.ellipse("hair", Spot(x, y, 0.052, 0.048))
    elif portrait.hair_style in ("short", "long"):
        # A parting on the side that the head turns to; straight ahead it is on the viewer's right.
        side = turn or 1.0
        canvas.ellipse("hair", Spot(head.x - side * 0.075, head.y - 0.165, 0.150, 0.062), band=_Band(bottom=head.y))
    shine = Spot(cap.x - 0.05, cap.y - 0.02, cap.rx * 0.72, cap.ry * 0.90)
    canvas.ellipse(
        "hair_shade",
        shine,
        hole=Spot(shine.x + 0.01, shine.y + 0.030, shine.rx, shine.ry),
        band=_Band(bottom=head.y - 0.17),
    )


def _palette(portrait: Portrait) -> np.ndarray:
    """8-bit colour of every label: (L, 3) int64."""
    skin, hair = SKIN_RGB[portrait.skin], HAIR_RGB[portrait.hair_colour]
    shirt = SHIRT_RGB[portrait.shirt]
    colours = {
        "background": BACKGROUND_RGB[portrait.background],
        "hair": hair,
        "hair_shade": _mix(hair, (20, 14, 24), 0.24) if sum(hair) > 180 else _mix(hair, (120, 110, 130), 0.25),
        "brow": _mix(hair, (20, 14, 24), 0.35),
        "skin": skin,
        "ear": _mix(skin, (150, 50, 40), 0.16),
        "cheek": _mix(skin, (226, 84, 84), 0.24),
        "nose": _mix(skin, (96, 36, 30), 0.30),
        "eye_white": (252, 252, 250),
        "iris": (38, 34, 44),
        "glint": (255, 255, 255),
        "lips": (186, 52, 62),
        "mouth_inside": (74, 18, 26),
        "neck": _mix(skin, (96, 36, 30), 0.18),
        "shirt": shirt,
        "collar": _mix(shirt, (20, 20, 40), 0.28) if sum(shirt) > 180 else _mix(shirt, (150, 150, 170), 0.3),
    }
    return np.array([colours[name] for name, _ in LABELS], dtype=np.int64)


def _mix(colour: tuple[int, int, int], other: tuple[int, int, int], share: float) -> tuple[int, ...]:
    return tuple(round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))


def _light(height: int, width: int) -> np.ndarray:
    """A soft light from the upper left, the same in every image: factor per pixel, (H, W, 1)."""
    down = (np.arange(height) + 0.5) / height
    across = (np.arange(width) + 0.5) / width
    return (1.05 - 0.11 * down[:, None] - 0.04 * across)[..., None]
