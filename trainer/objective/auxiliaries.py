"""Which auxiliary losses a run trains with. A new one is its file and its line here."""

from __future__ import annotations

import torch

from trainer.config import TrainerConfig
from trainer.data.sample import StreamShapes
from trainer.objective.auxiliary import Auxiliary
from trainer.objective.maskdit import MaskDit
from trainer.objective.perceptual import dino_loss, lpips_loss
from trainer.objective.repa import Repa


def build_auxiliaries(
    config: TrainerConfig, streams: StreamShapes, run_seed: int, device: torch.device
) -> tuple[Auxiliary, ...]:
    """The auxiliary losses that are switched on, in a fixed order."""
    found: list[Auxiliary] = []
    if config.repa.enabled:
        found.append(Repa(config, streams.patch_width, run_seed, device))
    if config.model.maskdit.enabled:
        found.append(MaskDit(config))
    if config.perceptual.lpips.enabled:
        found.append(lpips_loss(config.perceptual.lpips, device))
    if config.perceptual.dino.enabled:
        found.append(dino_loss(config.perceptual.dino, device))
    return tuple(found)
