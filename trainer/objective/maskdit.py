"""MaskDiT (arXiv 2306.09305): the encoder sees some of the tokens, and what it did not see has to be made up.

The loss here is the squared error of the predicted clean image at the hidden patches, without a weight over time; flow
matching goes on over the whole image.

Shapes: S covered samples, C channels, H x W pixels, N patches, F numbers of a patch, K visible tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.config import TrainerConfig
from trainer.model.patches import to_patches
from trainer.objective.auxiliary import MicroBatch


class MaskDit:
    """Reconstruction of hidden patches as an auxiliary loss. It trains nothing of its own and taps no block."""

    name = "maskdit"
    projector = None
    tap = None
    notes: tuple[str, ...] = ()

    def __init__(self, config: TrainerConfig) -> None:
        self._weight = config.model.maskdit.weight
        self._patch = config.model.patch

    def weight(self, step: int) -> float:
        """The same at every step."""
        return self._weight

    def covers(self, t: Tensor, present: Mapping[str, Tensor]) -> Tensor:
        """Every sample."""
        return torch.ones_like(t, dtype=torch.bool)

    def loss(self, micro: MicroBatch, covered_S: Tensor) -> Tensor:
        """Sum over the samples of the mean squared error at their hidden patches."""
        assert micro.route is not None, "MaskDiT hides tokens at every step"
        square_BCHW = (micro.output.x_BCHW - micro.noisy.x_BCHW).square()
        return (
            hidden_error(to_patches(square_BCHW, self._patch), micro.route.keep_BK)
            .index_select(0, covered_S.to(square_BCHW.device))
            .sum()
        )

    def watch(self, step: int, flow: Tensor, own: Tensor, micro: MicroBatch) -> None:
        """Nothing to look at."""

    def updated(self, step: int) -> dict[str, float]:
        """Nothing to report."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def hidden_error(square_BNF: Tensor, keep_BK: Tensor) -> Tensor:
    """The mean of squared errors over the patches that are not in `keep_BK`, at least one: (B,)."""
    hidden_BN = torch.ones_like(square_BNF[..., 0]).scatter(1, keep_BK, 0.0)
    return (square_BNF.mean(dim=2) * hidden_BN).sum(dim=1) / hidden_BN.sum(dim=1)
