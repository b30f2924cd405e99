"""Which checkpoints survive."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import Block, Count


class BestConfig(Block):
    """The metric whose best step keeps its checkpoint; a full name with its protocol prefix, such as val/recon_rmse."""

    metric: Annotated[str, Field(min_length=1)]
    direction: Literal["min", "max"] = "min"


class KeepConfig(Block):
    """Which checkpoints survive: the newest `last`, the best, and the steps in `milestones`."""

    last: Count = 2
    best: BestConfig | None = None
    milestones: Annotated[tuple[Count, ...], Field(strict=False)] = ()


class CheckpointConfig(Block):
    """What is kept of the checkpoints that every regular validation writes."""

    keep: KeepConfig = KeepConfig()
