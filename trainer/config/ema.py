"""Averages of the weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.config.base import Block, Count


class EmaConfig(Block):
    """Averages of the weights. Half-lives are shares of the run; `every` counts steps.

    The first half-life is "the" EMA, the second tells an autopsy whether the averaging is to blame.
    """

    half_lives: Annotated[tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...], Field(strict=False, min_length=1)] = (
        0.05,
        0.20,
    )
    every: Count = 1
