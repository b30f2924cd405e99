"""Which images stand side by side to answer which question about a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from trainer.evaluate.cfg_divergence import CfgDivergence
from trainer.evaluate.dino_swap import DinoSwap
from trainer.evaluate.pose import PoseJudge
from trainer.evaluate.protocols import EvalSet
from trainer.evaluate.scores import Score
from trainer.evaluate.sheet import Row, contact_sheet, enlarged
from trainer.pose.error import counted

SHEET_ROWS = 6


def dino_swap_sheet(inputs: EvalSet, swap: DinoSwap, own_BCHW: Tensor) -> Image.Image:
    """Pairs of samples: both real images, and what their features and all of their conditions turn one into."""
    rows = [
        Row(
            (inputs.x_BCHW[index], own_BCHW[index], swap.swapped_BCHW[index], swap.all_swapped_BCHW[index],
             inputs.x_BCHW[partner]),
            f"{inputs.ids[index]} with features of {inputs.ids[partner]}: {inputs.captions[index]}\n"
            + told(swap.scores, inputs.ids[index], "dino_swap_"),
        )
        for index, partner in enumerate(swap.partner_B.tolist()[:SHEET_ROWS])
    ]  # fmt: skip
    columns = ("real", "drawn from its own", "+ CLS and patches of the other", "+ all of the other", "the other, real")
    return contact_sheet("Do the image features steer the image? Same noise in a row.", columns, rows)


def cfg_divergence_sheet(inputs: EvalSet, found: CfgDivergence, own_BCHW: Tensor) -> Image.Image:
    """The real image, and what single conditions, all of them, and guidance make of one noise."""
    titles = {"text": "text only", "dino": "CLS and patches only", "both": "text, CLS and patches", "native": "native"}
    shown = [name for name in titles if name in found.images]
    rows = [
        Row(
            (inputs.x_BCHW[index], *(found.images[name][index] for name in shown[:3]), own_BCHW[index],
             *(found.images[name][index] for name in shown[3:])),
            f"{id}: {inputs.captions[index]}\nLPIPS between {told(found.scores, id, 'cfg_divergence_')}",
        )
        for index, id in enumerate(inputs.ids[: min(SHEET_ROWS, inputs.first_third)])
    ]  # fmt: skip
    columns = ("real", *(titles[name] for name in shown[:3]), "all conditions", *(titles[name] for name in shown[3:]))
    return contact_sheet("What does each condition draw alone? Same noise in a row.", columns, rows)


def progress_sheet(inputs: EvalSet, images: Mapping[str, Tensor], count: int, title: str) -> Image.Image:
    """The first `count` samples in the order of their id hashes: the real image, and `images` by the column's title."""
    shown = {"real": inputs.x_BCHW, **images}
    rows = [
        Row([x_BCHW[index] for x_BCHW in shown.values()], f"{inputs.ids[index]}: {inputs.captions[index]}")
        for index in range(count)
    ]
    return contact_sheet(title, tuple(shown), rows)


def pose_sheet(inputs: EvalSet, judge: PoseJudge, images: Mapping[str, Tensor], scores: Sequence[Score]) -> Image.Image:
    """The pose that was asked for (green) and what the detector finds (red) in the real and the generated images.

    `scores` are those of the first images.
    """
    scores = [score for score in scores if score.metric in ("pose_missed", "mpjpe", "pa_mpjpe")]
    count = min(SHEET_ROWS, *(len(x_BCHW) for x_BCHW in images.values()))
    shown = {"real": inputs.x_BCHW, **images}
    found = {title: judge.joints(x_BCHW[:count]) for title, x_BCHW in shown.items()}
    rows = [
        Row(
            [_with_joints(x_BCHW[index], judge.asked[index], found[title][index]) for title, x_BCHW in shown.items()],
            f"{id}: {told(scores, id, '')} ({next(iter(images))})" if scores else f"{id}: no score",
        )
        for index, id in enumerate(inputs.ids[:count])
    ]
    return contact_sheet("Green: the joints that were asked for. Red: those that are found.", tuple(shown), rows)


def _with_joints(x_CHW: Tensor, asked_J3: np.ndarray, found_J3: np.ndarray) -> Image.Image | None:
    """A picture with dots for the joints that count, None for an image that is not finite."""
    if not bool(x_CHW.isfinite().all()):
        return None
    picture = enlarged(x_CHW)
    pen = ImageDraw.Draw(picture)
    for joints_J3, colour in ((asked_J3, (0, 150, 60)), (found_J3, (225, 20, 30))):
        for x, y in joints_J3[counted(asked_J3), :2]:
            across, down = (x + 1) / 2 * picture.width, (y + 1) / 2 * picture.height
            pen.ellipse((across - 1, down - 1, across + 1, down + 1), fill=colour)
    return picture


def told(scores: Sequence[Score], id: str, family: str) -> str:
    """The scores of one sample whose metric begins with `family`, in words: `lpips 0.103 · ceiling 0.136`."""
    named = {score.metric.removeprefix(family): score.value for score in scores if score.sample_id == id}
    return " · ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in named.items())
