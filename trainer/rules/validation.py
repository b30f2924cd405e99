"""What validation demands."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.errors import Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    samples, held_out = config.validation.samples, config.data.held_out
    if config.data.source == "procedural" and samples > held_out:
        yield Issue("validation.samples", f"{samples} is more than data.held_out, {held_out}", f"1 to {held_out}")
