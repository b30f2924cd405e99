"""Leading indicators of trouble in the optimizer."""

from __future__ import annotations

from trainer.config.base import Block, Count


class IndicatorsConfig(Block):
    """Leading indicators of trouble in the optimizer, written beside the training metrics; they change no result.

    `every` counts the optimizer steps between them; they come with the next line that `log_every` writes.
    """

    enabled: bool = True
    every: Count = 10
