"""What the transformer demands."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.errors import Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    model = config.model
    if model.width % model.heads:
        yield Issue("model.heads", f"{model.heads} heads do not divide width {model.width}", "a divisor of model.width")
    if model.width % 4:
        yield Issue("model.width", f"{model.width} is no multiple of 4, as 2-D positions need", "a multiple of 4")
    if config.data.size % model.patch:
        yield Issue(
            "model.patch",
            f"patches of {model.patch} do not divide images of {config.data.size}",
            "a divisor of data.size",
        )
