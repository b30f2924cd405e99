"""Steps of a block whose gradients are written by hand, because the composed ones do work that nobody needs.

What they save on a CPU: products with 1, and sums of gradients that a matrix product can add up by itself.

Shapes: B samples, N tokens, D channels, M outputs of a map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ScaleShift(torch.autograd.Function):
    """x (1 + scale) + shift, the vectors per sample."""

    @staticmethod
    def forward(ctx: Any, x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
        """(B, N, D)."""
        factor_B1D = 1 + scale_B1D
        ctx.save_for_backward(x_BND, factor_B1D)
        return torch.addcmul(shift_B1D, x_BND, factor_B1D)

    @staticmethod
    def backward(ctx: Any, grad_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, shift and scale."""
        x_BND, factor_B1D = ctx.saved_tensors
        shift_B1D = grad_BND.sum(dim=1, keepdim=True)
        return grad_BND * factor_B1D, shift_B1D, (grad_BND * x_BND).sum(dim=1, keepdim=True)


class Gate(torch.autograd.Function):
    """x + gate part, the gate a vector per sample."""

    @staticmethod
    def forward(ctx: Any, x_BND: Tensor, gate_B1D: Tensor, part_BND: Tensor) -> Tensor:
        """(B, N, D)."""
        ctx.save_for_backward(gate_B1D, part_BND)
        return torch.addcmul(x_BND, gate_B1D, part_BND)

    @staticmethod
    def backward(ctx: Any, grad_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, gate and part."""
        gate_B1D, part_BND = ctx.saved_tensors
        return grad_BND, (grad_BND * part_BND).sum(dim=1, keepdim=True), grad_BND * gate_B1D


class Projections(torch.autograd.Function):
    """Several linear maps without bias of one input; their gradients of the input are added up by the products."""

    @staticmethod
    def forward(ctx: Any, x_BND: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """(B, N, M) for every weight (M, D)."""
        ctx.save_for_backward(x_BND, *weights)
        return tuple(torch.nn.functional.linear(x_BND, weight) for weight in weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and of every weight."""
        x_BND, *weights = ctx.saved_tensors
        rows = [grad.flatten(0, -2) for grad in grads]
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = rows[0] @ weights[0]
            for grad, weight in zip(rows[1:], weights[1:], strict=True):
                of_x.addmm_(grad, weight)
            of_x = of_x.view_as(x_BND)
        flat = x_BND.flatten(0, -2)
        return of_x, *(grad.T @ flat for grad in rows)


def project(x_BND: Tensor, *maps: nn.Module) -> tuple[Tensor, ...]:
    """Every map of x; together where they are plain matrices on a CPU in full precision, else one after the other."""
    is_plain = all(type(each) is nn.Linear and each.bias is None for each in maps)
    if is_plain and x_BND.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        return Projections.apply(x_BND, *(each.weight for each in maps))
    return tuple(each(x_BND) for each in maps)
