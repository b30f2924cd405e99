"""What the source of images demands."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.errors import Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    if config.data.source == "folder" and config.data.path is None:
        yield Issue("data.path", "source folder needs the path of a folder", "a path")
    if config.data.source == "procedural" and config.data.path is not None:
        yield Issue("data.path", "source procedural reads no folder", "null, or data.source: folder")
