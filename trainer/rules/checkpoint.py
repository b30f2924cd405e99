"""What keeping checkpoints demands."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.errors import Issue
from trainer.rules.cadence import is_validation_step


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    half_lives = config.ema.half_lives
    if len(set(half_lives)) < len(half_lives):
        yield Issue("ema.half_lives", "a half-life is named twice", "different shares of the run")
    for index, step in enumerate(config.checkpoint.keep.milestones):
        if step > config.steps or not is_validation_step(config, step):
            yield Issue(
                f"checkpoint.keep.milestones.{index}",
                f"no checkpoint is written at step {step}",
                f"multiples of validation.every ({config.validation.every}), or steps ({config.steps})",
            )
