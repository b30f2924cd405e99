"""What several processes on one host demand."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.errors import Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet, whatever the number of processes."""
    watches_gradients = config.repa.enabled and config.repa.stop.kind == "gradient_cosine"
    if config.distributed.strategy == "fsdp" and watches_gradients:
        yield Issue(
            "distributed.strategy",
            "fsdp cannot look at the gradients of one process's images, as repa.stop.kind gradient_cosine asks",
            "auto or ddp, or another repa.stop.kind",
        )


def shared_by(config: TrainerConfig, processes: int) -> Iterator[Issue]:
    """What keeps `config` from being trained by so many processes: each needs as many micro-batches as the others."""
    if config.accumulation % processes:
        multiple = -(-config.accumulation // processes) * processes
        smaller = config.samples_per_step % multiple == 0
        example = f"; for example batch {config.samples_per_step // multiple} x accumulation {multiple}"
        yield Issue(
            "accumulation",
            f"{config.accumulation} micro-batches per optimizer step cannot be dealt to {processes} processes evenly "
            "(batch is the micro-batch of one process, batch x accumulation the images of one step)",
            f"a multiple of {processes}{example if smaller else ''}",
        )
