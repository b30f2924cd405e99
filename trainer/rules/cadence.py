"""Which steps are validated."""

from __future__ import annotations

from trainer.config import TrainerConfig


def is_validation_step(config: TrainerConfig, step: int) -> bool:
    """Whether `step` is a regular validation step: 0, a multiple of validation.every, or the last one."""
    return step % config.validation.every == 0 or step == config.steps
