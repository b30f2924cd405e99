"""Does the model use a condition? Give it another sample's and see how much worse it gets.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
    fields = [getattr(conditions, name) for name in _FIELDS[stream]]
    return borrowed(conditions, (stream,), torch.arange(len(fields[0]), device=fields[0].device).roll(1))


def borrowed(conditions: Conditions, streams: Sequence[str], lender_B: Tensor) -> Conditions:
    """Conditions in which sample i has the named streams of sample `lender_B[i]` (int64) and keeps all others.

    Streams that `conditions` does not have stay absent.
    """
    names = [name for stream in streams if stream in conditions.streams for name in _FIELDS[stream]]
    return dataclasses.replace(conditions, **{name: getattr(conditions, name)[lender_B] for name in names})
