"""Which conditions a training sample keeps: seven categories that exclude each other.

Shapes: B samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainer import randomness
from trainer.model.conditioning import STREAMS


class Category(NamedTuple):
    """One way to drop conditions: its name, its probability and what stays, in the order of STREAMS."""

    name: str
    probability: float
    keeps: tuple[bool, bool, bool, bool]


CATEGORIES = (
    Category("uncond", 0.10, (False, False, False, False)),
    Category("text", 0.25, (True, False, False, False)),
    Category("cls", 0.05, (False, True, False, False)),
    Category("patches", 0.05, (False, False, True, False)),
    Category("drop_pose", 0.10, (True, True, True, False)),
    Category("pose", 0.05, (False, False, False, True)),
    Category("all", 0.40, (True, True, True, True)),
)
_BOUNDS = torch.tensor([category.probability for category in CATEGORIES], dtype=torch.float64).cumsum(0)[:-1]
_KEEPS = torch.tensor([category.keeps for category in CATEGORIES])


def kept_streams() -> list[tuple[float, tuple[str, ...]]]:
    """Probability of every category, and the streams that it keeps."""
    return [
        (each.probability, tuple(name for name, keeps in zip(STREAMS, each.keeps, strict=True) if keeps))
        for each in CATEGORIES
    ]


def draw_categories(run_seed: int, step: int, positions: Sequence[int]) -> Tensor:
    """Index into CATEGORIES for the given positions of the effective batch: (B,) int64 on the CPU."""
    chance_B1 = randomness.uniform_rows((1,), run_seed, "dropout", step, positions)
    return torch.bucketize(chance_B1[:, 0].double(), _BOUNDS, right=True)


def present_streams(category_B: Tensor) -> dict[str, Tensor]:
    """For every stream the samples that keep it: booleans (B,)."""
    keeps_BS = _KEEPS[category_B]
    return {name: keeps_BS[:, index] for index, name in enumerate(STREAMS)}
