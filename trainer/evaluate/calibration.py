"""What a score means: the same metrics between the real images and known distortions of them.

A metric that ranks runs must order them identical < jittered < blurred < other portrait < noise.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, pad

from trainer.evaluate.perceptual import Lpips
from trainer.evaluate.reconstruction import perceptual, rmse

_BETWEEN_IMAGES = frozenset(
    f"{family}_{name}"
    for family, names in {
        "text_manip": ("delta", "floor", "spread"),
        "dino_swap": ("lpips", "ceiling", "spread"),
    }.items()
    for name in names
)
_JITTER_SHARE = 1 / 128  # of the shorter side: a quarter of a pixel at 32 pixels
_BLUR_SHARE = 1 / 16  # standard deviation: 2 pixels at 32 pixels


Levels = dict[str, dict[str, float | None]]


class Calibration:
    """What the metrics between two images say of every stand-in for the real images; measured once."""

    @torch.no_grad()
    def __init__(self, real_BCHW: Tensor, noise_BCHW: Tensor, lpips: Lpips) -> None:
        self.stand_ins = distortions(real_BCHW, noise_BCHW)
        self._rmse = {name: rmse(image_BCHW, real_BCHW) for name, image_BCHW in self.stand_ins.items()}
        self._lpips = {name: perceptual(image_BCHW, real_BCHW, lpips) for name, image_BCHW in self.stand_ins.items()}

    def levels(self) -> Levels:
        """Mean recon_rmse and recon_lpips of every stand-in; None for "other portrait" of a single image."""
        return {"recon_rmse": _means(self._rmse, None), "recon_lpips": _means(self._lpips, None)}

    def levels_of(self, metrics: Iterable[str], first_third: int) -> Levels:
        """The same over the first third of the samples for those of `metrics` that are measured there.

        text_rmse and text_lpips, and the LPIPS between two generated images: text_manip_*, dino_swap_*,
        cfg_divergence_*. So a distance between two generated images can be read as one between real ones.
        """
        found: Levels = {}
        for metric in metrics:
            if metric == "text_rmse":
                found[metric] = _means(self._rmse, first_third)
            elif metric == "text_lpips" or metric in _BETWEEN_IMAGES or metric.startswith("cfg_divergence_"):
                found[metric] = _means(self._lpips, first_third)
        return found


def _means(values: Mapping[str, Tensor], count: int | None) -> dict[str, float | None]:
    return {
        name: None if name == "other_portrait" and len(value_B) < 2 else value_B[:count].mean().item()
        for name, value_B in values.items()
    }


def distortions(real_BCHW: Tensor, noise_BCHW: Tensor) -> dict[str, Tensor]:
    """Stand-ins for every real image: itself, shifted by a fraction of a pixel, blurred, the mean of all, the next one,
    and pure noise."""
    return {
        "identical": real_BCHW,
        "jittered": _shifted(real_BCHW, _JITTER_SHARE),
        "blurred": _blurred(real_BCHW, _BLUR_SHARE),
        "mean_image": real_BCHW.mean(dim=0, keepdim=True).expand_as(real_BCHW),
        "other_portrait": torch.roll(real_BCHW, 1, dims=0),
        "noise": noise_BCHW,
    }


def _shifted(x_BCHW: Tensor, share: float) -> Tensor:
    """Moved right by a share of the shorter side, bilinear, edges repeated."""
    batch, _, height, width = x_BCHW.shape
    rows = (torch.arange(height, device=x_BCHW.device) + 0.5) / height * 2 - 1
    columns = (torch.arange(width, device=x_BCHW.device) + 0.5 - share * min(height, width)) / width * 2 - 1
    grid_HW2 = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    moved = grid_sample(x_BCHW, grid_HW2.expand(batch, -1, -1, -1), padding_mode="border", align_corners=False)
    return moved.clamp(-1.0, 1.0)


def _blurred(x_BCHW: Tensor, share: float) -> Tensor:
    """Gaussian blur with a standard deviation of a share of the shorter side, edges repeated."""
    deviation = share * min(x_BCHW.shape[-2:])
    reach = math.ceil(3 * deviation)
    offset = torch.arange(-reach, reach + 1, device=x_BCHW.device, dtype=x_BCHW.dtype)
    kernel = torch.exp(-0.5 * (offset / deviation).square())
    kernel_C11K = (kernel / kernel.sum()).expand(x_BCHW.shape[1], 1, 1, -1)
    padded = pad(x_BCHW, (reach, reach, reach, reach), mode="replicate")
    across = conv2d(padded, kernel_C11K, groups=x_BCHW.shape[1])
    return conv2d(across, kernel_C11K.transpose(2, 3), groups=x_BCHW.shape[1]).clamp(-1.0, 1.0)
