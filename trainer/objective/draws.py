"""Everything random about the samples of one optimizer step, drawn before it starts.

Shapes: B samples, N image tokens, K kept tokens, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from trainer import randomness
from trainer.config import TrainerConfig
from trainer.model.tread import keep_from_noise
from trainer.objective.dropout import draw_categories, present_streams
from trainer.objective.timesteps import draw_timesteps

IMAGE_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class Draws:
    """Draws of some positions of the effective batch, on the CPU. `keep_BK` is None when no token is routed."""

    t_B: Tensor
    noise_BCHW: Tensor
    present: dict[str, Tensor]
    keep_BK: Tensor | None


def draw(config: TrainerConfig, run_seed: int, step: int, positions: Sequence[int]) -> Draws:
    """Draw for the update that follows `step` finished steps; a pure function of its arguments."""
    size = config.data.size
    return Draws(
        t_B=draw_timesteps(config.objective, run_seed, step, positions),
        noise_BCHW=randomness.normal_rows((IMAGE_CHANNELS, size, size), run_seed, "noise", step, positions),
        present=present_streams(draw_categories(run_seed, step, positions)),
        keep_BK=_draw_keep(config, run_seed, step, positions),
    )


def _draw_keep(config: TrainerConfig, run_seed: int, step: int, positions: Sequence[int]) -> Tensor | None:
    if step >= config.routed_steps:
        return None
    noise_BN = randomness.uniform_rows((config.tokens,), run_seed, "route", step, positions)
    return keep_from_noise(noise_BN, config.kept_tokens)
