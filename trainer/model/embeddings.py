"""Patches, their positions, and time as vectors.

Shapes: B samples, C image channels, H x W pixels, h x w patches of side p, N = h w tokens, D channels.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

SINUSOID_WIDTH = 256
TIME_SCALE = 1000.0


def to_patches(image_BCHW: Tensor, patch: int) -> Tensor:
    """Cut an image into patches in raster order, each flattened as (C, p, p): (B, N, C p p)."""
    batch, channels, height, width = image_BCHW.shape
    grid = image_BCHW.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


def from_patches(patches_BNF: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Inverse of `to_patches` for a grid of h x w patches: (B, C, H, W)."""
    batch, (rows, columns) = patches_BNF.shape[0], grid
    parts = patches_BNF.reshape(batch, rows, columns, -1, patch, patch)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, rows * patch, columns * patch)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # the cached tensor serves training too, whoever asks first
def positions_2d(grid: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """Fixed 2-D sine-cosine positions (N, D): first half of the channels for the row, second half for the column."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.cat([_axis(rows.flatten(), width // 2), _axis(columns.flatten(), width // 2)], dim=1).to(device)


def _axis(index_N: Tensor, width: int) -> Tensor:
    half = width // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = index_N.double()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


class TimeEmbedding(nn.Module):
    """Time in [0, 1] -> (B, D): cosines and sines of 1000 t at 128 frequencies, then a two-layer MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(SINUSOID_WIDTH, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, t_B: Tensor) -> Tensor:
        """(B,) -> (B, D)."""
        half = SINUSOID_WIDTH // 2
        frequency = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=t_B.device))
        angle_BF = TIME_SCALE * t_B[:, None] * frequency
        return self.fc2(silu(self.fc1(torch.cat([angle_BF.cos(), angle_BF.sin()], dim=1))))
