"""What the optimizer demands."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import OptimizerConfig, TrainerConfig
from trainer.errors import Issue

_USERS = {"momentum": ("muon", "normuon"), "normuon_beta2": ("normuon",)}
"""A key that not every optimizer reads -> those that do."""


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    warmup = config.optimizer.warmup_steps
    if warmup > config.steps:
        yield Issue("optimizer.warmup_steps", f"{warmup} is more than steps, {config.steps}", f"0 to {config.steps}")
    yield from _dead_keys(config.optimizer)


def _dead_keys(optimizer: OptimizerConfig) -> Iterator[Issue]:
    """Keys that the chosen optimizer does not read. A default that is merely written out contradicts nothing."""
    for key, users in _USERS.items():
        value, default = getattr(optimizer, key), OptimizerConfig.model_fields[key].default
        if optimizer.name not in users and value != default:
            yield Issue(
                f"optimizer.{key}",
                f"{value} changes nothing: {optimizer.name} does not use it",
                f"{default}, or no such key; with optimizer.name {' or '.join(users)} any value",
            )
