"""The colours that an image model was trained in, from its preprocessor_config.json.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.errors import DataError
from trainer.prepare.pretrained import read_json

_PER_CHANNEL = 3


@dataclass(frozen=True, slots=True)
class Colours:
    """Pixels times `scale`, minus `mean`, divided by `spread`, channel by channel (RGB)."""

    scale: float
    mean: tuple[float, ...]
    spread: tuple[float, ...]

    def normal(self, images_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) uint8 in [0, 255] -> float32, on the same device."""
        mean_C11, spread_C11 = (
            torch.tensor(values, device=images_BCHW.device)[:, None, None] for values in (self.mean, self.spread)
        )
        return (images_BCHW.float() * self.scale - mean_C11) / spread_C11


def read_colours(path: Path) -> Colours:
    """What a file says of rescaling and normalising; its sizes are for other uses. Raises DataError if it is broken."""
    content = read_json(path)
    scale = content.get("rescale_factor", 1 / 255) if content.get("do_rescale", True) else 1.0
    normalises = content.get("do_normalize", True)
    mean = content.get("image_mean") if normalises else [0.0] * _PER_CHANNEL
    spread = content.get("image_std") if normalises else [1.0] * _PER_CHANNEL
    for key, value, allowed in (
        ("rescale_factor", [scale] * _PER_CHANNEL, "a positive number"),
        ("image_mean", mean, "three numbers"),
        ("image_std", spread, "three positive numbers"),
    ):
        if not _are_numbers(value) or ("positive" in allowed and min(value) <= 0):
            raise DataError(f"{path}: {key} is {content.get(key)!r}; needed: {allowed}")
    return Colours(float(scale), tuple(map(float, mean)), tuple(map(float, spread)))


def _are_numbers(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == _PER_CHANNEL
        and all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in value)
    )
