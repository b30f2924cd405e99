"""Left becomes right: pixels, patch features, joints and words of an image, mirrored together.

Shapes: H x W pixels, P image patches, D features, J joints.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from trainer.data.anatomy import MIRRORED_JOINTS
from trainer.data.sample import Sample

_SIDE_WORD = re.compile(r"\b(left|right)(?=(?:most|side|wards?|hand(?:ed)?)?\b)", re.IGNORECASE)
_HINT = re.compile(r"\b(?:left|right)", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left"}


def mirror(sample: Sample) -> Sample:
    """The image mirrored with joints, parts and places of patch features; words and features themselves stay.

    Applying it twice gives the same sample again.
    """
    return dataclasses.replace(
        sample,
        pixels_HWC=np.ascontiguousarray(sample.pixels_HWC[:, ::-1]),
        patches_PD=None if sample.patches_PD is None else mirror_patches(sample.patches_PD, sample.patch_grid),
        pose_J3=None if sample.pose_J3 is None else mirror_joints(sample.pose_J3),
        parts_HW=None if sample.parts_HW is None else np.ascontiguousarray(sample.parts_HW[:, ::-1]),
    )


def mirror_patches(patches_PD: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Features of a grid (rows, columns) in raster order, columns reversed."""
    return np.ascontiguousarray(patches_PD.reshape(*grid, -1)[:, ::-1].reshape(patches_PD.shape))


def mirror_joints(pose_J3: np.ndarray) -> np.ndarray:
    """133 joints: x changes its sign, and what was the left eye, hand or corner of the mouth is the right one now."""
    swapped_J3: np.ndarray = pose_J3[np.asarray(MIRRORED_JOINTS)]
    swapped_J3[:, 0] = np.where(swapped_J3[:, 0] == 0, 0, -swapped_J3[:, 0])  # no negative zeros
    return swapped_J3


def mirror_words(text: str) -> str:
    """Left and right exchanged in any text, "leftmost" and "right-hand" too; capitals stay capitals."""
    return _SIDE_WORD.sub(lambda found: _in_case_of(found[0], _OTHER[found[0].lower()]), text)


def names_a_side(text: str) -> bool:
    """Whether a text has a word that begins with left or right, so that mirroring the image might make it wrong."""
    return _HINT.search(text) is not None


def _in_case_of(given: str, word: str) -> str:
    if given.isupper():
        return word.upper()
    return word.capitalize() if given[0].isupper() else word
