"""What is predicted, and at which times."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import Block, Count, Finite, Positive, Share


class AsymFlowConfig(Block):
    """AsymFlow: noise is predicted in the `rank` directions in which image patches vary most, the image elsewhere.

    `basis` is a file of `python -m trainer fit-basis`; null = fitted to the training images when the run starts.
    """

    rank: Count = 8
    basis: str | None = None


class ObjectiveConfig(Block):
    """Flow matching with t = 1 as noise: t = sigmoid(mean + std n), then t' = shift t / (1 + (shift - 1) t).

    A mean above 0 is noisier. With probability `uniform_share` t is uniform instead, before the shift. `asymflow`
    belongs to that prediction alone. Times stay within [`clamp`, 1 - `clamp`], which needs
    reference_parity unless it is 0.
    """

    prediction: Literal["x", "v", "asymflow"] = "x"
    asymflow: AsymFlowConfig | None = None
    timestep_mean: Finite = 0.0
    timestep_std: Positive = 1.0
    noise_scale: Positive = 1.0
    shift: Positive = 1.0
    uniform_share: Share = 0.0
    clamp: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
