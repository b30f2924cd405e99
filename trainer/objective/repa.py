"""Representation alignment (arXiv 2410.06940): a hidden state is pulled towards features of the clean image.

Alignment helps early and hurts late, so it ends: at a fixed share of the run, along a line, or when the gradients of
the two losses keep pointing apart (arXiv 2505.16792 gives the reason).

Shapes: B samples, N image tokens, K kept tokens, P teacher patches, D model channels, F teacher features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate

from trainer.config import TrainerConfig
from trainer.model.initial import initialise
from trainer.model.tread import gather_tokens

PROBE_EVERY_STEPS = 50
PROBE_DECAY = 0.9
PROBE_PATIENCE = 3


class Projector(nn.Module):
    """Model channels -> teacher features: `linear` without bias, `mlp` of two hidden layers, or a 3x3 `conv`."""

    def __init__(self, kind: str, width: int, teacher_width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.net = _NETS[kind](width, teacher_width)

    def forward(self, hidden_BND: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, F); `conv` needs all tokens of the grid."""
        if not isinstance(self.net, nn.Conv2d):
            return self.net(hidden_BND)
        image_BDhw = hidden_BND.transpose(1, 2).unflatten(2, self.grid)
        return self.net(image_BDhw).flatten(2).transpose(1, 2)


def _mlp(width: int, teacher_width: int) -> nn.Module:
    hidden = 4 * width
    return nn.Sequential(
        nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, teacher_width)
    )


_NETS = {
    "linear": lambda width, teacher_width: nn.Linear(width, teacher_width, bias=False),
    "mlp": _mlp,
    "conv": lambda width, teacher_width: nn.Conv2d(width, teacher_width, 3, padding=1),
}


def build_projector(config: TrainerConfig, teacher_width: int, run_seed: int, device: torch.device | str) -> Projector:
    """The projector of a configuration with the initial weights of `run_seed`; its init streams start with `repa.`."""
    side = config.data.size // config.model.patch
    with torch.device("meta"):
        projector = Projector(config.repa.projector, config.model.width, teacher_width, (side, side))
    projector.to_empty(device="cpu")
    initialise(projector, run_seed, prefix="repa.")
    return projector.to(device)


def resample_teacher(patches_BPF: Tensor, teacher_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Teacher features on the token grid, bilinear where the grids differ: (B, N, F)."""
    if teacher_grid == grid:
        return patches_BPF
    image_BFhw = patches_BPF.transpose(1, 2).unflatten(2, teacher_grid)
    return interpolate(image_BFhw, size=grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


def alignment_loss(projected_BKF: Tensor, teacher_BNF: Tensor, keep_BK: Tensor | None = None) -> Tensor:
    """Per sample: mean over the kept tokens of 1 - cos(projected, teacher), in [0, 2]; (B,)."""
    target_BKF = teacher_BNF if keep_BK is None else gather_tokens(teacher_BNF, keep_BK)
    return (1.0 - cosine_similarity(projected_BKF, target_BKF, dim=-1)).mean(dim=1)


class RepaSchedule:
    """Weight of the alignment loss per step, and the moment it ends for good."""

    def __init__(self, config: TrainerConfig) -> None:
        self._kind = config.repa.stop.kind
        self._weight = config.repa.weight if config.repa.enabled else 0.0
        self._start_steps = config.repa.stop.start * config.steps
        self._end_steps = config.repa_end * config.steps
        self._cosine: float | None = None
        self._negative_checks = 0
        self._stopped = False

    def weight(self, step: int) -> float:
        """Weight of the update that follows `step` finished steps; 0 means that nothing needs to be computed."""
        if self._stopped or step >= self._end_steps:
            return 0.0
        if self._kind == "linear" and step > self._start_steps:
            return self._weight * (self._end_steps - step) / (self._end_steps - self._start_steps)
        return self._weight

    def wants_probe(self, step: int) -> bool:
        """Whether the gradients of both losses should be compared in the update that follows `step` finished steps."""
        return self._kind == "gradient_cosine" and step % PROBE_EVERY_STEPS == 0 and self.weight(step) > 0

    def observe(self, cosine: float) -> None:
        """Take in one gradient cosine; after 3 checks in a row with a negative average, alignment stops."""
        self._cosine = cosine if self._cosine is None else PROBE_DECAY * self._cosine + (1 - PROBE_DECAY) * cosine
        self._negative_checks = self._negative_checks + 1 if self._cosine < 0 else 0
        self._stopped = self._stopped or self._negative_checks >= PROBE_PATIENCE

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to remember."""
        return {"cosine": self._cosine, "negative_checks": self._negative_checks, "stopped": self._stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._cosine, self._negative_checks, self._stopped = (
            state["cosine"],
            state["negative_checks"],
            state["stopped"],
        )


def gradient_cosine(flow_loss: Tensor, repa_loss: Tensor, hidden_BND: Tensor) -> float:
    """Cosine between the gradients of the two losses at the aligned hidden state; both graphs stay usable."""
    flow_grad, repa_grad = (
        torch.autograd.grad(loss, hidden_BND, retain_graph=True)[0].flatten() for loss in (flow_loss, repa_loss)
    )
    return float(cosine_similarity(flow_grad, repa_grad, dim=0))
