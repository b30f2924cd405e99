"""Everything random about the samples of one optimizer step, drawn before it starts.

Shapes: E samples of the effective batch, B samples of a micro-batch, N image tokens, K kept tokens, C channels,
H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer import randomness
from trainer.config import IMAGE_CHANNELS, TrainerConfig
from trainer.model.tread import keep_from_noise
from trainer.objective.dropout import draw_categories, present_streams
from trainer.objective.timesteps import draw_timesteps


@dataclass(frozen=True, slots=True)
class Draws:
    """Draws of some positions of the effective batch, on the CPU. `keep_BK` is None when no token is routed."""

    t_B: Tensor
    noise_BCHW: Tensor
    present: dict[str, Tensor]
    keep_BK: Tensor | None


class StepDraws:
    """The draws of the update that follows `step` finished steps; pure functions of the arguments.

    Times `t_E` and `present` streams are there for the whole effective batch, noise and routes on demand.
    """

    def __init__(self, config: TrainerConfig, run_seed: int, step: int) -> None:
        self._config, self._key = config, (run_seed, step)
        positions = range(config.samples_per_step)
        self.t_E = draw_timesteps(config.objective, run_seed, step, positions)
        self.present = draw_present(config, run_seed, step)

    def of(self, positions: Sequence[int], size: tuple[int, int], noise_BCHW: Tensor | None = None) -> Draws:
        """The draws of some positions of the effective batch, for images of `size` (height, width).

        `noise_BCHW` spares the drawing where whoever read the images has done it.
        """
        if noise_BCHW is None:
            noise_BCHW = randomness.noise_rows((IMAGE_CHANNELS, *size), *self._key, positions)
        index_B = torch.as_tensor(positions)
        return Draws(
            t_B=self.t_E[index_B],
            noise_BCHW=noise_BCHW,
            present={name: keeps_E[index_B] for name, keeps_E in self.present.items()},
            keep_BK=self._draw_keep(positions, math.prod(self._config.grid_of(*size))),
        )

    def _draw_keep(self, positions: Sequence[int], tokens: int) -> Tensor | None:
        run_seed, step = self._key
        if step >= self._config.routed_steps:
            return None
        stream = "maskdit" if self._config.model.maskdit.enabled else "route"
        noise_BN = randomness.uniform_rows((tokens,), run_seed, stream, step, positions)
        return keep_from_noise(noise_BN, self._config.kept_of(tokens))


def draw_present(config: TrainerConfig, run_seed: int, step: int) -> dict[str, Tensor]:
    """For every stream the samples of the effective batch that keep it in the update after `step`: booleans (E,)."""
    return present_streams(draw_categories(run_seed, step, range(config.samples_per_step)))
