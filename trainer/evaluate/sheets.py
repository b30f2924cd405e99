"""Which images stand side by side to answer which question about a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from trainer.config import NativeSamplerConfig
from trainer.evaluate.cfg_divergence import CfgDivergence
from trainer.evaluate.dino_swap import DinoSwap
from trainer.evaluate.findings import Findings
from trainer.evaluate.pose import PoseJudge
from trainer.evaluate.protocols import EvalSet
from trainer.evaluate.scores import EMA_COMMON, Score
from trainer.evaluate.sheet import Row, contact_sheet, enlarged
from trainer.pose.error import counted

SHEET_ROWS = 6

Part = tuple[EvalSet, Mapping[str, Tensor]]
"""The samples of one shape and images of the first of them by the title of their column."""


def sheets_of(found: Sequence[Findings], judge: PoseJudge | None) -> dict[str, Image.Image]:
    """The contact sheets of a full validation by name; a question that was not asked has none."""
    sheets = {}
    own = ("ema_common", 0)
    if swaps := [(each.inputs, each.swap, each.drawn[own]) for each in found if each.swap is not None]:
        sheets["dino_swap"] = dino_swap_sheet(swaps)
    if apart := [(each.inputs, each.divergence, each.drawn[own]) for each in found if each.divergence is not None]:
        sheets["cfg_divergence"] = cfg_divergence_sheet(apart)
    if judge is not None:
        samplers = ("common", "native")
        parts = [(each.inputs, {f"EMA, {name}": each.drawn[f"ema_{name}", 0] for name in samplers}) for each in found]
        scores = [score for each in found for score in each.scores]
        shown = [score for score in scores if score.variant == EMA_COMMON and score.eval_seed == 0]
        sheets["pose"] = pose_sheet(judge, parts, shown)
    return sheets


def dino_swap_sheet(parts: Sequence[tuple[EvalSet, DinoSwap, Tensor]]) -> Image.Image:
    """Pairs of samples: both real images, and what their features and all of their conditions turn one into.

    `parts` holds the samples of each shape, what exchanging did to them, and what is drawn from their own conditions.
    """
    rows = [
        (
            (inputs.places[min(index, partner)], inputs.places[index]),
            Row(
                (inputs.x_BCHW[index], own_BCHW[index], swap.swapped_BCHW[index], swap.all_swapped_BCHW[index],
                 inputs.x_BCHW[partner]),
                f"{inputs.ids[index]} with features of {inputs.ids[partner]}: {inputs.captions[index]}\n"
                + told(swap.scores, inputs.ids[index], "dino_swap_"),
            ),
        )
        for inputs, swap, own_BCHW in parts
        for index, partner in enumerate(swap.partner_B.tolist())
    ]  # fmt: skip
    columns = ("real", "drawn from its own", "+ CLS and patches of the other", "+ all of the other", "the other, real")
    shown = _in_order(rows)[:SHEET_ROWS]
    return contact_sheet("Do the image features steer the image? Same noise in a row.", columns, shown)


def cfg_divergence_sheet(parts: Sequence[tuple[EvalSet, CfgDivergence, Tensor]]) -> Image.Image:
    """The real image, and what single conditions, all of them, and guidance make of one noise.

    `parts` holds the samples of each shape, what single conditions draw, and what all of them draw.
    """
    titles = {"text": "text only", "dino": "CLS and patches only", "both": "text, CLS and patches", "native": "native"}
    shown = [name for name in titles if name in parts[0][1].images]
    rows = [
        (
            (inputs.places[index],),
            Row(
                (inputs.x_BCHW[index], *(found.images[name][index] for name in shown[:3]), own_BCHW[index],
                 *(found.images[name][index] for name in shown[3:])),
                f"{id}: {inputs.captions[index]}\nLPIPS between {told(found.scores, id, 'cfg_divergence_')}",
            ),
        )
        for inputs, found, own_BCHW in parts
        for index, id in enumerate(inputs.ids[: min(inputs.among_first(SHEET_ROWS), inputs.first_third)])
    ]  # fmt: skip
    columns = ("real", *(titles[name] for name in shown[:3]), "all conditions", *(titles[name] for name in shown[3:]))
    return contact_sheet("What does each condition draw alone? Same noise in a row.", columns, _in_order(rows))


def progress_sheet(found: Sequence[Findings], count: int, title: str, native: NativeSamplerConfig) -> Image.Image:
    """The first `count` samples in the order of their id hashes: the real image, and what the validation has drawn."""
    parts = [(findings.inputs, _progress_of(findings, native)) for findings in found]
    parts = [(inputs, images) for inputs, images in parts if inputs.among_first(count)]
    rows = [
        (
            (inputs.places[index],),
            Row(
                [inputs.x_BCHW[index], *(x_BCHW[index] for x_BCHW in images.values())],
                f"{inputs.ids[index]}: {inputs.captions[index]}",
            ),
        )
        for inputs, images in parts
        for index in range(inputs.among_first(count))
    ]
    return contact_sheet(title, ("real", *parts[0][1]), _in_order(rows))


def _progress_of(findings: Findings, native: NativeSamplerConfig) -> dict[str, Tensor]:
    """The images of a progress sheet by the title of their column."""
    titles = {"ema_common": "EMA", "raw_common": "raw", "text_only": "EMA, text only"}
    if native.kind != "dense":
        titles["ema_native"] = f"EMA, {native.kind.replace('_', ' ')}"
    return {title: findings.drawn[key, 0] for key, title in titles.items() if (key, 0) in findings.drawn}


def pose_sheet(judge: PoseJudge, parts: Sequence[Part], scores: Sequence[Score]) -> Image.Image:
    """The pose that was asked for (green) and what the detector finds (red) in the real and the generated images.

    `scores` are those of the first images.
    """
    scores = [score for score in scores if score.metric in ("pose_missed", "mpjpe", "pa_mpjpe")]
    rows = [row for inputs, images in parts for row in _pose_rows(judge, inputs, images, scores)]
    columns = ("real", *parts[0][1])
    return contact_sheet("Green: the joints that were asked for. Red: those that are found.", columns, _in_order(rows))


def _pose_rows(
    judge: PoseJudge, inputs: EvalSet, images: Mapping[str, Tensor], scores: Sequence[Score]
) -> list[tuple[tuple[int, ...], Row]]:
    count = min(inputs.among_first(SHEET_ROWS), *(len(x_BCHW) for x_BCHW in images.values()))
    if not count:
        return []
    shown = {"real": inputs.x_BCHW, **images}
    found, asked_BJ3 = {title: judge.joints(x_BCHW[:count]) for title, x_BCHW in shown.items()}, judge.asked(inputs)
    return [
        (
            (inputs.places[index],),
            Row(
                [_with_joints(x_BCHW[index], asked_BJ3[index], found[title][index]) for title, x_BCHW in shown.items()],
                f"{id}: {told(scores, id, '')} ({next(iter(images))})" if scores else f"{id}: no score",
            ),
        )
        for index, id in enumerate(inputs.ids[:count])
    ]


def _in_order(rows: Sequence[tuple[tuple[int, ...], Row]]) -> list[Row]:
    """Rows of all shapes by the places of their samples."""
    return [row for _, row in sorted(rows, key=lambda placed: placed[0])]


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
