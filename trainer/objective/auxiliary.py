"""What a loss beside flow matching has to offer, so that the optimizer step can treat all of them alike.

A loss covers some of the samples of an optimizer step. Which ones is known before the first micro-batch, because draws
are counter-based; their sum is divided by their number in the whole step, so micro-batches change no weight.

Shapes: B samples of a micro-batch, S covered ones among them, E samples of the whole optimizer step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from trainer.data.sample import Batch
from trainer.model.nanodit import Output
from trainer.model.tread import Route
from trainer.objective.flow import Noisy


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One micro-batch after the forward pass: data on the host, images and noise on the device, route, prediction."""

    batch: Batch
    noisy: Noisy
    route: Route | None
    output: Output


class Auxiliary(Protocol):
    """One auxiliary loss. `name` makes its metric, train/<name>_loss, and its event, <name>_off.

    `notes` say what a reader should know of it.
    """

    name: str
    notes: tuple[str, ...]

    @property
    def projector(self) -> nn.Module | None:
        """What it trains besides the model, if anything."""
        ...

    @property
    def tap(self) -> int | None:
        """The block whose output it needs, if any."""
        ...

    def weight(self, step: int) -> float:
        """Weight in the update that follows `step` finished steps; 0 means that nothing is computed."""
        ...

    def covers(self, t: Tensor, present: Mapping[str, Tensor]) -> Tensor:
        """Which samples it covers, given their times and present streams: booleans like `t`, on the CPU."""
        ...

    def loss(self, micro: MicroBatch, covered_S: Tensor) -> Tensor:
        """Sum of the losses of the covered samples; `covered_S` holds their indices on the CPU, at least one."""
        ...

    def watch(self, step: int, flow: Tensor, own: Tensor, micro: MicroBatch) -> None:
        """Look at both losses of a micro-batch before the gradients are computed; changes nothing."""
        ...

    def updated(self, step: int) -> dict[str, float]:
        """Take note that the update after `step` was made; metrics beside the loss, by full name."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to remember."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        ...
