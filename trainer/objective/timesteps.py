"""Times of the training samples, and the shift that training and sampler share. t = 1 is noise.

Shapes: B samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer import randomness
from trainer.config import ObjectiveConfig

BINS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Centres of the bins of time, each 0.2 wide, in which the flow loss is reported: the times of the validation loss."""


def bin_of(t: Tensor) -> Tensor:
    """Index into BINS of every time in [0, 1]; int64, like `t` in shape."""
    return (t * len(BINS)).long().clamp(max=len(BINS) - 1)


def shift_timesteps(t: Tensor, shift: float) -> Tensor:
    """t' = k t / (1 + (k - 1) t): k > 1 moves times towards noise; 0 and 1 stay exactly where they are."""
    return shift * t / (1.0 - t + shift * t)


def draw_timesteps(config: ObjectiveConfig, run_seed: int, step: int, positions: Sequence[int]) -> Tensor:
    """Training times (B,) in (0, 1) for the given positions of the effective batch, on the CPU."""
    t = shift_timesteps(torch.cat([_draw(config, run_seed, step, position) for position in positions]), config.shift)
    return t.clamp(config.clamp, 1.0 - config.clamp) if config.clamp else t


def _draw(config: ObjectiveConfig, run_seed: int, step: int, position: int) -> Tensor:
    source = randomness.generator(run_seed, "timestep", step, position)
    t = torch.sigmoid(config.timestep_mean + config.timestep_std * torch.randn(1, generator=source))
    # Drawn in any case, so that the share changes no other time.
    choice, uniform = torch.rand(2, generator=source)
    return uniform[None] if choice < config.uniform_share else t
