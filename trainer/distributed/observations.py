"""Numbers that a loss reads off one micro-batch and decides by: all processes must decide by the same one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torch import Tensor

from trainer.distributed.team import Team


@runtime_checkable
class Observing(Protocol):
    """An auxiliary loss that looks, in some steps, at the first micro-batch that holds a sample it covers."""

    def is_observing(self, step: int) -> bool:
        """Whether it looks in the update that follows `step` finished steps; the same in every process."""
        ...

    def observed(self, step: int) -> float | None:
        """What this process saw in that update, if anything."""
        ...

    def take_observation(self, step: int, value: float) -> None:
        """Put in the place of what this process saw."""
        ...


class Covering(Protocol):
    """A loss, and which samples of the effective batch it covers."""

    @property
    def loss(self) -> object:
        """The loss."""
        ...

    @property
    def covered_E(self) -> Tensor:
        """Booleans over the effective batch, at least one of them true."""
        ...


def share_observations(team: Team, covers: Iterable[Covering], step: int, batch: int) -> None:
    """Every process takes what the one saw that had the first covered sample, as one process alone would have."""
    if team.size == 1:
        return
    for cover in covers:
        if isinstance(cover.loss, Observing) and cover.loss.is_observing(step):
            first_micro_batch = int(cover.covered_E.nonzero()[0]) // batch
            value = team.observation(cover.loss.observed(step), first_micro_batch % team.size)
            assert value is not None, "its owner has looked"
            cover.loss.take_observation(step, value)
