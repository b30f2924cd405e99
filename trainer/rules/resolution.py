"""What smaller images at first demand."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.errors import Issue
from trainer.rules import data, model, perceptual, tread


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet. What images of any size must fulfil, those of every stage must."""
    began, smaller = 0, 0
    for index, (stage, (end, size)) in enumerate(zip(config.resolution, config.stages, strict=True)):
        if not began < end < config.steps:
            message = f"the stage would end after step {end}, and the one before it ends after step {began}"
            allowed = f"shares that grow, of at least one of the {config.steps} steps each, the last stage too"
            yield Issue(f"resolution.{index}.until", message, allowed)
        if not smaller < size < config.data.size:
            message = f"{stage.size} is not between the size before it, {smaller}, and data.size, {config.data.size}"
            yield Issue(f"resolution.{index}.size", message, "sizes that grow, all below data.size")
        else:
            yield from _at(config, index)
        began, smaller = end, size


def remarks(config: TrainerConfig) -> Iterator[str]:
    """What is allowed but probably not meant."""
    if not config.resolution or not config.repa.enabled:
        return
    last = config.resolution[-1].until
    if config.repa_end > last:
        yield (
            f"repa.stop.end {config.repa_end:g} is after resolution reaches {config.data.size} pixels, at {last:g}: "
            "alignment goes on there, with features stretched over more tokens"
        )


def _at(config: TrainerConfig, index: int) -> Iterator[Issue]:
    """What is wrong with one size and not with `data.size`."""
    size = config.resolution[index].size
    smaller = config.at_size(size)
    for part in (model, data, tread, perceptual):
        known = {issue.path for issue in part.rules(config)}
        for issue in part.rules(smaller):
            if issue.path not in known:
                message = f"at {size} pixels: {issue.path}: {issue.message}"
                yield Issue(f"resolution.{index}.size", message, "another size of the stage")
