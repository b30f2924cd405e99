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
    scales, means, spreads = _numbers([scale]), _numbers([0.0] * _PER_CHANNEL), _numbers([1.0] * _PER_CHANNEL)
    if content.get("do_normalize", True):
        means, spreads = _numbers(content.get("image_mean")), _numbers(content.get("image_std"))
    for key, values, count, least, allowed in (
        ("rescale_factor", scales, 1, 0.0, "a positive number"),
        ("image_mean", means, _PER_CHANNEL, -math.inf, "three numbers"),
        ("image_std", spreads, _PER_CHANNEL, 0.0, "three positive numbers"),
    ):
        if len(values) != count or min(values) <= least:
            raise DataError(f"{path}: {key} is {content.get(key)!r}; needed: {allowed}")
    return Colours(scales[0], means, spreads)


def _numbers(value: object) -> tuple[float, ...]:
    """The finite numbers of a list; () if it is none or holds anything else."""
    listed = value if isinstance(value, list) else []
    numbers = [one for one in listed if isinstance(one, int | float) and not isinstance(one, bool)]
    is_whole = len(numbers) == len(listed) and all(map(math.isfinite, numbers))
    return tuple(map(float, numbers)) if is_whole else ()
