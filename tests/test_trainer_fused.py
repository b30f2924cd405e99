"""Gradients that are written by hand are those of the operation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from trainer.model.fused import Gate, Projections, ScaleShift, project


def drawn(*shape: int) -> Tensor:
    source = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=source, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("operation", "composed", "inputs"),
    [
        (ScaleShift.apply, lambda x, shift, scale: x * (1 + scale) + shift, ((2, 3, 4), (2, 1, 4), (2, 1, 4))),
        (Gate.apply, lambda x, gate, part: x + gate * part, ((2, 3, 4), (2, 1, 4), (2, 3, 4))),
        (Projections.apply, lambda x, a, b: (linear(x, a), linear(x, b)), ((2, 3, 4), (5, 4), (6, 4))),
    ],
    ids=["scale and shift", "gate", "projections"],
)
def test_value_and_gradients_are_right(operation, composed, inputs) -> None:  # type: ignore[no-untyped-def]
    values = tuple(drawn(*shape) for shape in inputs)
    torch.testing.assert_close(operation(*values), composed(*values))
    assert torch.autograd.gradcheck(operation, values)


def test_an_input_that_needs_no_gradient_gets_none() -> None:
    x, weight = drawn(2, 3, 4).detach(), drawn(5, 4)
    (y,) = Projections.apply(x, weight)
    y.square().sum().backward()
    assert x.grad is None
    assert weight.grad is not None


def test_maps_that_are_more_than_a_matrix_compute_by_themselves() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    x, plain, doubled = torch.randn(2, 3, 4), nn.Linear(4, 5, bias=False), Doubled(4, 5, bias=False)
    one, two = project(x, plain, doubled)
    torch.testing.assert_close((one, two), (plain(x), doubled(x)))
    assert type(one.grad_fn).__name__ != "ProjectionsBackward"
    assert type(project(x, plain)[0].grad_fn).__name__ == "ProjectionsBackward"
    with torch.autocast("cpu", torch.bfloat16):
        assert project(x, plain)[0].dtype == torch.bfloat16
