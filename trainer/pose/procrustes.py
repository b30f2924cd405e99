"""Weighted similarity alignment of two sets of points (Umeyama, IEEE TPAMI 13(4), 1991), rotations only.

Shapes: N points. Coordinates need one unit in x and y: align in pixels, not in shares of a frame that is not square.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEAST_POINTS = 4  # a similarity has 4 degrees of freedom: two points are met exactly, three say hardly more


class Similarity(NamedTuple):
    """b = scale * rotation @ a + shift; the determinant of `rotation_22` is +1, `scale` is at least 0."""

    scale: float
    rotation_22: np.ndarray
    shift_2: np.ndarray

    def __call__(self, points_N2: np.ndarray) -> np.ndarray:
        """The points where the similarity puts them: (N, 2)."""
        moved_N2: np.ndarray = self.scale * points_N2 @ self.rotation_22.T + self.shift_2
        return moved_N2


def best_similarity(source_N2: np.ndarray, target_N2: np.ndarray, weight_N: np.ndarray) -> Similarity:
    """The similarity that minimises sum w |s R a + t - b|^2 without a reflection.

    Where all points of one side coincide no rotation is better than another: the scale is 0 and the shift the centre.
    Raises ValueError for fewer than 4 points of positive weight, for negative weights and for values that are not
    finite.
    """
    source_N2, target_N2, weight_N = (np.asarray(each, dtype=np.float64) for each in (source_N2, target_N2, weight_N))
    _refuse_unusable(source_N2, target_N2, weight_N)
    share_N1 = (weight_N / weight_N.sum())[:, None]
    source_centre_2, target_centre_2 = (share_N1 * source_N2).sum(axis=0), (share_N1 * target_N2).sum(axis=0)
    a_N2, b_N2 = source_N2 - source_centre_2, target_N2 - target_centre_2
    power = float((share_N1 * a_N2**2).sum())
    u_22, singular_2, vt_22 = np.linalg.svd((share_N1 * b_N2).T @ a_N2)
    sign_2 = np.array([1.0, np.sign(np.linalg.det(u_22 @ vt_22))])
    rotation_22 = (u_22 * sign_2) @ vt_22
    # Rounding leaves a power far below that of the distances to the origin where all points coincide.
    spread = power > 1e-24 * float((share_N1 * source_N2**2).sum())
    scale = max(0.0, float((singular_2 * sign_2).sum()) / power) if spread else 0.0
    return Similarity(scale, rotation_22, target_centre_2 - scale * rotation_22 @ source_centre_2)


def _refuse_unusable(source_N2: np.ndarray, target_N2: np.ndarray, weight_N: np.ndarray) -> None:
    if source_N2.shape != target_N2.shape or source_N2.shape != (len(weight_N), 2):
        shapes = f"{source_N2.shape}, {target_N2.shape} and {weight_N.shape}"
        raise ValueError(f"source, target and weights do not belong together: {shapes}; needed: (N, 2), (N, 2), (N,)")
    if not all(np.isfinite(each).all() for each in (source_N2, target_N2, weight_N)) or (weight_N < 0).any():
        raise ValueError("points and weights must be finite, weights at least 0")
    if (given := int((weight_N > 0).sum())) < LEAST_POINTS:
        raise ValueError(f"{given} points of positive weight; a similarity needs at least {LEAST_POINTS}")
