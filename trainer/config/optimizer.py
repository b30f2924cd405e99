"""How weights move."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import Block, Decay, NotNegative, Positive, Share


class OptimizerConfig(Block):
    """AdamW, or Muon for the matrices inside the blocks with AdamW for the rest; one learning rate for both.

    `clip` bounds the global gradient norm (null = no clipping); the rate warms up linearly over `warmup_steps` and then
    follows a cosine down to `final_lr_share` of `lr`. `momentum` belongs to Muon, the betas to AdamW.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    clip: Positive | None = 1.0
    final_lr_share: Share = 0.01
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    momentum: Decay = 0.95
