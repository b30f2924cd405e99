"""What update rules have in common that move all tensors of a group at once, by torch's `_foreach` functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer


class ForeachOptimizer(Optimizer, ABC):
    """An optimizer whose rule takes lists of tensors. Nothing in `step` waits for the device."""

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient. There is no closure here: it must be None."""
        assert closure is None, "gradients are computed before step()"
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            gradients = [parameter.grad for parameter in parameters]
            if parameters:
                self._update(parameters, gradients, [self._state_of(parameter) for parameter in parameters], group)
        return None

    @abstractmethod
    def _first_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """What the rule remembers of a parameter before its first update, on the device of the parameter."""

    @abstractmethod
    def _update(
        self, parameters: list[Tensor], gradients: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]
    ) -> None:
        """One update of the parameters of one group that have gradients, in place; their states with them."""

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state.update(self._first_state(parameter))
        return state
