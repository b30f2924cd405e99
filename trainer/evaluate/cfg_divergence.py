"""How differently do words and image features draw the same sample? Subsets of conditions and guidance, same noise.

Shapes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

from torch import Tensor

from trainer.evaluate.dino_swap import DINO
from trainer.evaluate.perceptual import Lpips
from trainer.evaluate.protocols import EvalSet
from trainer.evaluate.reconstruction import perceptual
from trainer.evaluate.scores import Score, Variant, scores_of
from trainer.model.nanodit import NanoDiT


class Drawn(NamedTuple):
    """Images (B, C, H, W) of at least the first third of the samples that the validation has drawn anyway.

    From all conditions without guidance, from the caption alone, and with the arm's native guidance (None without any).
    """

    own_BCHW: Tensor
    text_BCHW: Tensor
    native_BCHW: Tensor | None


class CfgDivergence(NamedTuple):
    """Scores, and images (B, C, H, W) of the first third of the samples by name: text, dino, both, native."""

    scores: list[Score]
    images: dict[str, Tensor]


def cfg_divergence(inputs: EvalSet, model: NanoDiT, lpips: Lpips, eval_seed: int, drawn: Drawn) -> CfgDivergence | None:
    """LPIPS between images of one sample and one noise, drawn by the common sampler from different conditions.

    cfg_divergence_text_dino: from the caption alone and from CLS and patches alone; _text_both and _dino_both: from one
    of them and from both. Pose is in none of them. _guidance: from all conditions, without and with the arm's native
    guidance; absent for an arm without any. 0 means that the two draw the same.

    Training never sees CLS and patches together without words, so `dino` is a question outside of it while both are on.
    None for a run without captions or without image features, and where none of the first third has this shape.
    """
    streams = set(inputs.conditions.streams)
    if not inputs.first_third or "text" not in streams or not streams & set(DINO):
        return None
    count, variant = inputs.first_third, Variant("ema", "common")
    dino_BCHW, both_BCHW = (
        inputs.generate(model, inputs.conditions.keep(kept), eval_seed, count=count) for kept in (DINO, ("text", *DINO))
    )
    images = {"text": drawn.text_BCHW[:count], "dino": dino_BCHW, "both": both_BCHW}
    values = {f"{one}_{other}": perceptual(images[one], images[other], lpips) for one, other in combinations(images, 2)}
    if drawn.native_BCHW is not None:
        images["native"] = drawn.native_BCHW[:count]
        values["guidance"] = perceptual(drawn.own_BCHW[:count], images["native"], lpips)
    scores = [
        score
        for name, value_B in values.items()
        for score in scores_of(variant, f"cfg_divergence_{name}", inputs.ids[:count], eval_seed, value_B.tolist())
    ]
    return CfgDivergence(scores, images)
