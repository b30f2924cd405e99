"""Where training images come from."""

from __future__ import annotations

from typing import Literal

from trainer.config.base import Block, Count, Share


class DataConfig(Block):
    """Where images come from. `size` is the side of the square image in pixels.

    `samples` and `held_out` count procedural training and validation images; `path` is the folder of source `folder`.
    More than `max_rejected_share` of unreadable files ends the run.
    """

    source: Literal["procedural", "folder"] = "procedural"
    size: Count = 32
    path: str | None = None
    samples: Count = 4096
    held_out: Count = 48
    max_rejected_share: Share = 0.05
