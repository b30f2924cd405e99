"""Smaller images at first."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.config.base import Block, Count


class ResolutionStageConfig(Block):
    """Up to the share `until` of the run, images are trained on at `size` instead of `data.size` (pixels, square side).

    Stages follow each other: the next begins where one ends, and `data.size` comes after the last. Whatever is scored
    or drawn for a person has `data.size` all the time.
    """

    until: Annotated[float, Field(gt=0.0, lt=1.0)]
    size: Count
