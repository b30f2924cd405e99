"""What a score means: the same metrics between the real images and known distortions of them.

A metric that ranks runs must order them identical < jittered < blurred < other portrait < noise.

The mean image and the other portrait are those of the same shape. Where there are several shapes, an image that is the
only one of its own has neither, and levels are means over all other images.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

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
_STAND_INS = ("identical", "jittered", "blurred", "mean_image", "other_portrait", "noise")
_OF_SEVERAL = ("mean_image", "other_portrait")

Levels = dict[str, dict[str, float | None]]
StandIns = dict[str, Tensor]


class Calibration:
    """What the metrics between two images say of every stand-in for the real images; measured once.

    `images` holds the real images and noise of every shape. `stand_ins` are in the same order.
    """

    @torch.no_grad()
    def __init__(self, images: Sequence[tuple[Tensor, Tensor]], lpips: Lpips) -> None:
        self.stand_ins = [_stand_ins(real_BCHW, noise_BCHW, len(images) > 1) for real_BCHW, noise_BCHW in images]
        shapes = [(found, real_BCHW) for found, (real_BCHW, _) in zip(self.stand_ins, images, strict=True)]
        self._rmse = [{name: rmse(x_BCHW, real) for name, x_BCHW in found.items()} for found, real in shapes]
        self._lpips = [
            {name: perceptual(x_BCHW, real, lpips) for name, x_BCHW in found.items()} for found, real in shapes
        ]

    def levels(self) -> Levels:
        """Mean recon_rmse and recon_lpips of every stand-in; None for "other portrait" of images without another."""
        all_samples = [None] * len(self.stand_ins)
        return {"recon_rmse": _means(self._rmse, all_samples), "recon_lpips": _means(self._lpips, all_samples)}

    def levels_of(self, metrics: Iterable[str], first_thirds: Sequence[int]) -> Levels:
        """The same over the first third of the samples, so many of each shape, for `metrics` that are measured there.

        text_rmse and text_lpips, and the LPIPS between two generated images: text_manip_*, dino_swap_*,
        cfg_divergence_*. So a distance between two generated images can be read as one between real ones.
        """
        found: Levels = {}
        for metric in metrics:
            if metric == "text_rmse":
                found[metric] = _means(self._rmse, first_thirds)
            elif metric == "text_lpips" or metric in _BETWEEN_IMAGES or metric.startswith("cfg_divergence_"):
                found[metric] = _means(self._lpips, first_thirds)
        return found


def _stand_ins(real_BCHW: Tensor, noise_BCHW: Tensor, is_one_of_many: bool) -> StandIns:
    """All stand-ins for the images of one shape, without those that a single one of several shapes does not have."""
    found = distortions(real_BCHW, noise_BCHW)
    left_out = _OF_SEVERAL if is_one_of_many and len(real_BCHW) == 1 else ()
    return {name: image_BCHW for name, image_BCHW in found.items() if name not in left_out}


def _means(shapes: Sequence[Mapping[str, Tensor]], counts: Sequence[int | None]) -> dict[str, float | None]:
    """Mean of every stand-in over the first `counts` samples of the shapes that have it; None where no sample has."""
    return {name: _mean(name, shapes, counts) for name in _STAND_INS}


def _mean(name: str, shapes: Sequence[Mapping[str, Tensor]], counts: Sequence[int | None]) -> float | None:
    least = 2 if name == "other_portrait" else 1
    there = [(values[name], count) for values, count in zip(shapes, counts, strict=True) if name in values]
    chosen = [value_B[:count] for value_B, count in there if len(value_B) >= least]
    value_B = torch.cat(chosen) if chosen else torch.empty(0)
    return value_B.mean().item() if len(value_B) else None


def distortions(real_BCHW: Tensor, noise_BCHW: Tensor) -> StandIns:
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
