"""Alignment with image features."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import Block, Positive, Share


class RepaStopConfig(Block):
    """When alignment ends, in shares of the run.

    fixed: full weight until `end`. linear: full weight until `start`, then straight down to 0 at `end`.
    gradient_cosine: when the gradients of the two losses keep pointing apart, at `end` at the latest.
    `end` is 0.25 unless given (0.30 for gradient_cosine); `start` matters to linear only.
    """

    kind: Literal["fixed", "linear", "gradient_cosine"] = "fixed"
    start: Share = 0.10
    end: Share | None = None


class RepaConfig(Block):
    """Alignment of a hidden state with image features, after block `after_block` (0-based; null = ceil(depth / 3) - 1).

    `samples: patches_dropped` aligns only samples that do not see those same features as a condition. `spatial_norm`
    takes from the features what all patches of an image share (iREPA). `probe` measures every 50 steps whether the
    gradients of the two losses agree, under any `stop`; it changes nothing.
    """

    enabled: bool = False
    after_block: Annotated[int, Field(ge=0)] | None = None
    weight: Positive = 0.5
    samples: Literal["patches_dropped", "all"] = "patches_dropped"
    projector: Literal["mlp", "conv", "linear"] = "mlp"
    spatial_norm: bool = False
    stop: RepaStopConfig = RepaStopConfig()
    probe: bool = False
