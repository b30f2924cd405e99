"""Where a token stands in its grid, as numbers that are added to it or as angles that queries and keys turn by.

Both are made from the grid, whatever its sides: nothing is learned and no grid is the reference.

Shapes: h x w patches, N = h w tokens, B samples (or 1 for all alike), D channels, H heads, E channels per head.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

BASE = 10000.0


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # the cached tensor serves training too, whoever asks first
def positions_2d(grid: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """Fixed 2-D sine-cosine positions (N, D): first half of the channels for the row, second half for the column."""
    angles = [_angles(index_N, width // 4) for index_N in _places(grid)]
    return torch.cat([part.float() for angle in angles for part in (angle.sin(), angle.cos())], dim=1).to(device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def rotation_2d(grid: tuple[int, int], head_width: int, device: torch.device) -> Tensor:
    """Cosines and sines of 2-D rotary positions (arXiv 2104.09864, 2403.13298), beside each other: (1, N, E).

    Half of the E / 2 planes of a head turn with the row, the other half with the column.
    """
    angle_NP = torch.cat([_angles(index_N, head_width // 4) for index_N in _places(grid)], dim=1)
    return torch.cat([angle_NP.cos(), angle_NP.sin()], dim=1).float()[None].to(device)


def rotate(x_BNHE: Tensor, rotation_BNE: Tensor) -> Tensor:
    """Turn channel k and channel k + E / 2 of every head by the angle of their token: same shape and type."""
    cos_BN1P, sin_BN1P = rotation_BNE.unsqueeze(2).chunk(2, dim=-1)
    one, two = x_BNHE.chunk(2, dim=-1)
    turned_BNHE = torch.cat([one * cos_BN1P - two * sin_BN1P, one * sin_BN1P + two * cos_BN1P], dim=-1)
    return turned_BNHE.to(x_BNHE.dtype)


def _places(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row and column of every token in raster order: (N,) each."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return rows.flatten(), columns.flatten()


def _angles(index_N: Tensor, count: int) -> Tensor:
    """Index times `count` frequencies from 1 down to 1 / 10000: (N, count) in double precision."""
    return index_N.double()[:, None] * BASE ** (-torch.arange(count, dtype=torch.float64) / count)
