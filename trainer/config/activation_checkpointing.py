"""Which blocks forget their activations and compute them again in the backward pass."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import Block, Count


class ActivationCheckpointingConfig(Block):
    """Activation checkpointing (arXiv 1604.06174), block by block. It changes memory and time, and no number.

    every_k: blocks 0, `every`, 2 `every`, … are computed again. full: all of them. budget: as few blocks as bring what
    is kept down to the share `budget` of all activations, by the trainer's own estimate, the largest first.
    """

    kind: Literal["none", "every_k", "full", "budget"] = "none"
    every: Count = 2
    budget: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
