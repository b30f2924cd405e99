"""What several processes on one host demand."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.errors import Issue


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet, whatever the number of processes."""
    if config.distributed.strategy == "fsdp":
        for key, reason in hindrances(config):
            yield Issue("distributed.strategy", f"fsdp and {key}: {reason}", f"auto or ddp, or another {key}")


def hindrances(config: TrainerConfig) -> Iterator[tuple[str, str]]:
    """What keeps a run from being divided among processes: the key, and why."""
    if config.repa.enabled and config.repa.stop.kind == "gradient_cosine":
        yield "repa.stop.kind", "gradient_cosine looks at the gradients of one process's images, and all must compute"
    if config.precision.compute == "fp16":
        yield "precision.compute", "whether an fp16 update overflows is not known to the owner of one weight alone"
    if config.optimizer.groups == "published":
        yield "optimizer.groups", "published makes matrices orthogonal that lie outside the blocks, too"
    if config.precision.fp8.enabled:
        yield "precision.fp8.enabled", "the scales of FP8 weights are not kept in slices"


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
