"""How far found joints lie from those of the condition, in inter-ocular distances.

Shapes: J joints of COCO-WholeBody, (x, y) or (x, y, confidence), x right and y down in [-1, 1] over the frame.
"""

from __future__ import annotations

import math

import numpy as np

from trainer.pose.procrustes import LEAST_POINTS, best_similarity

GROUPS = {"body": slice(0, 17), "feet": slice(17, 23), "face": slice(23, 91), "hands": slice(91, 133)}
CONFIDENT = 0.3
_EYES = (1, 2)


def counted(condition_J3: np.ndarray) -> np.ndarray:
    """Which joints of a condition are asked for: confidence at least 0.3 and in the frame: (J,) bool."""
    inside_J = np.abs(condition_J3[:, :2]).max(axis=1) <= 1.0
    counted_J: np.ndarray = inside_J & (condition_J3[:, 2] >= CONFIDENT)
    return counted_J


def interocular(condition_J3: np.ndarray, height: int, width: int) -> float:
    """Distance of the two eyes (joints 1 and 2) in pixels; nan where one of them does not count or both coincide."""
    if not counted(condition_J3)[list(_EYES)].all():
        return math.nan
    one_2, other_2 = _in_pixels(condition_J3, height, width)[list(_EYES)]
    return float(np.hypot(*(one_2 - other_2))) or math.nan


def mpjpe(found_J2: np.ndarray, condition_J3: np.ndarray, height: int, width: int) -> float:
    """Mean distance of the joints that count, over the inter-ocular distance; nan where that is not known."""
    chosen_J = counted(condition_J3)
    apart_J2 = _in_pixels(found_J2, height, width) - _in_pixels(condition_J3, height, width)
    distance_J = np.hypot(apart_J2[:, 0], apart_J2[:, 1])
    return float(distance_J[chosen_J].mean()) / interocular(condition_J3, height, width) if chosen_J.any() else math.nan


def pa_mpjpe(found_J2: np.ndarray, condition_J3: np.ndarray, height: int, width: int) -> dict[str, float]:
    """The same within each group after its best similarity, weighted by the condition's confidence; by group name.

    Place, size and tilt are taken out, so this says whether the shape is right. Groups of fewer than 4 joints that
    count are left out. The weights are the condition's: they are the same for every checkpoint.
    """
    chosen_J, unit = counted(condition_J3), interocular(condition_J3, height, width)
    found_J2, asked_J2 = _in_pixels(found_J2, height, width), _in_pixels(condition_J3, height, width)
    errors = {}
    for name, group in GROUPS.items():
        own = np.flatnonzero(chosen_J[group]) + group.start
        if len(own) < LEAST_POINTS:
            continue
        aligned_N2 = best_similarity(found_J2[own], asked_J2[own], condition_J3[own, 2])(found_J2[own])
        errors[name] = float(np.hypot(*(aligned_N2 - asked_J2[own]).T).mean()) / unit
    return errors


def _in_pixels(joints_JX: np.ndarray, height: int, width: int) -> np.ndarray:
    """x and y as distances from the centre in pixels: (J, 2) float64."""
    return np.asarray(joints_JX[:, :2], dtype=np.float64) * (width / 2, height / 2)
