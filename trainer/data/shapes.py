"""Widths of the condition streams, known before any image is opened and without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.config import TrainerConfig

TEXT_WIDTH = 64
CLS_WIDTH = 64
PATCH_WIDTH = 64
POSE_JOINTS = 133
PORTRAIT_WORDS = 16
FOLDER_WORDS = 64


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

    A folder of files has captions and nothing else. Its `text_length` here is the most that a caption may have.
    """
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
