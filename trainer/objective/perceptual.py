"""Perceptual losses: a frozen network compares the predicted clean image with the true one.

On whole images in pixel space, whatever tokens were routed. The prediction is not clamped, so that values outside
[-1, 1] are pulled back rather than ignored. PixelGen (arXiv 2602.02493) covers low noise only, PRX all of it: `max_t`.

Shapes: S covered samples, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from trainer.config import DinoLossConfig, LpipsLossConfig
from trainer.errors import ConfigError, Issue
from trainer.frozen.dino_net import DinoNet
from trainer.frozen.lpips_net import LpipsNet
from trainer.frozen.sides import LPIPS_MULTIPLE, looked_at
from trainer.objective.auxiliary import MicroBatch


class Distance(Protocol):
    """A frozen network that says how far images in [-1, 1] are apart."""

    hash: str
    label: str

    def __call__(self, predicted_SCHW: Tensor, true_SCHW: Tensor) -> Tensor:
        """Distance of each pair: (S,). Gradients reach the predicted images only."""
        ...


class PerceptualLoss:
    """A distance as an auxiliary loss. The network is no part of what is trained, averaged or stored."""

    projector: nn.Module | None = None
    tap: int | None = None

    def __init__(
        self, name: str, settings: LpipsLossConfig | DinoLossConfig, distance: Distance, multiple: int
    ) -> None:
        self.name = name
        self.notes: tuple[str, ...] = (f"train/{name}_loss: {distance.label}, weights {distance.hash}",)
        self._settings, self._distance, self._multiple = settings, distance, multiple

    def weight(self, step: int) -> float:
        """The same weight in every update."""
        return self._settings.weight

    def covers(self, t: Tensor, present: Mapping[str, Tensor]) -> Tensor:
        """Samples with t <= max_t, or all."""
        max_t = self._settings.max_t
        return torch.ones_like(t, dtype=torch.bool) if max_t is None else t <= max_t

    def loss(self, micro: MicroBatch, covered_S: Tensor) -> Tensor:
        """Sum of the distances of the covered samples."""
        index_S = covered_S.to(micro.noisy.x_BCHW.device)
        predicted_SCHW, true_SCHW = micro.output.x_BCHW[index_S], micro.noisy.x_BCHW[index_S]
        return self._distance(self._resized(predicted_SCHW), self._resized(true_SCHW)).sum()

    def watch(self, step: int, flow: Tensor, own: Tensor, micro: MicroBatch) -> None:
        """Nothing to look at."""

    def updated(self, step: int) -> dict[str, float]:
        """Nothing to add."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Which weights were looked through."""
        return {"hash": self._distance.hash}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ConfigError if the file of the weights holds others than when the checkpoint was written."""
        before, now = state["hash"], self._distance.hash
        if before != now:
            key = f"perceptual.{self.name}.backbone"
            raise ConfigError([Issue(key, f"weights {before} were trained with, and now they are {now}", "the same")])

    def _resized(self, image_SCHW: Tensor) -> Tensor:
        height, width = image_SCHW.shape[2:]
        sides = looked_at(height, width, self._settings.size, self._multiple)
        if sides == (height, width):
            return image_SCHW
        return interpolate(image_SCHW, size=sides, mode="bilinear", align_corners=False, antialias=True)


def lpips_loss(settings: LpipsLossConfig, device: torch.device) -> PerceptualLoss:
    """LPIPS as an auxiliary loss. Raises ConfigError if its weights cannot be read."""
    return PerceptualLoss("lpips", settings, LpipsNet(settings.net, settings.backbone).to(device), LPIPS_MULTIPLE)


def dino_loss(settings: DinoLossConfig, device: torch.device) -> PerceptualLoss:
    """DINO features as an auxiliary loss. Raises ConfigError if the network cannot be loaded or `size` does not fit."""
    net = DinoNet(settings.backbone)
    if settings.size % net.patch:
        message = f"{settings.size} pixels are not whole patches of {net.patch}, as {settings.backbone} has them"
        raise ConfigError([Issue("perceptual.dino.size", message, f"a multiple of {net.patch}")])
    return PerceptualLoss("dino", settings, net.to(device), net.patch)
