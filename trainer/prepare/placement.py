"""Where an image lies on the canvas of a network: one scale and a shift, there and back. No torch.

Places are continuous: (0, 0) is the upper left corner of the upper left pixel, whose centre is at (0.5, 0.5). Whoever
finds something at pixel i of a canvas found it at i + 0.5.

Shapes: K points, H x W pixels, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True, slots=True)
class Placement:
    """canvas = image * scale + (left, top), in pixels of either."""

    scale: float
    left: float
    top: float

    def to_canvas(self, image_K2: np.ndarray) -> np.ndarray:
        """Points (x, y) of the image, on the canvas."""
        return np.asarray(image_K2 * self.scale + (self.left, self.top))

    def to_image(self, canvas_K2: np.ndarray) -> np.ndarray:
        """Points (x, y) of the canvas, in the image."""
        return np.asarray((canvas_K2 - (self.left, self.top)) / self.scale)

    def draw(self, image_CHW: np.ndarray, size: tuple[int, int], fill: tuple[int, int, int]) -> np.ndarray:
        """The canvas of `size` (width, height) with a uint8 RGB image on it and `fill` around: (H, W, C) uint8.

        Bilinear between the four nearest pixels, with no filter before: so did the networks see what they learned from.
        """
        image = Image.fromarray(np.ascontiguousarray(image_CHW.transpose(1, 2, 0)))
        step = 1.0 / self.scale
        matrix = (step, 0.0, -self.left * step, 0.0, step, -self.top * step)
        drawn = image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)
        return np.asarray(drawn)


def letterbox(image: tuple[int, int], canvas: tuple[int, int], centred: bool = False) -> Placement:
    """The largest place for a whole `image` on a `canvas`, both (width, height): in its corner or in its middle."""
    scale = min(canvas[0] / image[0], canvas[1] / image[1])
    if not centred:
        return Placement(scale, 0.0, 0.0)
    return Placement(scale, (canvas[0] - image[0] * scale) / 2, (canvas[1] - image[1] * scale) / 2)
