"""Conditions of runs whose features our own code computes: drawn portraits and folders of captioned images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from trainer.asking.question import Asked, Question, joints_from_json, refuse_missing_streams
from trainer.asking.trained_run import TrainedRun
from trainer.data.captions import parse
from trainer.data.drawing import draw
from trainer.data.features import encode_cls, encode_patches, encode_text
from trainer.data.portraits import Portrait
from trainer.data.sample import Sample, collate
from trainer.data.shapes import stream_shapes
from trainer.errors import UsageError
from trainer.evaluate.pictures import CAPTION_KEY


def computed_conditions(run: TrainedRun, question: Question) -> Asked:
    """The given conditions of one square image; what is not given is absent.

    Raises UsageError for a stream that the run does not have and for input that cannot be encoded.
    """
    if question.bucket is not None:
        raise UsageError(f"--bucket {question.bucket}: images of the data source {run.config.data.source} are square")
    shapes, side = stream_shapes(run.config), run.config.data.size
    refuse_missing_streams(run, shapes, question)
    cls_D = patches_PD = None
    grid = (0, 0)
    if question.reference is not None:
        portrait = _portrait_in(question.reference)
        cls_D = encode_cls(portrait) if shapes.cls_width else None
        if shapes.patch_width:
            patches_PD, grid = encode_patches(portrait, draw(portrait, side, side).coverage_HWP)
    sample = Sample(
        id="sample",
        caption=question.prompt,
        pixels_HWC=np.zeros((1, 1, 3), dtype=np.uint8),
        text_TD=encode_text(question.prompt, shapes.text_length),
        cls_D=cls_D,
        patches_PD=patches_PD,
        patch_grid=grid,
        pose_J3=None if question.pose is None else joints_from_json(question.pose),
    )
    return Asked(collate([sample]).conditions, (side, side))


def _portrait_in(path: Path) -> Portrait:
    """The portrait that an image file of ours says it shows."""
    try:
        with Image.open(path) as image:
            text = image.info.get(CAPTION_KEY, "")
    except OSError as error:
        raise UsageError(f"--reference {path} cannot be read: {error.strerror or error}") from error
    portrait = parse(text)
    if portrait is None:
        raise UsageError(
            f"--reference {path} does not say which portrait it shows: features of procedural runs come from "
            "attributes, not from pixels; use an image of RUN_DIR/validation/step_*/images/reference"
        )
    return portrait
