"""What is predicted, and at which times."""

from __future__ import annotations

from typing import Literal

from trainer.config.base import Block, Finite, Positive, Share


class ObjectiveConfig(Block):
    """Flow matching with t = 1 as noise: t = sigmoid(mean + std n), then t' = shift t / (1 + (shift - 1) t).

    A mean above 0 is noisier. With probability `uniform_share` t is uniform instead, before the shift.
    """

    prediction: Literal["x"] = "x"
    timestep_mean: Finite = 0.0
    timestep_std: Positive = 1.0
    noise_scale: Positive = 1.0
    shift: Positive = 1.0
    uniform_share: Share = 0.0
