"""NorMuon: Muon whose orthogonal update is evened out over the rows, which are the outputs of a linear map.

NorMuon: Making Muon more efficient and scalable (arXiv 2510.05491, algorithm 1). For an R x C matrix with gradient G:

    M = momentum M + (1 - momentum) G;  U = (1 - momentum) G + momentum M
    O = Newton-Schulz(U), singular values near 1
    v = beta2 v + (1 - beta2) mean over columns of O^2          (R,)
    N = O / (sqrt(v) + eps), row by row
    W = (1 - lr weight_decay) W - 0.2 lr sqrt(R C) N / |N|

The last line gives every update a root mean square of 0.2 lr per weight, which is what Muon's `match_rms_adamw` gives
to a matrix that is exactly orthogonal: so the learning rate is shared with AdamW. A bias correction of v would cancel
there. The paper writes plain momentum; U is Nesterov's, as in the code that its authors published and in Muon here, so
that the rows are all that distinguishes the two. Newton-Schulz is torch's own, with Muon's coefficients and steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, DEFAULT_NS_STEPS, EPS, _zeropower_via_newtonschulz

from trainer.optim.foreach_optimizer import ForeachOptimizer

SIZE = 0.2  # root mean square of an update at learning rate 1, that of AdamW in practice (arXiv 2502.16982)
LEAST = 1e-10  # added to divisors: a row, or a matrix, without gradient stays where it is


class NorMuon(ForeachOptimizer):
    """The rule of the module docstring. `params` are matrices or groups of them, each with its own `weight_decay`.

    State per parameter, on its device: `momentum_buffer` (M, as large as it) and `row_second_moment` (v, (R, 1)).
    Raises ValueError for a parameter that is no matrix.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        beta2: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "beta2": beta2, "weight_decay": weight_decay})
        shapes = [tuple(parameter.shape) for group in self.param_groups for parameter in group["params"]]
        if wrong := [shape for shape in shapes if len(shape) != 2]:
            raise ValueError(f"NorMuon moves matrices; a parameter of shape {wrong[0]} belongs to AdamW")

    def _first_state(self, parameter: Tensor) -> dict[str, Tensor]:
        return {
            "momentum_buffer": torch.zeros_like(parameter),
            "row_second_moment": torch.zeros_like(parameter[:, :1]),
        }

    def _update(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]
    ) -> None:
        momentum, lr = group["momentum"], group["lr"]
        buffers, rows = ([state[key] for state in states] for key in ("momentum_buffer", "row_second_moment"))
        torch._foreach_lerp_(buffers, gradients, 1.0 - momentum)
        ahead = torch._foreach_lerp(gradients, buffers, momentum)
        updates = [orthogonal(matrix).to(matrix.dtype) for matrix in ahead]

        torch._foreach_lerp_(rows, [update.square().mean(1, keepdim=True) for update in updates], 1.0 - group["beta2"])
        divisors = torch._foreach_sqrt(rows)
        torch._foreach_add_(divisors, LEAST)
        torch._foreach_div_(updates, divisors)

        norms = torch._foreach_norm(updates)
        torch._foreach_add_(norms, LEAST)
        torch._foreach_div_(updates, norms)
        torch._foreach_mul_(updates, [-SIZE * lr * math.sqrt(parameter.numel()) for parameter in parameters])
        torch._foreach_mul_(parameters, 1.0 - lr * group["weight_decay"])
        torch._foreach_add_(parameters, updates)


def orthogonal(matrix_RC: Tensor) -> Tensor:
    """The matrix with its singular values moved near 1 (0.5 to 1.5 unless they are tiny), in bfloat16: (R, C)."""
    coefficients = (DEFAULT_A, DEFAULT_B, DEFAULT_C)
    result: Tensor = _zeropower_via_newtonschulz(matrix_RC, coefficients, DEFAULT_NS_STEPS, EPS)
    return result
