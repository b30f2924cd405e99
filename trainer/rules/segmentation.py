"""What weights of pixels demand."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.data.parts import SOURCE_LABELS
from trainer.errors import Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    segmentation, source = config.segmentation, config.data.source
    if not segmentation.enabled:
        return
    if source not in SOURCE_LABELS:
        yield Issue(
            "segmentation.enabled",
            f"source {source} has no part maps that say where a face is",
            f"false, or data.source: {' or '.join(SOURCE_LABELS)}",
        )
    if segmentation.normalize and segmentation.background == segmentation.face == segmentation.other:
        yield Issue(
            "segmentation",
            f"three weights of {segmentation.face:g} are no weights once they are divided by their mean",
            "weights that differ, or enabled: false",
        )
