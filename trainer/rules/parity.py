"""What reproduces the published protocol, and exists for that alone."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.errors import Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    if config.reference_parity:
        return
    published = (
        ("ema.published", config.ema.published, "false"),
        ("objective.clamp", config.objective.clamp > 0, "0"),
        ("optimizer.groups", config.optimizer.groups == "published", "default"),
        ("model.initial_weights", config.model.initial_weights == "published", "default"),
    )
    for path, is_set, ours in published:
        if is_set:
            message = "reproduces the published protocol, which ours replaced, and needs reference_parity: true"
            yield Issue(path, message, ours)
