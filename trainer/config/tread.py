"""Token routing."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.config.base import Block, Count, Share


class TreadConfig(Block):
    """Token routing: blocks `first` to `last` (0-based, inclusive, negative counts from the end) see fewer tokens.

    `ratio` of the tokens skips those blocks; the number kept is rounded up to `keep_multiple`. In the last `dense_tail`
    share of the run all tokens go through all blocks.
    """

    enabled: bool = False
    first: int = 1
    last: int = -2
    ratio: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    keep_multiple: Count = 1
    dense_tail: Share = 0.0
