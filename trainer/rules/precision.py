"""What number formats and the ways to save time and memory demand."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import TrainerConfig
from trainer.errors import Issue
from trainer.precision.plan import block_layers, plan


def rules(config: TrainerConfig) -> Iterator[Issue]:
    """Every demand that `config` does not meet."""
    fp8, compiled = config.precision.fp8, config.compile
    if fp8.enabled and config.precision.compute != "bf16":
        message = f"what FP8 leaves over is computed in bf16, and precision.compute is {config.precision.compute}"
        yield Issue("precision.fp8.enabled", message, "true with precision.compute: bf16, or false")
    if fp8.enabled and not any(entry.converts for entry in plan(block_layers(config), fp8)):
        message = f"no matrix of a model of width {config.model.width} would be converted"
        allowed = (
            "precision.fp8.filter: all with a model.width that is a multiple of 16, or precision.fp8.enabled: false"
        )
        yield Issue("precision.fp8.filter", message, allowed)
    if compiled.backend != "inductor" and compiled.mode != "default":
        yield Issue("compile.mode", f"{compiled.mode} belongs to inductor, not to {compiled.backend}", "default")


def remarks(config: TrainerConfig) -> Iterator[str]:
    """What is allowed but probably not meant."""
    precision, compiled, again = config.precision, config.compile, config.activation_checkpointing
    if not precision.fp8.enabled and precision.fp8.model_fields_set - {"enabled"}:
        yield "precision.fp8 is switched off: its other keys have no effect"
    if precision.fp8.enabled:
        found = [entry for entry in plan(block_layers(config), precision.fp8) if entry.converts]
        names = ", ".join(f"{entry.name.removeprefix('blocks.0.')} {entry.shape}" for entry in found)
        yield f"precision.fp8 converts of every block: {names}"
    if precision.fp8.enabled and precision.fp8.emulate:
        yield "precision.fp8.emulate: the numbers of FP8, slower than any other format"
    if precision.fp8.enabled and not precision.fp8.emulate and not compiled.enabled:
        yield "precision.fp8 without compile: casts and scales run one by one, which is slower than bf16"
    if not compiled.enabled and compiled.model_fields_set - {"enabled"}:
        yield "compile is switched off: its other keys have no effect"
    dead = {"every": "every_k", "budget": "budget"}
    for key in sorted(again.model_fields_set & dead.keys()):
        if again.kind != dead[key]:
            yield f"activation_checkpointing.{key} has no effect with kind {again.kind}"
    if again.kind == "budget" and again.budget == 1.0:
        yield "activation_checkpointing.budget 1.0 is everything: no block is computed again"
