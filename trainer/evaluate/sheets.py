"""Which images stand side by side to answer which question about a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from trainer.evaluate.dino_swap import DinoSwap
from trainer.evaluate.protocols import EvalSet
from trainer.evaluate.scores import Score
from trainer.evaluate.sheet import Row, contact_sheet

SHEET_ROWS = 6


def dino_swap_sheet(inputs: EvalSet, swap: DinoSwap, own_BCHW: Tensor) -> Image.Image:
    """Pairs of samples: both real images, and what their features and all of their conditions turn one into."""
    rows = [
        Row(
            (inputs.x_BCHW[index], own_BCHW[index], swap.swapped_BCHW[index], swap.all_swapped_BCHW[index],
             inputs.x_BCHW[partner]),
            f"{inputs.ids[index]} with features of {inputs.ids[partner]}: {inputs.captions[index]}\n"
            + told(swap.scores, inputs.ids[index], ("dino_swap_lpips", "dino_swap_ceiling", "dino_swap_toward")),
        )
        for index, partner in enumerate(swap.partner_B.tolist()[:SHEET_ROWS])
    ]  # fmt: skip
    columns = ("real", "drawn from its own", "+ CLS and patches of the other", "+ all of the other", "the other, real")
    return contact_sheet("Do the image features steer the image? Same noise in a row.", columns, rows)


def told(scores: Sequence[Score], id: str, metrics: Sequence[str]) -> str:
    """The scores of one sample in words: `dino swap lpips 0.1234   toward …`."""
    found = {score.metric: score.value for score in scores if score.sample_id == id}
    return "   ".join(f"{metric.replace('_', ' ')} {found[metric]:.3f}" for metric in metrics if metric in found)
