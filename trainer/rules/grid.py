"""What contact sheets demand."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.errors import Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    validation, grid = config.validation, config.validation.grid
    if grid.every is None:
        return
    if grid.every % validation.every:
        yield Issue(
            "validation.grid.every",
            f"{grid.every} steps are no whole number of validations, whose images the sheet shows",
            f"null, or a multiple of validation.every ({validation.every})",
        )
    most = max(1, validation.samples // 3)
    if grid.samples > most:
        yield Issue(
            "validation.grid.samples",
            f"{grid.samples} is more than raw weights and captions alone are drawn for",
            f"1 to {most}, a third of validation.samples",
        )
