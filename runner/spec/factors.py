"""In which respects two arms train differently: the factors of a comparison. Pure.

A technique counts as one factor however many keys it has. Keys that only say how a run is watched, scored or stored
are no factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from runner.spec.models import TRAINER, ResolvedArm

# Dotted prefix inside the trainer block -> what a person calls it; the longest prefix wins, None is no factor.
_NAMES: Mapping[str, str | None] = {
    "steps": "length of training",
    "batch": "batch size",
    "accumulation": "batch size",
    "log_every": None,
    "device": None,
    "data": "data",
    "data.flip": "mirroring",
    "data.workers": None,
    "model": "model size",
    "model.adaln": "shared adaLN",
    "model.maskdit": "MaskDiT",
    "streams": "conditions",
    "resolution": "resolution schedule",
    "objective": "objective",
    "optimizer": "optimizer",
    "optimizer.lr": "learning rate",
    "optimizer.final_lr_share": "learning rate",
    "optimizer.warmup_steps": "warm-up",
    "optimizer.weight_decay": "weight decay",
    "optimizer.clip": "gradient clipping",
    "tread": "TREAD",
    "repa": "REPA",
    "repa.probe": None,
    "perceptual.lpips": "LPIPS loss",
    "perceptual.dino": "DINO loss",
    "segmentation": "weights by part",
    "precision.compute": "number format",
    "precision.fp8": "FP8",
    "compile": "compilation",
    "activation_checkpointing": "activation checkpointing",
    "ema": "EMA",
    "reference_parity": "published protocol",
    "ema.published": "published protocol",
    "model.initial_weights": "published protocol",
    "objective.clamp": "published protocol",
    "optimizer.groups": "published protocol",
    "validation": None,
    "sampler": None,
    "indicators": None,
    "checkpoint": None,
}


def factors(base: ResolvedArm, arm: ResolvedArm) -> tuple[str, ...]:
    """Names of the factors in which `arm` differs from `base`, sorted; () when both train alike."""
    found = set(_environment_factors(base, arm))
    if base.kind != arm.kind:
        found.add("program")
    elif arm.kind == TRAINER:
        found.update(_trainer_factors(base.trainer or {}, arm.trainer or {}))
    else:
        found.update(_command_factors(base, arm))
    return tuple(sorted(found))


def _trainer_factors(base: Mapping[str, Any], arm: Mapping[str, Any]) -> Iterator[str]:
    off = {name for name in arm if _is_off(base.get(name)) and _is_off(arm[name])}
    one, other = dict(_flat(base, "")), dict(_flat(arm, ""))
    for key in {**one, **other}:
        if one.get(key) != other.get(key) and key.partition(".")[0] not in off and (name := _name(key)):
            yield name


def _is_off(block: Any) -> bool:
    return isinstance(block, Mapping) and block.get("enabled") is False


def _name(key: str) -> str | None:
    prefix = key
    while prefix not in _NAMES:
        prefix, _, _ = prefix.rpartition(".")
        if not prefix:
            return key
    return _NAMES[prefix]


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else name)
    else:
        yield key, value


def _command_factors(base: ResolvedArm, arm: ResolvedArm) -> Iterator[str]:
    one, other = base.command or (), arm.command or ()
    if base.steps != arm.steps:
        yield "length of training"
    if len(one) != len(other):
        yield "command"
        return
    for index, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        if mine != theirs:
            option = one[index - 1] if index and one[index - 1] == other[index - 1] else ""
            yield option if option.startswith("-") else f"argument {index}"


def _environment_factors(base: ResolvedArm, arm: ResolvedArm) -> Iterator[str]:
    for name in {**base.env, **arm.env}:
        if base.env.get(name) != arm.env.get(name):
            yield f"env {name}"
    if base.environment != arm.environment:
        yield "environment"
    if base.data != arm.data:
        yield "data"
