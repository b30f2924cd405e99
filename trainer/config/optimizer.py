"""How weights move."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import Block, Decay, NotNegative, Positive, Share


class OptimizerConfig(Block):
    """(Stable)AdamW for everything, or Muon or NorMuon for the matrices inside the blocks and AdamW for the rest.

    All share one learning rate. `clip` bounds the global gradient norm (null = no clipping); the rate warms up linearly
    over `warmup_steps` and then follows a cosine down to `final_lr_share` of `lr`. `momentum` belongs to Muon and
    NorMuon, the betas to AdamW and StableAdamW. `normuon_beta2` is the share of the old row sizes that NorMuon keeps at
    every update; its default is that of arXiv 2510.05491. `groups: published` gives Muon every 2-D parameter and decays
    everything; it needs reference_parity.
    """

    name: Literal["adamw", "stable_adamw", "muon", "normuon"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    clip: Positive | None = 1.0
    final_lr_share: Share = 0.01
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    momentum: Decay = 0.95
    normuon_beta2: Decay = 0.95
    groups: Literal["default", "published"] = "default"

    @property
    def is_orthogonal(self) -> bool:
        """Whether the matrices inside the blocks get orthogonal updates."""
        return self.name in ("muon", "normuon")
