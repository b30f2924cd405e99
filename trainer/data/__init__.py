"""Where training images come from: procedural portraits, a folder of files, shards. Importing it loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.config import TrainerConfig
    from trainer.data.sample import Source


def open_source(config: TrainerConfig, seed: int = 0) -> Source:
    """Open the images that `config.data` names, split into training, held-out and probe ids.

    The images and the split do not depend on `seed`: runs that differ in nothing else see the same images, in an order
    that `Batches` draws from the seed. Raises DataError if there is nothing to train on or too much had to be rejected.
    """
    if config.data.source == "folder":
        from trainer.data.folder import FolderSource

        return FolderSource(config)
    if config.data.source == "shards":
        from trainer.data.shards import ShardSource

        return ShardSource(config)
    from trainer.data.procedural import ProceduralSource

    return ProceduralSource(config)
