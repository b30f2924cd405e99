"""What one key of the configuration demands of another: errors that stop a run, and notes that a person should read.

A setting that can have no effect is an error when it contradicts another one, and a note when it is merely dead. One
block a file; a new one is a file and its line in `_RULES`.
"""

from __future__ import annotations

from trainer.config import TrainerConfig
from trainer.errors import Issue
from trainer.rules import (
    checkpoint,
    data,
    distributed,
    grid,
    model,
    objective,
    optimizer,
    parity,
    perceptual,
    pose,
    precision,
    repa,
    resolution,
    sampler,
    segmentation,
    streams,
    tread,
    validation,
)
from trainer.rules.cadence import is_validation_step
from trainer.rules.remarks import remarks

__all__ = ["is_validation_step", "issues", "notes"]

_RULES = (
    model.rules,
    parity.rules,
    data.rules,
    resolution.rules,
    streams.rules,
    objective.rules,
    optimizer.rules,
    tread.rules,
    repa.rules,
    perceptual.rules,
    segmentation.rules,
    sampler.rules,
    validation.rules,
    grid.rules,
    pose.rules,
    checkpoint.rules,
    distributed.rules,
    precision.rules,
)


def issues(config: TrainerConfig) -> list[Issue]:
    """Everything that makes a well-formed configuration unusable."""
    return [issue for rules in _RULES for issue in rules(config)]


def notes(config: TrainerConfig) -> list[str]:
    """What is allowed but probably not meant."""
    return [*remarks(config), *precision.remarks(config), *resolution.remarks(config)]
