"""The crop in which joints are looked for: a person's box, wider by a quarter, in the shape of the network. No torch.

Shapes: C channels, H x W pixels.
"""

from __future__ import annotations

import numpy as np

from trainer.prepare.placement import Placement

WIDTH, HEIGHT = 288, 384
_MARGIN = 1.25
_SMALLEST_SIDE = 1.0
_BLACK = (0, 0, 0)
_MEAN_C11 = np.asarray((123.675, 116.28, 103.53), dtype=np.float32)[:, None, None]
_SPREAD_C11 = np.asarray((58.395, 57.12, 57.375), dtype=np.float32)[:, None, None]


def person_crop(box_4: np.ndarray) -> Placement:
    """Where the image lies on the crop of a box (x0, y0, x1, y1): same centre, 1.25 times as large, 3 to 4.

    The shorter side grows until the shape fits, so nothing of the box is lost. A box of less than a pixel counts as one
    of a pixel.
    """
    width, height = np.maximum(box_4[2:] - box_4[:2], _SMALLEST_SIDE) * _MARGIN
    scale = min(WIDTH / width, HEIGHT / height)
    centre_x, centre_y = (box_4[:2] + box_4[2:]) / 2
    return Placement(float(scale), float(WIDTH / 2 - centre_x * scale), float(HEIGHT / 2 - centre_y * scale))


def pose_input(image_CHW: np.ndarray, place: Placement) -> np.ndarray:
    """The crop as the network wants it: RGB in its normal colours, black outside, (3, 384, 288) float32."""
    crop_CHW = place.draw(image_CHW, (WIDTH, HEIGHT), _BLACK).transpose(2, 0, 1)
    return np.ascontiguousarray((crop_CHW - _MEAN_C11) / _SPREAD_C11, dtype=np.float32)
