"""Representation alignment (arXiv 2410.06940): a hidden state is pulled towards features of the clean image.

Alignment helps early and hurts late, so it ends; repa_schedule.py says when. The teacher is brought to the grid of the
tokens, never cut to their number, so the block may lie before, among or behind the routed ones: among them the kept
tokens are aligned, elsewhere all.

Shapes: B samples, S aligned ones among them, N image tokens, K kept tokens, P teacher patches, D model channels,
F teacher features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate

from trainer.config import TrainerConfig
from trainer.model.initial import initialise
from trainer.model.tread import gather_tokens
from trainer.objective.auxiliary import MicroBatch
from trainer.objective.repa_schedule import RepaSchedule, gradient_cosine
from trainer.precision.autocast import ComputingModule, computing_in, in_compute_dtype

SPATIAL_NORM_GAMMA = 1.0
_SMALLEST_STD = 1e-6


class Projector(ComputingModule):
    """Model channels -> teacher features: `linear` without bias, `mlp` of two hidden layers, or a 3x3 `conv`."""

    def __init__(self, kind: str, width: int, teacher_width: int) -> None:
        super().__init__()
        self.net = _NETS[kind](width, teacher_width)

    def forward(self, hidden_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N, D) -> (B, N, F), fp32; `conv` needs all tokens of the grid (rows, columns)."""
        return self._project(hidden_BND, grid).to(hidden_BND.dtype)

    @in_compute_dtype
    def _project(self, hidden_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        if not isinstance(self.net, nn.Conv2d):
            projected_BNF: Tensor = self.net(hidden_BND)
            return projected_BNF
        projected_BFhw: Tensor = self.net(hidden_BND.transpose(1, 2).unflatten(2, grid))
        return projected_BFhw.flatten(2).transpose(1, 2)


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
    with torch.device("meta"):
        projector = Projector(config.repa.projector, config.model.width, teacher_width)
    projector.to_empty(device="cpu")
    initialise(projector, run_seed, prefix="repa.")
    return computing_in(projector.to(device), config.precision)


def without_common(patches_BPF: Tensor) -> Tensor:
    """Features less what all patches of an image share, each feature of spread 1 (iREPA, arXiv 2512.10794): (B, P, F).

    (z - gamma mean) / (std + 1e-6), both over the patches of an image; gamma is 1, as in the published code.
    """
    mean_B1F = patches_BPF.mean(dim=1, keepdim=True)
    std_B1F = patches_BPF.std(dim=1, keepdim=True, correction=0)
    return (patches_BPF - SPATIAL_NORM_GAMMA * mean_B1F) / (std_B1F + _SMALLEST_STD)


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


class Repa:
    """Alignment as an auxiliary loss: the projector, whom it covers, and its schedule."""

    name = "repa"
    notes: tuple[str, ...] = ()

    def __init__(self, config: TrainerConfig, teacher_width: int, run_seed: int, device: torch.device) -> None:
        self.projector = build_projector(config, teacher_width, run_seed, device)
        self.tap = config.repa_block
        self._covers_all = config.repa.samples == "all"
        first, last = config.routed_blocks
        self._is_inside = first <= config.repa_block <= last
        self._grid_of = config.grid_of
        self._spatial_norm = config.repa.spatial_norm
        self._schedule = RepaSchedule(config)
        self._cosine: tuple[int, float] | None = None  # the step it was measured in, and its value

    def weight(self, step: int) -> float:
        """Weight in the update that follows `step` finished steps."""
        return self._schedule.weight(step)

    def covers(self, t: Tensor, present: Mapping[str, Tensor]) -> Tensor:
        """Samples that do not see the teacher's features as a condition, or all."""
        return torch.ones_like(t, dtype=torch.bool) if self._covers_all else ~present["patches"]

    def loss(self, micro: MicroBatch, covered_S: Tensor) -> Tensor:
        """Sum of the alignment losses of the covered samples."""
        hidden_BND = micro.output.hidden_BND
        assert hidden_BND is not None, "the model was not asked for the hidden state"
        chosen = micro.batch.conditions.select(covered_S).to(hidden_BND.device)
        index_S = covered_S.to(hidden_BND.device)
        grid = self._grid_of(*micro.noisy.x_BCHW.shape[2:])
        patches_SPF = chosen.patches_BPD
        assert patches_SPF is not None, "the source was not asked for the teacher's features"
        if self._spatial_norm:
            patches_SPF = without_common(patches_SPF)
        teacher_SNF = resample_teacher(patches_SPF, chosen.patch_grid, grid)
        keep_SK = None if micro.route is None or not self._is_inside else micro.route.keep_BK[index_S]
        return alignment_loss(self.projector(hidden_BND[index_S], grid), teacher_SNF, keep_SK).sum()

    def watch(self, step: int, flow: Tensor, own: Tensor, micro: MicroBatch) -> None:
        """Compare the gradients of the first micro-batch of a step in which that is due."""
        is_measured = self._cosine is not None and self._cosine[0] == step
        if self._schedule.wants_probe(step) and not is_measured:
            hidden_BND = micro.output.hidden_BND
            assert hidden_BND is not None, "the model was not asked for the hidden state"
            self._cosine = (step, gradient_cosine(flow, own, hidden_BND))

    def is_observing(self, step: int) -> bool:
        """Whether the gradients are compared in the update that follows `step` finished steps."""
        return self._schedule.wants_probe(step)

    def observed(self, step: int) -> float | None:
        """The gradient cosine, if it was measured in that update."""
        return self._cosine[1] if self._cosine is not None and self._cosine[0] == step else None

    def take_observation(self, step: int, value: float) -> None:
        """The gradient cosine that another process measured."""
        self._cosine = (step, value)

    def updated(self, step: int) -> dict[str, float]:
        """The gradient cosine of the step, if it was measured; it may end the alignment."""
        if self._cosine is None or self._cosine[0] != step:
            return {}
        self._schedule.observe(self._cosine[1])
        return {"train/repa_cosine": self._cosine[1]}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to remember."""
        return self._schedule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._schedule.load_state_dict(state)
