"""What the optimizer demands."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.errors import Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    warmup = config.optimizer.warmup_steps
    if warmup > config.steps:
        yield Issue("optimizer.warmup_steps", f"{warmup} is more than steps, {config.steps}", f"0 to {config.steps}")
