"""Images as patches and back, and patches as tokens.

Shapes: B samples, C image channels, H x W pixels, h x w patches of side p, N = h w tokens, F = C p p numbers of a
patch, D channels.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


def to_patches(image_BCHW: Tensor, patch: int) -> Tensor:
    """Cut an image into patches in raster order, each flattened as (C, p, p): (B, N, F)."""
    batch, channels, height, width = image_BCHW.shape
    grid = image_BCHW.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


def from_patches(patches_BNF: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Inverse of `to_patches` for a grid of h x w patches: (B, C, H, W)."""
    batch, (rows, columns) = patches_BNF.shape[0], grid
    parts = patches_BNF.reshape(batch, rows, columns, -1, patch, patch)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, rows * patch, columns * patch)


def patch_embedding(features: int, width: int, bottleneck: int | None) -> nn.Module:
    """Patches -> tokens, (B, N, F) -> (B, N, D): one linear map, or two with a narrow place between them.

    Images fill a low-dimensional part of the space of patches, so little is lost (JiT, arXiv 2511.13720).
    """
    if bottleneck is None:
        return nn.Linear(features, width)
    narrow, wide = nn.Linear(features, bottleneck, bias=False), nn.Linear(bottleneck, width)
    return nn.Sequential(OrderedDict(narrow=narrow, wide=wide))
