"""How close generated images come to the real ones, and the flow-matching loss on held-out images.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.data.sample import Conditions
from trainer.evaluate.perceptual import Lpips
from trainer.evaluate.protocols import EvalSet
from trainer.evaluate.scores import Score, Variant, scores_of
from trainer.model.nanodit import NanoDiT
from trainer.objective.flow import corrupt

LOSS_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


def displayed(x_BCHW: Tensor) -> Tensor:
    """The image as it would be shown: clamped to [-1, 1]; an image that is not finite becomes nan as a whole."""
    finite_B = x_BCHW.isfinite().flatten(1).all(dim=1)
    return torch.where(finite_B[:, None, None, None], x_BCHW.clamp(-1.0, 1.0), torch.nan)


def rmse(generated_BCHW: Tensor, real_BCHW: Tensor) -> Tensor:
    """Root mean squared error of displayed images over all pixels and channels, in units of [-1, 1]: (B,)."""
    assert bool((real_BCHW.abs() <= 1.0).all()), "reference pixels must lie in [-1, 1]"
    return (displayed(generated_BCHW) - real_BCHW).square().flatten(1).mean(dim=1).sqrt()


def perceptual(generated_BCHW: Tensor, other_BCHW: Tensor, lpips: Lpips) -> Tensor:
    """LPIPS between displayed images, of which the second may be real or generated: (B,)."""
    return lpips(displayed(generated_BCHW), displayed(other_BCHW))


def image_scores(
    inputs: EvalSet, lpips: Lpips, variant: Variant, task: str, eval_seed: int, generated_BCHW: Tensor
) -> list[Score]:
    """RMSE and LPIPS of images of the first samples; `task` is recon (all conditions) or text (text only)."""
    ids = inputs.ids[: len(generated_BCHW)]
    real_BCHW = inputs.x_BCHW[: len(generated_BCHW)]
    return [
        *scores_of(variant, f"{task}_rmse", ids, eval_seed, rmse(generated_BCHW, real_BCHW).tolist()),
        *scores_of(variant, f"{task}_lpips", ids, eval_seed, perceptual(generated_BCHW, real_BCHW, lpips).tolist()),
    ]


@torch.no_grad()
def loss_scores(inputs: EvalSet, model: NanoDiT, weights: str) -> list[Score]:
    """mean[(v^ - v)^2] with v^ = (z - x^) / t on the first sixth of the samples, per time and as the mean over times.

    Dense, all conditions, fixed noise, no auxiliary term. With z = (1 - t) x + t s noise, v^ - v = (x - x^) / t.
    Empty where none of the first sixth has this shape.
    """
    if not inputs.first_sixth:
        return []
    variant, ids = Variant(weights, "common"), inputs.ids[: inputs.first_sixth]
    chosen = torch.arange(len(ids), device=inputs.device)
    x_BCHW, noise_BCHW = inputs.x_BCHW[chosen], inputs.noise(0)[chosen]
    conditions = inputs.conditions.select(chosen)
    scores, total_B = [], torch.zeros(len(ids), device=inputs.device)
    for t in LOSS_TIMES:
        loss_B = _loss_at(inputs, model, t, (x_BCHW, noise_BCHW), conditions)
        scores += scores_of(variant, f"loss_t{t}", ids, 0, loss_B.tolist())
        total_B += loss_B / len(LOSS_TIMES)
    return [*scores_of(variant, "loss", ids, 0, total_B.tolist()), *scores]


def _loss_at(
    inputs: EvalSet, model: NanoDiT, t: float, images: tuple[Tensor, Tensor], conditions: Conditions
) -> Tensor:
    losses = []
    for chosen in torch.arange(len(images[0]), device=inputs.device).split(inputs.samples_at_once):
        x_BCHW, noise_BCHW = images[0][chosen], images[1][chosen]
        t_B = torch.full((len(chosen),), t, device=inputs.device)
        z_BCHW = corrupt(x_BCHW, noise_BCHW, t_B, inputs.config.objective.noise_scale)
        predicted_BCHW = model(z_BCHW, t_B, conditions.select(chosen)).x_BCHW
        losses.append((predicted_BCHW - x_BCHW).square().flatten(1).mean(dim=1) / t**2)
    return torch.cat(losses)
