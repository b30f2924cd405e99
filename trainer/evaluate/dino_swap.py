"""Do the image features steer the image? Two samples exchange theirs, keep text, pose and noise, and we look.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trainer.evaluate.perceptual import Lpips
from trainer.evaluate.protocols import EvalSet
from trainer.evaluate.reconstruction import perceptual, rmse
from trainer.evaluate.scores import Score, Variant, scores_of
from trainer.evaluate.streams import borrowed
from trainer.model.conditioning import STREAMS
from trainer.model.nanodit import NanoDiT

DINO = ("cls", "patches")


class DinoSwap(NamedTuple):
    """Scores, and images (B, C, H, W) with the partner's features only and with all of the partner's conditions.

    `partner_B` is the place of each sample's partner: 0 and 1 are a pair, 2 and 3, and so on.
    """

    scores: list[Score]
    swapped_BCHW: Tensor
    all_swapped_BCHW: Tensor
    partner_B: Tensor


def swap_dino(inputs: EvalSet, model: NanoDiT, lpips: Lpips, eval_seed: int, own_BCHW: Tensor) -> DinoSwap | None:
    """Exchange CLS and patches within pairs of the first third of the samples, and of at least two.

    With x the real image, c the conditions, n the noise, j the partner of i, and G drawn by the common sampler:
    lpips = LPIPS(G(c_i, n_i), G(c_i with DINO of j, n_i)): 0 when the features are ignored (the noise is the same);
    ceiling = LPIPS(G(c_i, n_i), G(c_j, n_i)): what exchanging all conditions moves;
    spread = LPIPS(G(c_i, n_i), G(c_i, n'_i)): what another noise moves;
    toward = RMSE(G(c_i, n_i), x_j) - RMSE(G(c_i with DINO of j, n_i), x_j): above 0 when the features of j lead to j.

    `own_BCHW` holds G(c, n) of at least as many samples. None for a run without image features or a single sample.
    """
    count = max(2, inputs.first_third // 2 * 2)
    if len(inputs.ids) < 2 or not set(DINO) & set(inputs.conditions.streams):
        return None
    partner_B = torch.arange(count, device=inputs.device).view(-1, 2).flip(1).flatten()
    conditions = inputs.conditions.select(torch.arange(count, device=inputs.device))
    own_BCHW, other_seed = own_BCHW[:count], inputs.eval_seeds.stop + eval_seed
    swapped_BCHW = inputs.generate(model, borrowed(conditions, DINO, partner_B), eval_seed, count=count)
    all_swapped_BCHW = inputs.generate(model, borrowed(conditions, STREAMS, partner_B), eval_seed, count=count)
    again_BCHW = inputs.generate(model, conditions, other_seed, count=count)
    partner_BCHW = inputs.x_BCHW[partner_B]
    values = {
        "lpips": perceptual(own_BCHW, swapped_BCHW, lpips),
        "ceiling": perceptual(own_BCHW, all_swapped_BCHW, lpips),
        "spread": perceptual(own_BCHW, again_BCHW, lpips),
        "toward": rmse(own_BCHW, partner_BCHW) - rmse(swapped_BCHW, partner_BCHW),
    }
    variant, ids = Variant("ema", "common"), inputs.ids[:count]
    scores = [
        score
        for name, value_B in values.items()
        for score in scores_of(variant, f"dino_swap_{name}", ids, eval_seed, value_B.tolist())
    ]
    return DinoSwap(scores, swapped_BCHW, all_swapped_BCHW, partner_B)
