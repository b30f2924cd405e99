"""What is allowed but probably not meant."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import BestConfig, TrainerConfig, TreadConfig

LARGE_PATCH = 16  # JiT (arXiv 2511.13720) finds noise and velocity out of reach from here on


def remarks(config: TrainerConfig) -> Iterator[str]:
    """What a person should read before the run starts."""
    if config.validation.every > config.steps:
        yield f"validation.every {config.validation.every} is above steps: validated at step 0 and at the end only"
    if config.objective.prediction == "v" and config.model.patch >= LARGE_PATCH:
        yield f"objective.prediction v at patch {config.model.patch}: velocities of large patches are hardly learned"
    if not config.tread.enabled and config.tread != TreadConfig():
        yield "tread is switched off: its other keys have no effect"
    if not config.repa.enabled and config.repa.model_fields_set - {"enabled"}:
        yield "repa is switched off: its other keys have no effect"
    if config.repa.enabled and config.repa.samples == "all":
        yield "repa.samples all: samples that see the patch features as a condition can copy the answer"
    if config.optimizer.is_orthogonal and config.optimizer.clip is not None:
        yield "optimizer.clip does not change the size of a Muon step, which is normalised anyway"
    if config.data.source == "folder":
        yield "data.source folder: data.samples and data.held_out have no effect, and captions are the only condition"
    yield from _best_note(config, config.checkpoint.keep.best)


def _best_note(config: TrainerConfig, best: BestConfig | None) -> Iterator[str]:
    if best is not None and not best.metric.startswith(("val/", "val_raw/")):
        yield f"checkpoint.keep.best.metric {best.metric} is not written by regular validations: no best is kept"
