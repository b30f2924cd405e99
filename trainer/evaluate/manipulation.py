"""Does the image follow the words? Change one attribute in the caption, keep the noise, and look at what moves.

Shapes: B samples, C channels, H x W pixels, T text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.data.sample import Edit, to_unit_range
from trainer.evaluate.perceptual import Lpips
from trainer.evaluate.protocols import EvalSet
from trainer.evaluate.reconstruction import displayed, perceptual
from trainer.evaluate.scores import Score, Variant, scores_of
from trainer.model.nanodit import NanoDiT

HALF_WAY = 0.5


class Manipulation(NamedTuple):
    """Scores of the edits, and the images drawn from the original and the edited captions (B, C, H, W)."""

    scores: list[Score]
    original_BCHW: Tensor
    edited_BCHW: Tensor


def manipulate(inputs: EvalSet, model: NanoDiT, lpips: Lpips, eval_seed: int) -> Manipulation | None:
    """Edit the captions of the first third of the samples; None if the source knows no edits or it has no sample here.

    With c the caption, c' the edited one, n the noise, and images drawn from text alone:
    delta = LPIPS(G(c, n), G(c', n)), floor = LPIPS(G(c, n), G(paraphrase of c, n)), spread = LPIPS(G(c, n), G(c, n2)),
    hit = 1 where the mean colour of the edited region moves more than half-way to that of the edited scene.
    """
    found = [(index, inputs.source.edit(id)) for index, id in enumerate(inputs.ids[: inputs.first_third])]
    edits = [edit for _, edit in found if edit is not None]
    if not found or len(edits) < len(found) or "text" not in inputs.conditions.streams:
        return None
    count, other_seed = len(edits), inputs.eval_seeds.stop + eval_seed
    original = inputs.conditions.keep(("text",))
    edited, paraphrased = (inputs.encode([getattr(edit, kind) for edit in edits]) for kind in ("caption", "paraphrase"))
    original_BCHW = inputs.generate(model, original, eval_seed, count=count)
    edited_BCHW = inputs.generate(model, edited, eval_seed, count=count)
    paraphrased_BCHW = inputs.generate(model, paraphrased, eval_seed, count=count)
    again_BCHW = inputs.generate(model, original, other_seed, count=count)
    values = {
        "delta": perceptual(original_BCHW, edited_BCHW, lpips),
        "floor": perceptual(original_BCHW, paraphrased_BCHW, lpips),
        "spread": perceptual(original_BCHW, again_BCHW, lpips),
        "hit": hits(displayed(original_BCHW), displayed(edited_BCHW), edits),
    }
    variant, ids = Variant("ema", "common"), inputs.ids[:count]
    scores = [
        score
        for name, value_B in values.items()
        for score in scores_of(variant, f"text_manip_{name}", ids, eval_seed, value_B.tolist())
    ]
    return Manipulation(scores, original_BCHW, edited_BCHW)


def hits(before_BCHW: Tensor, after_BCHW: Tensor, edits: Sequence[Edit]) -> Tensor:
    """1 where less than half of the distance in colour to the edited scene is left, 0 elsewhere, nan for nan: (B,).

    Colours are means over the edited region; the distance is Euclidean.
    """
    goal_BCHW = torch.from_numpy(np.stack([edit.pixels_HWC for edit in edits]).transpose(0, 3, 1, 2).copy())
    region_B1HW = torch.from_numpy(np.stack([edit.region_HW for edit in edits]))[:, None].to(before_BCHW.device)
    goal_BC = _mean_colour(to_unit_range(goal_BCHW.to(before_BCHW.device)), region_B1HW)
    before_B = (_mean_colour(before_BCHW, region_B1HW) - goal_BC).norm(dim=1)
    after_B = (_mean_colour(after_BCHW, region_B1HW) - goal_BC).norm(dim=1)
    hit_B = (after_B < HALF_WAY * before_B).float()
    return torch.where(before_B.isnan() | after_B.isnan(), torch.nan, hit_B)


def _mean_colour(image_BCHW: Tensor, region_B1HW: Tensor) -> Tensor:
    """(B, C)."""
    return (image_BCHW * region_B1HW).sum(dim=(2, 3)) / region_B1HW.sum(dim=(2, 3)).clamp(min=1)
