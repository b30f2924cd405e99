"""FP8 products through torchao: a converted layer keeps its fp32 weight and scales input, weight and gradient anew in
every product.

Shapes: M rows (tokens of all samples), K input features, N output features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from trainer.config import Fp8Config
from trainer.precision.plan import MULTIPLE, Entry, Layer, plan


class PaddedRows(nn.Module):
    """A layer that sees its rows filled up with zeros to a multiple of 16.

    The gradient of the weight is a product over all rows, so their number has to be one, too; and contexts are as long
    as the captions of a batch. Rows of zeros change neither the largest absolute value nor any sum.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))  # as the layer itself does, but on a GPU only
        x_MK = x.flatten(0, -2)
        missing = -len(x_MK) % MULTIPLE
        if not missing:
            y: Tensor = self.layer(x)
            return y
        y_MN: Tensor = self.layer(pad(x_MK, (0, 0, 0, missing)))[: len(x_MK)]
        y = y_MN.unflatten(0, x.shape[:-1])
        return y


def layers_of(module: nn.Module) -> Iterator[Layer]:
    """Every linear layer of a module, by name."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            yield Layer(name, part.out_features, part.in_features)


def plan_of(module: nn.Module, fp8: Fp8Config) -> list[Entry]:
    """What FP8 would do to the linear layers of a module; nothing is changed."""
    return plan(layers_of(module), fp8)


def convert(model: nn.Module, fp8: Fp8Config) -> None:
    """Replace the layers that the plan converts, in place; parameters stay the same objects."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training  # seconds, and only for FP8

    chosen = {entry.name for entry in plan_of(model, fp8) if entry.converts}
    recipe = dataclasses.replace(Float8LinearConfig.from_recipe_name(fp8.recipe), emulate=fp8.emulate)
    convert_to_float8_training(model, config=recipe, module_filter_fn=lambda _, name: name in chosen)
    for name in chosen:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, PaddedRows(model.get_submodule(name)))


def missing_hardware(device: torch.device) -> str | None:
    """What is in the way of FP8 products on a device; None if nothing is."""
    if device.type != "cuda":
        return f"a {device.type} device has no FP8 matrix units"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) >= (8, 9):
        return None
    return f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, and FP8 needs 8.9"
