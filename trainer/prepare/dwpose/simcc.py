"""What the two axes of a SimCC network say (arXiv 2107.03332): where each joint is and how sure it is. No torch.

Shapes: J joints, X and Y bins, two for every pixel of the crop.
"""

from __future__ import annotations

import numpy as np

from trainer.prepare.placement import Placement

BINS_PER_PIXEL = 2


def joints_in_crop(x_JX: np.ndarray, y_JY: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places (J, 2) in pixels of the crop from its corner, and confidences (J,), unbounded.

    Each axis gives its highest bin, to half a pixel; bin b was learned as the centre of pixel b / 2. The less certain
    axis decides the confidence.
    """
    bins_J2 = np.stack([x_JX.argmax(axis=1), y_JY.argmax(axis=1)], axis=1)
    return bins_J2 / BINS_PER_PIXEL + 0.5, np.minimum(x_JX.max(axis=1), y_JY.max(axis=1))


def pose_of_image(x_JX: np.ndarray, y_JY: np.ndarray, place: Placement, size: tuple[int, int]) -> np.ndarray:
    """The pose in an image of `size` (width, height): (J, 3) float16.

    x and y in [-1, 1] over the image, x right and y down, then the confidence in [0, 1]. A joint that is not seen, or
    lies out of the image, has confidence 0 at (0, 0).
    """
    crop_J2, confidence_J = joints_in_crop(x_JX, y_JY)
    frame_J2 = place.to_image(crop_J2) / size * 2.0 - 1.0
    pose_J3 = np.zeros((len(x_JX), 3), dtype=np.float16)
    pose_J3[:, :2], pose_J3[:, 2] = frame_J2, confidence_J.clip(0.0, 1.0)
    pose_J3[(pose_J3[:, 2] <= 0) | (np.abs(frame_J2) > 1.0).any(axis=1)] = 0.0
    return pose_J3
