"""Time as a vector.

Shapes: B samples, D channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

SINUSOID_WIDTH = 256
TIME_SCALE = 1000.0


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
