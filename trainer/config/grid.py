"""Contact sheets of a run as it learns."""

from __future__ import annotations

from trainer.config.base import Block, Count


class GridConfig(Block):
    """A contact sheet every `every` steps and at the end, with `samples` held-out images; null: none.

    It shows what the validation of that step has drawn anyway. Only native guidance is drawn for it in addition.
    """

    every: Count | None = None
    samples: Count = 4
