"""What a person asks of a run, and the conditions that it becomes. One image each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.asking.trained_run import TrainedRun
from trainer.data.buckets import Bucket
from trainer.data.sample import Conditions, StreamShapes
from trainer.data.shapes import POSE_JOINTS
from trainer.errors import UsageError


@dataclass(frozen=True, slots=True)
class Question:
    """`prompt` is the caption of the image. `reference` is an image file.

    `pose` is an image file, JSON text or the path of a .json file. `bucket` is the shape of the image as
    <width>x<height> at 1024, None for the one that follows from the images that are given.
    """

    prompt: str
    reference: Path | None = None
    pose: str | None = None
    bucket: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """The conditions of one image, its size (height, width) in pixels, and what a person should know about them."""

    conditions: Conditions
    size: tuple[int, int]
    notes: tuple[str, ...] = ()


def refuse_missing_streams(run: TrainedRun, shapes: StreamShapes, question: Question) -> None:
    """Raise UsageError unless the run was trained with every stream that a question needs."""
    given = {"--prompt": True, "--reference": question.reference is not None, "--pose": question.pose is not None}
    has: Mapping[str, bool] = {
        "--prompt": shapes.text_width > 0,
        "--reference": shapes.cls_width + shapes.patch_width > 0,
        "--pose": shapes.pose_joints > 0,
    }
    needs = {"--prompt": "text", "--reference": "cls and patches", "--pose": "pose"}
    source = run.config.data.source
    for option, is_given in given.items():
        if is_given and not has[option]:
            why = "has captions only" if source == "folder" else "switches it off"
            usable = ", ".join(name for name, on in has.items() if on)
            raise UsageError(
                f"{option} needs the {needs[option]} condition, which this run was not trained with: its data source "
                f"{source} {why}; usable: {usable or 'none'}"
            )


def named_bucket(run: TrainedRun, name: str | None) -> Bucket | None:
    """The bucket of that name; None for None. Raises UsageError for one that the run was not trained on."""
    if name is None:
        return None
    for bucket in run.buckets:
        if bucket.name == name:
            return bucket
    allowed = ", ".join(bucket.name for bucket in run.buckets)
    raise UsageError(f"--bucket {name}: this run was not trained on such images; allowed: {allowed}")


def joints_from_json(pose: str) -> np.ndarray:
    """133 joints (x, y, confidence), float16, from JSON text or from a JSON file. Raises UsageError."""
    try:
        text = pose if pose.lstrip().startswith("[") else Path(pose).read_text(encoding="utf-8")
        joints_J3 = np.asarray(json.loads(text), dtype=np.float64)
    except OSError as error:
        raise UsageError(f"--pose {pose} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"--pose is not a JSON list of joints: {error}") from error
    if joints_J3.shape != (POSE_JOINTS, 3) or not (np.abs(joints_J3) <= 1.0).all() or (joints_J3[:, 2] < 0).any():
        raise UsageError(
            f"--pose has the shape {joints_J3.shape}; needed: {POSE_JOINTS} COCO-WholeBody joints [x, y, confidence], "
            "x and y in [-1, 1] over the frame, confidence in [0, 1]"
        )
    return joints_J3.astype(np.float16)
