"""What the objective demands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from trainer.config import TrainerConfig
from trainer.errors import Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    given, features = config.objective.asymflow, config.patch_features
    if given is not None and config.asymflow is None:
        yield Issue(
            "objective.asymflow",
            f"has no meaning for prediction {config.objective.prediction}",
            "null, or objective.prediction: asymflow",
        )
    if config.asymflow is not None and config.asymflow.rank > features:
        yield Issue(
            "objective.asymflow.rank",
            f"{config.asymflow.rank} directions do not fit into a patch of {features} numbers",
            f"1 to {features}",
        )
    if given is not None and given.basis is not None and not PurePath(given.basis).is_absolute():
        yield Issue(
            "objective.asymflow.basis",
            f"{given.basis!r} would mean another file in every working directory",
            "an absolute path, or null",
        )
    if config.objective.noise_scale != 1 and config.objective.shift != 1:
        yield Issue(
            "objective.noise_scale",
            "noise_scale and shift do the same to the signal-to-noise ratio; only one of them may differ from 1",
            "1 while objective.shift is not 1",
        )
