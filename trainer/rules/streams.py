"""What the conditions demand."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.data.shapes import stream_shapes
from trainer.errors import Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    if config.streams.cls == "pooled":
        yield Issue("streams.cls", "the image CLS is one vector already: there is nothing to pool", ("full", "off"))
    shapes = stream_shapes(config)
    if not (shapes.text_width or shapes.cls_width or shapes.patch_width or shapes.pose_joints):
        yield Issue(
            "streams", f"no condition is left for source {config.data.source}", "at least one stream at full or pooled"
        )
