"""What the head of the model says, and how far it is from the truth: x-prediction and v-prediction.

The model's head gives y for every pixel. A prediction turns y into the clean image x^ that the sampler and every
metric use, and compares y with its target. z = (1 - t) x + t s noise, v = s noise - x, t = 1 is noise.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from trainer.config import TrainerConfig
from trainer.data.sample import StreamShapes
from trainer.model.nanodit import NanoDiT, Output, Prediction
from trainer.objective.asymflow import AsymFlow
from trainer.objective.flow import Noisy, mean_per_sample, over_time
from trainer.precision.autocast import computing_in


class Objective(Prediction, Protocol):
    """One meaning of the head's output, and the loss that teaches it."""

    def loss(self, output: Output, noisy: Noisy, weight_B1HW: Tensor | None = None) -> Tensor:
        """Flow-matching loss per sample, pixels weighted if asked for: (B,)."""
        ...


class XPrediction(nn.Module):
    """y is the clean image (JiT, arXiv 2511.13720): mean[(x^ - x)^2] / max(t, 0.05)^2."""

    def clean(self, y_BCHW: Tensor, z_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """y itself."""
        return y_BCHW

    def loss(self, output: Output, noisy: Noisy, weight_B1HW: Tensor | None = None) -> Tensor:
        """The squared error of the velocity: (B,)."""
        return over_time(mean_per_sample((output.x_BCHW - noisy.x_BCHW).square(), weight_B1HW), noisy.t_B)


class VPrediction(nn.Module):
    """y is the velocity s noise - x (arXiv 2209.03003): mean[(y - v)^2], and x^ = z - t y."""

    def clean(self, y_BCHW: Tensor, z_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """z - t y."""
        return z_BCHW - t_B[:, None, None, None] * y_BCHW

    def loss(self, output: Output, noisy: Noisy, weight_B1HW: Tensor | None = None) -> Tensor:
        """The squared error of the velocity, with no weight over t: (B,)."""
        return mean_per_sample((output.head_BCHW - noisy.velocity_BCHW).square(), weight_B1HW)


def build_objective(config: TrainerConfig, basis_FR: Tensor | None = None) -> Objective:
    """The objective of a configuration. AsymFlow without `basis_FR` has room for one, to be loaded."""
    if config.asymflow is not None:
        return AsymFlow(config.model.patch, config.patch_features, config.asymflow.rank, basis_FR)
    return VPrediction() if config.objective.prediction == "v" else XPrediction()


def empty_model(config: TrainerConfig, streams: StreamShapes) -> NanoDiT:
    """The model of a configuration, to be filled with the weights of a checkpoint."""
    model = NanoDiT(config.model, streams, build_objective(config), pooled=config.streams.pooled)
    return computing_in(model, config.precision)
