"""What scoring the pose demands."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.data.shapes import stream_shapes
from trainer.errors import Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    if config.validation.pose.detector is None:
        return
    if not stream_shapes(config).pose_joints:
        yield Issue("validation.pose.detector", "there is no pose condition to compare with in this run", "null")
    if config.validation.samples < 2:
        yield Issue("validation.pose.detector", "its floor needs the pose of another sample", "null, or more samples")
