"""Fewer tokens of a stream: its mean, or the mean of neighbours.

Cross-attention to the image patches is the dearest part of a block, and a quarter of them says nearly as much.

Shapes: B samples, T words, P image patches in a grid of h x w, J joints, F features, D channels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import avg_pool2d

LEAST_TOTAL = 1e-6


def mean_of_words(features_BTF: Tensor, mask_BT: Tensor | None) -> Tensor:
    """The mean of the words that are there: (B, 1, F); 0 for a caption without any."""
    if mask_BT is None:
        return features_BTF.mean(dim=1, keepdim=True)
    return _weighted_mean(features_BTF, mask_BT.to(features_BTF.dtype))


def mean_of_neighbours(features_BPF: Tensor, grid: tuple[int, int]) -> Tensor:
    """Means of two by two patches in raster order, of fewer at the far edges of an odd grid: (B, P / 4, F)."""
    image_BFhw = features_BPF.transpose(1, 2).unflatten(2, grid)
    return avg_pool2d(image_BFhw, 2, ceil_mode=True).flatten(2).transpose(1, 2)


def mean_of_joints(tokens_BJD: Tensor, pose_BJ3: Tensor) -> Tensor:
    """The mean of embedded joints, each weighted by its confidence: (B, 1, D); 0 where no joint is seen."""
    return _weighted_mean(tokens_BJD, pose_BJ3[..., 2].clamp(min=0.0))


def _weighted_mean(values_BTD: Tensor, weight_BT: Tensor) -> Tensor:
    total_B11 = weight_BT.sum(dim=1)[:, None, None].clamp(min=LEAST_TOTAL)
    return (values_BTD * weight_BT.unsqueeze(-1)).sum(dim=1, keepdim=True) / total_B11
