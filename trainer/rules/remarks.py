"""What is allowed but probably not meant."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import (
    AdaLnConfig,
    BestConfig,
    MaskDitConfig,
    ModelConfig,
    RepaConfig,
    SegmentationConfig,
    TrainerConfig,
    TreadConfig,
)
from trainer.data.named_set import remarks_on_set, shards_of
from trainer.data.shapes import SHARD_TOKENS, SHARD_WIDTH
from trainer.errors import DataError
from trainer.size import saved_by_sharing

LARGE_PATCH = 16  # JiT (arXiv 2511.13720) finds noise and velocity out of reach from here on


def remarks(config: TrainerConfig) -> Iterator[str]:
    """What a person should read before the run starts."""
    if config.validation.every > config.steps:
        yield f"validation.every {config.validation.every} is above steps: validated at step 0 and at the end only"
    if config.objective.prediction == "v" and config.model.patch >= LARGE_PATCH:
        yield f"objective.prediction v at patch {config.model.patch}: velocities of large patches are hardly learned"
    if not config.tread.enabled and config.tread != TreadConfig():
        yield "tread is switched off: its other keys have no effect"
    if not config.repa.enabled and _own_settings(config.repa) != RepaConfig():
        yield "repa is switched off: its other keys have no effect"
    if config.repa.enabled and config.repa.samples == "all":
        yield "repa.samples all: samples that see the patch features as a condition can copy the answer"
    if config.repa.enabled and config.repa.probe and config.repa.stop.kind == "gradient_cosine":
        yield "repa.probe has no effect: repa.stop.kind gradient_cosine measures the gradients anyway"
    yield from _perceptual_notes(config)
    if config.optimizer.is_orthogonal and config.optimizer.clip is not None:
        yield "optimizer.clip does not change the size of a Muon step, which is normalised anyway"
    if config.data.source == "folder":
        yield "data.source folder: data.samples and data.held_out have no effect, and captions are the only condition"
    yield from _shard_notes(config)
    yield from _model_notes(config.model, config)
    if config.reference_parity:
        yield "reference_parity: reproduces the published protocol; not comparable with runs that do not"
    yield from _interval_note(config)
    yield from _best_note(config, config.checkpoint.keep.best)


def _own_settings(repa: RepaConfig) -> RepaConfig:
    """Without what a resolved configuration fills in by itself."""
    return repa.model_copy(update={"after_block": None, "stop": repa.stop.model_copy(update={"end": None})})


def _shard_notes(config: TrainerConfig) -> Iterator[str]:
    if config.data.source != "shards":
        return
    yield "data.source shards: data.samples and data.held_out have no effect"
    yield from remarks_on_set(config)
    if _are_absent(config):
        yield (
            f"data.path {config.data.path} is not on this machine: sizes assume {SHARD_WIDTH} features per stream and "
            f"{SHARD_TOKENS} tokens of text, and buckets are not checked"
        )
    if config.data.flip and config.streams.text != "off":
        yield "data.flip: of shards only images whose caption has no word left or right are mirrored"


def _are_absent(config: TrainerConfig) -> bool:
    try:
        return shards_of(config) is None
    except DataError:
        return False


def _model_notes(model: ModelConfig, config: TrainerConfig) -> Iterator[str]:
    if model.adaln.kind == "shared":
        saved = saved_by_sharing(config)
        yield f"shared adaLN {'saves' if saved > 0 else 'costs'} {abs(saved):,} parameters"
    elif model.adaln != AdaLnConfig():
        yield "model.adaln.kind per_block: model.adaln.rank has no effect"
    if not model.maskdit.enabled and model.maskdit != MaskDitConfig():
        yield "model.maskdit is switched off: its other keys have no effect"
    if model.null_joints and config.streams.pose == "off":
        yield "streams.pose off: model.null_joints has no effect"
    if not model.gates:
        yield "model.gates false: blocks do not start as identities"


def _perceptual_notes(config: TrainerConfig) -> Iterator[str]:
    for name, loss in (("lpips", config.perceptual.lpips), ("dino", config.perceptual.dino)):
        if loss.enabled and loss.backbone == "random":
            yield f"perceptual.{name}.backbone random: its network has never seen an image"
        if not loss.enabled and loss != type(loss)():
            yield f"perceptual.{name} is switched off: its other keys have no effect"
    if not config.segmentation.enabled and config.segmentation != SegmentationConfig():
        yield "segmentation is switched off: its other keys have no effect"


def _best_note(config: TrainerConfig, best: BestConfig | None) -> Iterator[str]:
    if best is not None and not best.metric.startswith(("val/", "val_raw/")):
        yield f"checkpoint.keep.best.metric {best.metric} is not written by regular validations: no best is kept"


def _interval_note(config: TrainerConfig) -> Iterator[str]:
    """Guidance between two times of the sampler's grid is guidance nowhere."""
    interval, steps, shift = config.sampler.native.interval, config.validation.sampler_steps, config.objective.shift
    if interval is None:
        return
    even = [1.0 - index / steps for index in range(steps)]
    times = [shift * t / (1 + (shift - 1) * t) for t in even]
    if not any(interval[0] <= t <= interval[1] for t in times):
        grid = ", ".join(f"{t:.3g}" for t in times)
        yield f"sampler.native.interval {list(interval)} holds no time of the sampler, so nothing is guided: {grid}"
