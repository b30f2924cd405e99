"""What one key of the configuration demands of another: errors that stop a run, and notes that a person should read.

A setting that can have no effect is an error when it contradicts another one, and a note when it is merely dead.
"""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import BestConfig, TrainerConfig, TreadConfig
from trainer.data.shapes import stream_shapes
from trainer.errors import Issue


def issues(config: TrainerConfig) -> list[Issue]:
    """Everything that makes a well-formed configuration unusable."""
    rules = (_model, _data, _streams, _objective, _optimizer, _tread, _repa, _sampler, _validation, _checkpoint)
    return [issue for rule in rules for issue in rule(config)]


def notes(config: TrainerConfig) -> list[str]:
    """What is allowed but probably not meant."""
    return list(_notes(config))


def is_validation_step(config: TrainerConfig, step: int) -> bool:
    """Whether `step` is a regular validation step: 0, a multiple of validation.every, or the last one."""
    return step % config.validation.every == 0 or step == config.steps


def _model(config: TrainerConfig) -> Iterator[Issue]:
    model = config.model
    if model.width % model.heads:
        yield Issue("model.heads", f"{model.heads} heads do not divide width {model.width}", "a divisor of model.width")
    if model.width % 4:
        yield Issue("model.width", f"{model.width} is no multiple of 4, as 2-D positions need", "a multiple of 4")
    if config.data.size % model.patch:
        yield Issue(
            "model.patch",
            f"patches of {model.patch} do not divide images of {config.data.size}",
            "a divisor of data.size",
        )


def _data(config: TrainerConfig) -> Iterator[Issue]:
    if config.data.source == "folder" and config.data.path is None:
        yield Issue("data.path", "source folder needs the path of a folder", "a path")
    if config.data.source == "procedural" and config.data.path is not None:
        yield Issue("data.path", "source procedural reads no folder", "null, or data.source: folder")


def _streams(config: TrainerConfig) -> Iterator[Issue]:
    shapes = stream_shapes(config)
    if not (shapes.text_width or shapes.cls_width or shapes.patch_width or shapes.pose_joints):
        yield Issue("streams", f"no condition is left for source {config.data.source}", "at least one stream at full")


def _objective(config: TrainerConfig) -> Iterator[Issue]:
    if config.objective.noise_scale != 1 and config.objective.shift != 1:
        yield Issue(
            "objective.noise_scale",
            "noise_scale and shift do the same to the signal-to-noise ratio; only one of them may differ from 1",
            "1 while objective.shift is not 1",
        )


def _optimizer(config: TrainerConfig) -> Iterator[Issue]:
    warmup = config.optimizer.warmup_steps
    if warmup > config.steps:
        yield Issue("optimizer.warmup_steps", f"{warmup} is more than steps, {config.steps}", f"0 to {config.steps}")


def _tread(config: TrainerConfig) -> Iterator[Issue]:
    if not config.tread.enabled:
        return
    depth = config.model.depth
    first, last = config.routed_blocks
    allowed = f"0 to {depth - 1}, or -{depth} to -1 from the end"
    for name, block in (("first", first), ("last", last)):
        if not 0 <= block < depth:
            yield Issue(f"tread.{name}", f"there is no such block in a model of depth {depth}", allowed)
    if first > last:
        yield Issue("tread.first", f"block {first} comes after tread.last, which is block {last}", allowed)
    if config.kept_tokens == config.tokens:
        yield Issue(
            "tread.ratio",
            f"all {config.tokens} tokens are kept after rounding up to keep_multiple {config.tread.keep_multiple}",
            "a ratio and a keep_multiple that route at least one token",
        )
    if config.routed_steps == 0:
        yield Issue("tread.dense_tail", "the dense tail is the whole run, so nothing is routed", "a share below 1")


def _repa(config: TrainerConfig) -> Iterator[Issue]:
    repa = config.repa
    if not repa.enabled:
        return
    if not stream_shapes(config).patch_width:
        yield Issue("repa.enabled", "alignment needs image patches as its teacher, and this run has none", "false")
    if config.repa_block >= config.model.depth:
        yield Issue(
            "repa.after_block",
            f"there is no block {config.repa_block} in a model of depth {config.model.depth}",
            f"0 to {config.model.depth - 1}",
        )
    if config.repa_end <= 0:
        yield Issue("repa.stop.end", "alignment would end before it starts", "a share above 0")
    if repa.stop.kind == "linear" and repa.stop.start >= config.repa_end:
        yield Issue("repa.stop.start", "the line must start before it ends", f"a share below {config.repa_end}")
    first, last = config.routed_blocks
    if repa.projector == "conv" and config.tread.enabled and first <= config.repa_block <= last:
        yield Issue(
            "repa.projector",
            f"a convolution needs all tokens of the grid, but block {config.repa_block} is routed",
            ("mlp", "linear"),
        )


def _sampler(config: TrainerConfig) -> Iterator[Issue]:
    native = config.sampler.native
    if native.kind == "self_guidance" and not config.tread.enabled:
        yield Issue(
            "sampler.native.kind",
            "self_guidance compares routed and dense passes, and this arm does not train with routing",
            ("dense", "nested_cfg"),
        )
    for name in ("scale", "text", "dino", "pose"):
        if getattr(native, name) is not None and name not in native.scales:
            yield Issue(
                f"sampler.native.{name}",
                f"has no meaning for {native.kind}",
                f"null; {native.kind} uses {', '.join(native.scales) or 'no scale'}",
            )


def _validation(config: TrainerConfig) -> Iterator[Issue]:
    samples, held_out = config.validation.samples, config.data.held_out
    if config.data.source == "procedural" and samples > held_out:
        yield Issue("validation.samples", f"{samples} is more than data.held_out, {held_out}", f"1 to {held_out}")


def _checkpoint(config: TrainerConfig) -> Iterator[Issue]:
    half_lives = config.ema.half_lives
    if len(set(half_lives)) < len(half_lives):
        yield Issue("ema.half_lives", "a half-life is named twice", "different shares of the run")
    for index, step in enumerate(config.checkpoint.keep.milestones):
        if step > config.steps or not is_validation_step(config, step):
            yield Issue(
                f"checkpoint.keep.milestones.{index}",
                f"no checkpoint is written at step {step}",
                f"multiples of validation.every ({config.validation.every}), or steps ({config.steps})",
            )


def _notes(config: TrainerConfig) -> Iterator[str]:
    if config.validation.every > config.steps:
        yield f"validation.every {config.validation.every} is above steps: validated at step 0 and at the end only"
    if not config.tread.enabled and config.tread != TreadConfig():
        yield "tread is switched off: its other keys have no effect"
    if not config.repa.enabled and config.repa.model_fields_set - {"enabled"}:
        yield "repa is switched off: its other keys have no effect"
    if config.repa.enabled and config.repa.samples == "all":
        yield "repa.samples all: samples that see the patch features as a condition can copy the answer"
    if config.optimizer.name == "muon" and config.optimizer.clip is not None:
        yield "optimizer.clip does not change the size of a Muon step, which is normalised anyway"
    if config.data.source == "folder":
        yield "data.source folder: data.samples and data.held_out have no effect, and captions are the only condition"
    yield from _best_note(config, config.checkpoint.keep.best)


def _best_note(config: TrainerConfig, best: BestConfig | None) -> Iterator[str]:
    if best is not None and not best.metric.startswith(("val/", "val_raw/")):
        yield f"checkpoint.keep.best.metric {best.metric} is not written by regular validations: no best is kept"
