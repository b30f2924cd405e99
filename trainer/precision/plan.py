"""Which matrices compute in FP8 and which do not, and why: by name and shape alone. No torch here.

FP8 products need every dimension to be a multiple of 16. Only attention and MLP inside the blocks come into question:
the ends of the model need precision, and modulation works on one row per sample.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from trainer.config import Fp8Config, TrainerConfig

MULTIPLE = 16
_MATRIX = re.compile(r"(?:model\.)?blocks\.\d+\.(?:self|cross|mlp)\.")
_REASONS = (
    (re.compile(r"modulation|adaln|lora"), "modulation: one row per sample"),
    (re.compile(r"(?:model\.)?head\b"), "head: its output is the image"),
    (re.compile(r"(?:model\.)?(?:patches|time|conditioning)\b"), "embedding"),
    (re.compile(r"^(?!model\.|blocks\.)"), "auxiliary loss"),
)


class Layer(NamedTuple):
    """A linear layer: its name in the model, rows (output features) and columns (input features) of its weight."""

    name: str
    rows: int
    columns: int


class Entry(NamedTuple):
    """What becomes of a layer. `reason` says why it stays as it is, and is empty for one that converts."""

    name: str
    shape: tuple[int, int]
    converts: bool
    reason: str


def plan(layers: Iterable[Layer], fp8: Fp8Config) -> list[Entry]:
    """One entry per layer, in their order."""
    reasons = ((layer, _reason(layer, fp8)) for layer in layers)
    return [Entry(layer.name, (layer.rows, layer.columns), not reason, reason) for layer, reason in reasons]


def lines(entries: Iterable[Entry]) -> list[str]:
    """The plan for a person: layers of equal shape and fate that differ only in the number of their block as one line.

    For instance "3 x blocks.*.mlp.fc1 (3072, 768): fp8".
    """
    counts: dict[tuple[str, tuple[int, int], str], int] = {}
    for entry in entries:
        key = (re.sub(r"blocks\.\d+", "blocks.*", entry.name), entry.shape, entry.reason or "fp8")
        counts[key] = counts.get(key, 0) + 1
    return [f"{count} x {name} {shape}: {fate}" for (name, shape, fate), count in counts.items()]


def block_layers(config: TrainerConfig) -> list[Layer]:
    """The matrices of the first block that come into question, from the configuration alone."""
    width, hidden = config.model.width, config.model.mlp_hidden
    attention = [Layer(f"blocks.0.{part}.{leaf}", width, width) for part in ("self", "cross") for leaf in _LEAVES]
    into_mlp = ("fc1",) if config.model.mlp == "gelu" else ("gate", "fc1")
    mlp = [Layer(f"blocks.0.mlp.{leaf}", hidden, width) for leaf in into_mlp]
    return [*attention, *mlp, Layer("blocks.0.mlp.fc2", width, hidden)]


_LEAVES = ("q", "k", "v", "out")


def _reason(layer: Layer, fp8: Fp8Config) -> str:
    """Why a layer does not convert; empty if it does."""
    if not _MATRIX.match(layer.name):
        found = (reason for pattern, reason in _REASONS if pattern.search(layer.name))
        return next(found, "not in attention or MLP of a block")
    odd = [size for size in (layer.rows, layer.columns) if size % MULTIPLE]
    if odd:
        return f"{odd[0]} is no multiple of {MULTIPLE}"
    if fp8.filter == "auto" and _is_small(layer, fp8.recipe):
        return f"too small to gain by {fp8.recipe} FP8"
    return ""


def _is_small(layer: Layer, recipe: str) -> bool:
    """Shapes that torchao 0.18 measured on an H100 to lose by FP8 (its automatic filter, an experimental one)."""
    rows, columns = layer.rows, layer.columns
    if recipe == "tensorwise":
        return rows <= 1024 and columns <= 4096
    return rows <= 2048 or columns <= 1024 or (rows <= 4096 and columns <= 2048)
