"""When alignment ends: at a fixed share of the run, along a line, or when the gradients of the two losses keep pointing
apart (arXiv 2505.16792 gives the reason).

Shapes: B samples, N image tokens, D model channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from trainer.config import TrainerConfig

PROBE_EVERY_STEPS = 50
PROBE_DECAY = 0.9
PROBE_PATIENCE = 3


class RepaSchedule:
    """Weight of the alignment loss per step, and the moment it ends for good."""

    def __init__(self, config: TrainerConfig) -> None:
        self._kind = config.repa.stop.kind
        self._probes = config.repa.probe or self._kind == "gradient_cosine"
        self._weight = config.repa.weight if config.repa.enabled else 0.0
        self._start_steps = config.repa.stop.start * config.steps
        self._end_steps = config.repa_end * config.steps
        self._cosine: float | None = None
        self._negative_checks = 0
        self._stopped = False

    def weight(self, step: int) -> float:
        """Weight of the update that follows `step` finished steps; 0 means that nothing needs to be computed."""
        if self._stopped or step >= self._end_steps:
            return 0.0
        if self._kind == "linear" and step > self._start_steps:
            return self._weight * (self._end_steps - step) / (self._end_steps - self._start_steps)
        return self._weight

    def wants_probe(self, step: int) -> bool:
        """Whether the gradients of both losses should be compared in the update that follows `step` finished steps."""
        return self._probes and step % PROBE_EVERY_STEPS == 0 and self.weight(step) > 0

    def observe(self, cosine: float) -> None:
        """Take in one gradient cosine; after 3 checks in a row with a negative average, alignment stops.

        Where something else ends it, nothing is taken in.
        """
        if self._kind != "gradient_cosine":
            return
        self._cosine = cosine if self._cosine is None else PROBE_DECAY * self._cosine + (1 - PROBE_DECAY) * cosine
        self._negative_checks = self._negative_checks + 1 if self._cosine < 0 else 0
        self._stopped = self._stopped or self._negative_checks >= PROBE_PATIENCE

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to remember."""
        return {"cosine": self._cosine, "negative_checks": self._negative_checks, "stopped": self._stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._cosine, self._negative_checks, self._stopped = (
            state["cosine"],
            state["negative_checks"],
            state["stopped"],
        )


def gradient_cosine(flow_loss: Tensor, repa_loss: Tensor, hidden_BND: Tensor) -> float:
    """Cosine between the gradients of the two losses at the aligned hidden state; both graphs stay usable."""
    flow_grad, repa_grad = (
        torch.autograd.grad(loss, hidden_BND, retain_graph=True)[0].flatten() for loss in (flow_loss, repa_loss)
    )
    return float(cosine_similarity(flow_grad, repa_grad, dim=0))
