"""I6: how far the averaged weights are behind the raw ones."""

from __future__ import annotations

import torch
from torch import nn

from trainer.config import TrainerConfig
from trainer.data.sample import StreamShapes
from trainer.model.nanodit import build


@torch.no_grad()
def ema_lag(
    average: nn.Module, model: nn.Module, config: TrainerConfig, streams: StreamShapes, run_seed: int
) -> float | None:
    """|W_ema - W| / |W - W_0| over all weights; None before the weights have moved.

    W_0 is drawn again from the stream of initial weights, on the CPU, so that nobody has to store it. That holds for
    a run that began with a checkpoint of another one, too, because both have the same seed and model.
    """
    apart_square = travelled_square = torch.zeros((), dtype=torch.float64)
    initial = build(config.model, streams, run_seed)
    for averaged, weight, start in zip(average.parameters(), model.parameters(), initial.parameters(), strict=True):
        apart_square = apart_square.to(weight.device) + (averaged - weight).norm().double().square()
        travelled_square = (
            travelled_square.to(weight.device) + (weight - start.to(weight.device)).norm().double().square()
        )
    apart, travelled = torch.stack([apart_square, travelled_square]).sqrt().tolist()
    return apart / travelled if travelled else None
