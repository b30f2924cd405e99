"""I5: how far apart the dense and the routed prediction are, which self-guidance multiplies.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.evaluate.protocols import EvalSet
from trainer.evaluate.reconstruction import LOSS_TIMES
from trainer.model.nanodit import NanoDiT
from trainer.model.tread import Route
from trainer.objective.flow import corrupt


@torch.no_grad()
def predictions(inputs: EvalSet, model: NanoDiT, count: int, route: Route | None = None) -> dict[float, Tensor]:
    """The clean images that `model` predicts at every time of `LOSS_TIMES`: (count, C, H, W) each.

    The first `count` samples with all conditions and the fixed noise of eval seed 0; dense without `route`.
    """
    pairs = torch.cartesian_prod(torch.arange(len(LOSS_TIMES)), torch.arange(count)).to(inputs.device)
    times = torch.tensor(LOSS_TIMES, device=inputs.device)
    parts = []
    # All times together: many small batches cost more than a few large ones.
    for chosen in pairs.split(inputs.samples_at_once):
        t_B, image_B = times[chosen[:, 0]], chosen[:, 1]
        noise_BCHW = inputs.noise(0)[image_B]
        z_BCHW = corrupt(inputs.x_BCHW[image_B], noise_BCHW, t_B, inputs.config.objective.noise_scale)
        own_route = None if route is None else route.select(image_B)
        parts.append(model(z_BCHW, t_B, inputs.conditions.select(image_B), route=own_route).x_BCHW)
    return dict(zip(LOSS_TIMES, torch.cat(parts).split(count), strict=True))


def losses(inputs: EvalSet, predicted: Mapping[float, Tensor]) -> Tensor:
    """Per sample the mean over times of mean[(v^ - v)^2] = mean[(x^ - x)^2] / t^2, as `val/loss` has it: (count,)."""
    of_times = [
        (x_BCHW - inputs.x_BCHW[: len(x_BCHW)]).square().flatten(1).mean(dim=1) / t**2
        for t, x_BCHW in predicted.items()
    ]
    return torch.stack(of_times).mean(dim=0)


class Predicted(NamedTuple):
    """Dense and routed predictions for the first samples of one shape by time: (count, C, H, W) each."""

    inputs: EvalSet
    dense: Mapping[float, Tensor]
    routed: Mapping[float, Tensor]


def routed_gap(shapes: Sequence[Predicted]) -> dict[str, float]:
    """|x_dense - x_routed| / |x_dense| over the samples of all shapes, per time and as the mean over times; and loss
    minus loss.

    A gap is left out where the dense prediction is exactly 0, as it is before the first step, and so is their mean.
    """
    norms = [_norms(each) for each in shapes]
    found: dict[str, float] = {}
    for t, of_shapes in zip(LOSS_TIMES, zip(*norms, strict=True), strict=True):
        apart, size = (math.hypot(*norms_of_shapes) for norms_of_shapes in zip(*of_shapes, strict=True))
        if size:
            found[f"opt/dense_routed_gap/t{t}"] = apart / size
    if len(found) == len(LOSS_TIMES):
        found = {"opt/dense_routed_gap": sum(found.values()) / len(found), **found}
    difference_B = torch.cat([losses(each.inputs, each.dense) - losses(each.inputs, each.routed) for each in shapes])
    return {**found, "opt/dense_routed_loss_gap": float(difference_B.mean())}


def _norms(predicted: Predicted) -> list[list[float]]:
    """[|x_dense - x_routed|, |x_dense|] of every time, over all samples together."""
    pairs = [(predicted.dense[t], predicted.routed[t]) for t in LOSS_TIMES]
    found: list[list[float]] = torch.stack([torch.stack([(x - other).norm(), x.norm()]) for x, other in pairs]).tolist()
    return found
