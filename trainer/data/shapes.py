"""Widths of the condition streams, known before any image is opened and without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.config import TrainerConfig
from trainer.data.artefacts import STREAM_MEMBERS
from trainer.data.named_set import shards_of
from trainer.data.shard_set import FEATURE_CELL, ShardSet
from trainer.errors import DataError

TEXT_WIDTH = 64
CLS_WIDTH = 64
PATCH_WIDTH = 64
POSE_JOINTS = 133
PORTRAIT_WORDS = 16
FOLDER_WORDS = 64
SHARD_WIDTH = 1024
SHARD_TOKENS = 512
"""Features of every stream of the published shards, and the most tokens that a caption in shards may have."""


@dataclass(frozen=True, slots=True)
class StreamShapes:
    """Width of every condition stream in features; 0 means that the stream is off. `text_length` counts tokens."""

    text_width: int = 0
    text_length: int = 0
    cls_width: int = 0
    patch_width: int = 0
    pose_joints: int = 0


def stream_shapes(config: TrainerConfig) -> StreamShapes:
    """The streams that a run really has: those that are switched on and that its data can fill.

    A folder of files has captions and nothing else. Its `text_length` here is the most that a caption may have. Shards
    say their widths themselves where they are on this machine, else those of the published sets are assumed.
    """
    if config.data.source == "shards":
        return _shard_shapes(config, _set_of(config))
    has_features = config.data.source == "procedural"
    streams = config.streams
    text = streams.text != "off"
    return StreamShapes(
        text_width=TEXT_WIDTH if text else 0,
        text_length=(PORTRAIT_WORDS if has_features else FOLDER_WORDS) if text else 0,
        cls_width=CLS_WIDTH if has_features and streams.cls != "off" else 0,
        patch_width=PATCH_WIDTH if has_features and streams.patches != "off" else 0,
        pose_joints=POSE_JOINTS if has_features and streams.pose != "off" else 0,
    )


def patch_tokens(config: TrainerConfig) -> int:
    """How many image features a sample has, roughly: a grid like that of the image tokens, or that of stored images."""
    if config.data.source != "shards":
        return config.tokens
    found = _set_of(config)
    return ((found.side if found else SHARD_WIDTH) // FEATURE_CELL) ** 2


def bucket_tokens(config: TrainerConfig) -> dict[str, int]:
    """Image tokens per sample by bucket, as far as the shards of a run are here; the square alone for other sources."""
    found = _set_of(config) if config.data.source == "shards" else None
    sizes = {folder.bucket.name: folder.bucket.scaled(config.data.size) for folder in found.folders} if found else {}
    return {name: math.prod(config.grid_of(*size)) for name, size in sizes.items() if size} or {"": config.tokens}


def _set_of(config: TrainerConfig) -> ShardSet | None:
    """The shards of a run, if they are here and in order; what is not in order trainer/rules/data.py reports."""
    try:
        return shards_of(config)
    except DataError:
        return None


def _shard_shapes(config: TrainerConfig, found: ShardSet | None) -> StreamShapes:
    def width(stream: str) -> int:
        if getattr(config.streams, stream) == "off":
            return 0
        return SHARD_WIDTH if found is None else found.widths.get(STREAM_MEMBERS[stream][0], SHARD_WIDTH)

    text = width("text")
    return StreamShapes(
        text_width=text,
        text_length=((found.text_length if found else 0) or SHARD_TOKENS) if text else 0,
        cls_width=width("cls"),
        patch_width=width("patches"),
        pose_joints=POSE_JOINTS if config.streams.pose != "off" else 0,
    )
