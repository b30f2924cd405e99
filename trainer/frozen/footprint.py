"""The memory that frozen networks add to a run, by arithmetic alone. No torch here.

Only the pass over the predicted images is kept for gradients; everything is fp32.
"""

from __future__ import annotations

from trainer.config import TrainerConfig
from trainer.frozen.sides import DINO_RANDOM_PATCH, LPIPS_MULTIPLE, looked_at

MIB = 2**20
BYTES = 4
LPIPS_WEIGHTS = {"vgg": 14_716_160, "squeeze": 724_736}
LPIPS_KEPT_PER_PIXEL = {"vgg": 610, "squeeze": 160}  # numbers, measured
STAND_IN_WEIGHTS, STAND_IN_KEPT_PER_PATCH = 137_792, 2_100  # measured
VIT_B_WEIGHTS, VIT_B_KEPT_PER_PATCH = 86_600_000, 157_000  # per patch as in the stand-in, by width and depth


def frozen_mib(config: TrainerConfig) -> float:
    """Memory of the perceptual losses that are switched on, in MiB, all samples of a micro-batch covered.

    A DINO that is not the stand-in counts as a ViT-B with patches of 14: the real one is not known before it is read.
    """
    return (_lpips_numbers(config) + _dino_numbers(config)) * BYTES / MIB


def _lpips_numbers(config: TrainerConfig) -> float:
    lpips = config.perceptual.lpips
    if not lpips.enabled:
        return 0.0
    height, width = looked_at(config.data.size, config.data.size, lpips.size, LPIPS_MULTIPLE)
    return LPIPS_WEIGHTS[lpips.net] + config.batch * height * width * LPIPS_KEPT_PER_PIXEL[lpips.net]


def _dino_numbers(config: TrainerConfig) -> float:
    dino = config.perceptual.dino
    if not dino.enabled:
        return 0.0
    patches = config.batch * (dino.size / DINO_RANDOM_PATCH) ** 2
    if dino.backbone == "random":
        return STAND_IN_WEIGHTS + patches * STAND_IN_KEPT_PER_PATCH
    return VIT_B_WEIGHTS + patches * VIT_B_KEPT_PER_PATCH
