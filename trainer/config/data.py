"""Where training images come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import Block, Count, Share

BATCHES_AHEAD = 2
"""Micro-batches that every worker process has ready or in work."""


class DataConfig(Block):
    """Where images come from. `size` is the side of the square image in pixels; of shards, that of the square bucket.

    `samples` and `held_out` count procedural training and validation images; `path` is the folder of sources `folder`
    and `shards`. Shards may also be elsewhere: `https://host/folder`, `http://127.0.0.1:port/folder`, or
    `hub:OWNER/NAME[@REVISION]`; then they are copied to the cache of this machine when a run first opens them, and
    nothing is streamed. `index` is the SHA-256 of the index.json that the set must have; null is any, and of a set
    elsewhere the one that is there when the configuration is read. More than `max_rejected_share` of unusable files or
    samples ends the run. With probability `flip` a training image is mirrored. `workers` processes load ahead, 0 none
    (null: 2 for shards, else 0); they change no bit.
    """

    source: Literal["procedural", "folder", "shards"] = "procedural"
    size: Count = 32
    path: str | None = None
    index: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    samples: Count = 4096
    held_out: Count = 48
    max_rejected_share: Share = 0.05
    flip: Share = 0.0
    workers: Annotated[int, Field(ge=0, le=64)] | None = None

    @property
    def worker_processes(self) -> int:
        """`workers`, or what it is when it is not given."""
        if self.workers is not None:
            return self.workers
        return 2 if self.source == "shards" else 0
