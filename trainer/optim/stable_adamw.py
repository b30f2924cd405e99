"""StableAdamW: AdamW whose step shrinks, tensor by tensor, when a gradient surprises the second moment.

Stable and low-precision training for large-scale vision-language models (arXiv 2304.13013, section 3.4, algorithm 2).
For a tensor with gradient g after t updates, this one included:

    m   = beta1 m + (1 - beta1) g          m^ = m / (1 - beta1^t)
    v   = beta2 v + (1 - beta2) g^2        v^ = v / (1 - beta2^t)
    RMS = sqrt(mean(g^2 / max(v^, eps^2)))
    w   = (1 - lr weight_decay) w - lr / max(1, RMS) * m^ / (sqrt(v^) + eps)

RMS takes v^ after g has entered it. The paper corrects the bias by decay rates that change with t; m^ and v^ are the
same numbers, and m and v are kept as AdamW keeps them. Only the step is clipped, not the decay of the weights, as in
code that an author published; so where RMS <= 1 this is AdamW with the same eps (1e-8 here as for AdamW, 1e-6 there).

Shapes: P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from trainer.optim.foreach_optimizer import ForeachOptimizer


class StableAdamW(ForeachOptimizer):
    """The rule of the module docstring. `params` are parameters or groups of them, each with its own `weight_decay`.

    State per parameter, all on its device: `exp_avg` (m), `exp_avg_sq` (v), `step` (t, a scalar).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        # `capturable` makes torch load the counters back to the device.
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "capturable": True}
        super().__init__(params, defaults)

    def _first_state(self, parameter: Tensor) -> dict[str, Tensor]:
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    def _update(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]
    ) -> None:
        (beta1, beta2), eps, lr = group["betas"], group["eps"], group["lr"]
        steps, first, second = ([state[key] for state in states] for key in ("step", "exp_avg", "exp_avg_sq"))
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(first, gradients, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1.0 - beta2)

        updates_P = torch.stack(steps).double()  # 1 - beta^t cancels digits that float32 has not got
        corrected = torch._foreach_div(second, (1.0 - beta2**updates_P).float().unbind())
        rms_P = _rms(gradients, corrected, eps)
        scale_P = lr / (1.0 - beta1**updates_P) / rms_P.clamp(min=1.0)

        torch._foreach_sqrt_(corrected)
        torch._foreach_add_(corrected, eps)
        steps_taken = torch._foreach_div(first, corrected)
        torch._foreach_mul_(steps_taken, (-scale_P).float().unbind())
        torch._foreach_mul_(parameters, 1.0 - lr * group["weight_decay"])
        torch._foreach_add_(parameters, steps_taken)


def _rms(gradients: list[Tensor], corrected: tuple[Tensor, ...], eps: float) -> Tensor:
    """sqrt(mean(g^2 / max(v^, eps^2))) of every tensor: (P,)."""
    surprise = torch._foreach_clamp_min(corrected, eps**2)
    torch._foreach_sqrt_(surprise)
    torch._foreach_reciprocal_(surprise)
    torch._foreach_mul_(surprise, gradients)
    norms = torch._foreach_norm(surprise)
    return torch.stack(torch._foreach_div(norms, [math.sqrt(gradient.numel()) for gradient in gradients]))
