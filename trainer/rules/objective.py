"""What the objective demands."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.errors import Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    if config.objective.noise_scale != 1 and config.objective.shift != 1:
        yield Issue(
            "objective.noise_scale",
            "noise_scale and shift do the same to the signal-to-noise ratio; only one of them may differ from 1",
            "1 while objective.shift is not 1",
        )
