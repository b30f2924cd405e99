"""Weights of the squared error per pixel, by the part that the pixel shows.

Shapes: B samples, H x W pixels, K classes of a part map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.config import SegmentationConfig, TrainerConfig
from trainer.data.parts import GROUPS, SOURCE_LABELS, group_of_class


class PixelWeights:
    """Turns part maps into weights of pixels on a device."""

    def __init__(self, config: SegmentationConfig, label_set: str, device: torch.device | str) -> None:
        of_group = {name: getattr(config, name) for name in GROUPS}
        weights = [of_group[GROUPS[group]] for group in group_of_class(label_set)]
        self._weight_K = torch.tensor(weights, dtype=torch.float32, device=device)
        self._normalize = config.normalize

    def __call__(self, parts_BHW: Tensor) -> Tensor:
        """Weights of the pixels of part maps (uint8): (B, 1, H, W), of mean 1 in every image if normalised."""
        weight_BHW = self._weight_K[parts_BHW.to(self._weight_K.device, non_blocking=True).long()]
        if self._normalize:
            weight_BHW = weight_BHW / weight_BHW.mean(dim=(1, 2), keepdim=True)
        return weight_BHW[:, None]


def build_pixel_weights(config: TrainerConfig, device: torch.device) -> PixelWeights | None:
    """The weights of a configuration; None where every pixel counts alike."""
    if not config.segmentation.enabled:
        return None
    return PixelWeights(config.segmentation, SOURCE_LABELS[config.data.source], device)
