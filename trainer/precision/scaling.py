"""Loss scaling for fp16, whose smallest numbers are larger than many gradients (arXiv 1710.03740).

The loss is multiplied by a power of two before the backward pass and the gradients are divided by it afterwards, which
is exact. A step whose gradients overflow is skipped and the scale halves; it doubles after 2,000 good steps. A skipped
step still counts as a step: its batch is gone, the rate goes on by step, and averages take in the weights, which have
stood still. The optimizer makes no update of it. In fp32 and bf16 all of this does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import PrecisionConfig


class _Judged:
    """What torch's scaler takes for an optimizer: it gets to step only if every gradient is finite."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.param_groups = [{"params": list(parameters)}]

    def step(self) -> bool:
        return True


class LossScaling:
    """Scales losses, unscales gradients, and says whether a step may be made."""

    def __init__(self, precision: PrecisionConfig, device: torch.device, parameters: Iterable[nn.Parameter]) -> None:
        self.is_on = precision.compute == "fp16"
        self.skipped_steps = 0
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.is_on)
        self._judged: Any = _Judged(parameters)  # torch declares an Optimizer, and uses no more of it than this has
        self._one = torch.ones((), device=device)
        self._scale = 1.0

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss times the scale; the loss itself where nothing is scaled."""
        return self._scaler.scale(loss)

    def unscaled(self, gradient: Tensor) -> Tensor:
        """A copy of one gradient without the scale, for those who look before `unscale`."""
        return gradient / self.scaled(self._one) if self.is_on else gradient.clone()

    def unscale(self) -> None:
        """Divide all gradients by the scale: after the last micro-batch, before anybody measures or clips them."""
        self._scaler.unscale_(self._judged)

    def accepts(self) -> bool:
        """Whether the update may be made, after `unscale`; adapts the scale. In fp16 it waits for the device."""
        if not self.is_on:
            return True
        is_finite = self._scaler.step(self._judged) is True
        self._scaler.update()
        self._scale = self._scaler.get_scale()
        self.skipped_steps += not is_finite
        return is_finite

    def metrics(self) -> dict[str, float]:
        """Steps skipped since the run began, and the scale of the next step; nothing where nothing is scaled."""
        if not self.is_on:
            return {}
        return {"train/skipped_steps": float(self.skipped_steps), "train/loss_scale": self._scale}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to remember; empty where nothing is scaled."""
        return {**self._scaler.state_dict(), "skipped_steps": self.skipped_steps} if self.is_on else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave. An empty state, as of a run in another format, starts afresh."""
        if self.is_on and state:
            self.skipped_steps = state["skipped_steps"]
            self._scaler.load_state_dict({name: value for name, value in state.items() if name != "skipped_steps"})
