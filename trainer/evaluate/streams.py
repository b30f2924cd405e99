"""Does the model use a condition? Give it another sample's and see how much worse it gets.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from trainer.data.sample import Conditions
from trainer.evaluate.protocols import EvalSet
from trainer.evaluate.reconstruction import rmse
from trainer.evaluate.scores import Score, Variant, scores_of
from trainer.model.nanodit import NanoDiT

_FIELDS = {
    "text": ("text_BTD", "text_mask_BT"),
    "cls": ("cls_BD",),
    "patches": ("patches_BPD",),
    "pose": ("pose_BJ3",),
}


def stream_scores(inputs: EvalSet, model: NanoDiT, eval_seed: int, true_BCHW: Tensor) -> list[Score]:
    """use_<stream> of every stream: reconstruction RMSE with that stream from the next sample minus the true RMSE.

    EMA weights, common sampler, the same noise; `true_BCHW` holds the images under the true conditions. Above 0 means
    that the stream is used. Empty for a single sample, which has no other to borrow from.
    """
    if len(inputs.ids) < 2:
        return []
    scores = []
    true_B = rmse(true_BCHW, inputs.x_BCHW)
    for stream in inputs.conditions.streams:
        generated_BCHW = inputs.generate(model, shuffled(inputs.conditions, stream), eval_seed)
        worse_B = rmse(generated_BCHW, inputs.x_BCHW) - true_B
        scores += scores_of(Variant("ema", "common"), f"use_{stream}", inputs.ids, eval_seed, worse_B.tolist())
    return scores


def shuffled(conditions: Conditions, stream: str) -> Conditions:
    """Conditions in which every sample has one stream of the sample before it; nobody keeps its own."""
    moved = {name: torch.roll(getattr(conditions, name), 1, dims=0) for name in _FIELDS[stream]}
    return dataclasses.replace(conditions, **moved)
