"""The learning rate: linear warm-up, then a cosine."""

from __future__ import annotations

import math

from trainer.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Rate of the update that leads to `step`, 1 <= step <= steps.

    step / warmup_steps of `lr` up to and including step = warmup_steps, then half a cosine that reaches
    `final_lr_share` of `lr` at the last step.
    """
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    progress = (step - config.warmup_steps) / (steps - config.warmup_steps)
    share = config.final_lr_share + (1.0 - config.final_lr_share) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.lr * share
