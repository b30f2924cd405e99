"""Averages of the weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.config.base import Block, Count

PUBLISHED = "published"


class EmaConfig(Block):
    """Averages of the weights. Half-lives are shares of the run; `every` counts steps.

    The first half-life is "the" EMA, the second tells an autopsy whether the averaging is to blame. `published` puts
    the published average before them (trainer/optim/published_ema.py), which needs reference_parity.
    """

    published: bool = False

    half_lives: Annotated[tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...], Field(strict=False, min_length=1)] = (
        0.05,
        0.20,
    )
    every: Count = 1

    @property
    def averages(self) -> tuple[float | str, ...]:
        """Names of all averages, the first is the one that is scored: half-lives, and "published"."""
        return (*((PUBLISHED,) if self.published else ()), *self.half_lives)
