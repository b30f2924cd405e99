"""Conditions of runs that learned from shards: made now by the passes that made those in the shards.

Everything that can be wrong with a question is found before a model is loaded; then one model after the other is there
for all questions, each of which is computed by itself, so that it is answered alike alone and among others.

Shapes: C channels, H x W pixels, J joints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from trainer.asking.crops import Crop, crop_of
from trainer.asking.encoders import ModelPlaces, pass_of, require_record
from trainer.asking.question import Asked, Question, joints_from_json, named_bucket, refuse_missing_streams
from trainer.asking.trained_run import TrainedRun
from trainer.data.buckets import Bucket
from trainer.data.sample import Sample, collate
from trainer.data.set_record import SetRecord
from trainer.data.shapes import StreamShapes
from trainer.data.shard_sample import Fault, decode
from trainer.data.shard_set import ShardFolder
from trainer.device import choose_device
from trainer.errors import DataError, UsageError
from trainer.prepare.passes import Failed, Inputs, Made, Pass
from trainer.prepare.records import encoded

TEXT, IMAGE_FEATURES, POSE = "t5", "dinov3", "pose"
_OPTION = {TEXT: "--prompt", IMAGE_FEATURES: "--reference", POSE: "--pose"}


@dataclass(slots=True)
class _Open:
    """A question that is being answered: what each pass shall look at, what it made, and notes for a person."""

    question: Question
    bucket: Bucket
    inputs: dict[str, Inputs]
    joints_J3: np.ndarray | None = None
    made: dict[str, Made] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def stored_conditions(run: TrainedRun, questions: Sequence[Question], places: ModelPlaces) -> list[Asked]:
    """The given conditions of every question; what is not given is absent.

    Raises UsageError for a stream that the run does not have, input that cannot be encoded, and for a run of which
    nobody knows the encoders; DataError if an encoder is not here, or is another one than the run learned from.
    """
    record = require_record(run)
    opened = [_begin(run, record, question) for question in questions]
    wanted = [name for name in (TEXT, IMAGE_FEATURES, POSE) if any(name in one.inputs for one in opened)]
    device = choose_device(run.config).type
    passes = {name: pass_of(record, name, places, device) for name in wanted}
    for name, (work, notes) in passes.items():
        asking = [one for one in opened if name in one.inputs]
        _encode(name, work, asking)
        for one in asking:
            one.notes += notes
            one.notes += _cut(one.made[name])
    return [_finish(run, record, one) for one in opened]


def _begin(run: TrainedRun, record: SetRecord, question: Question) -> _Open:
    refuse_missing_streams(run, run.streams, question)
    words = " ".join(question.prompt.split())
    if not words:
        raise UsageError("--prompt is empty: this run was trained on captions, none of which was; allowed: any words")
    named = named_bucket(run, question.bucket)
    allowed = run.buckets if named is None else (named,)
    crops: dict[str, Crop] = {}
    if question.reference is not None:
        crops[IMAGE_FEATURES] = crop_of(record, question.reference, allowed, "--reference")
        allowed = (crops[IMAGE_FEATURES].bucket,)
    if question.pose is not None and _is_image(question.pose):
        crops[POSE] = crop_of(record, Path(question.pose), allowed, "--pose")
        allowed = (crops[POSE].bucket,)
    inputs = {TEXT: Inputs("sample", Path("sample.txt"), caption=words)}
    inputs |= {name: Inputs("sample", crop.source, image_CHW=crop.image_CHW) for name, crop in crops.items()}
    is_json = question.pose is not None and POSE not in crops
    return _Open(
        question=question,
        bucket=allowed[0],
        inputs=inputs,
        joints_J3=joints_from_json(question.pose) if is_json and question.pose is not None else None,
        notes=[note for crop in crops.values() for note in crop.notes],
    )


def _is_image(pose: str) -> bool:
    """Whether --pose names an image; else it is JSON or a file of it."""
    return not pose.lstrip().startswith("[") and Path(pose).suffix.lower() not in (".json", ".txt")


def _encode(name: str, work: Pass, opened: Sequence[_Open]) -> None:
    """Let one model, which is there meanwhile and no longer, answer all questions."""
    with work.open() as encode:
        for one in opened:
            [made] = encode([one.inputs[name]])
            if isinstance(made, Failed):
                raise UsageError(f"{_OPTION[name]} {_given(one.question, name)}: {made.reason}")
            one.made[name] = made


def _cut(made: Made) -> list[str]:
    """What of a question was not used."""
    more, people = made.facts.get("truncated") or 0, made.facts.get("persons") or 0
    notes = [f"the prompt is too long: its last {more} tokens are not used, as in captions"] if more else []
    return notes + ([f"of {people} people in the pose image the largest one is used"] if int(people) > 1 else [])


def _given(question: Question, name: str) -> str:
    return {TEXT: repr(question.prompt), IMAGE_FEATURES: str(question.reference), POSE: str(question.pose)}[name]


def _finish(run: TrainedRun, record: SetRecord, one: _Open) -> Asked:
    """What the passes made, read as a sample of a shard is read."""
    stored = one.bucket.scaled(record.side)
    assert stored is not None, "a set has buckets of whole pixels only"
    folder = ShardFolder(one.bucket, *stored, ())
    size = run.size_of(one.bucket)
    shapes = StreamShapes(
        text_width=run.streams.text_width,
        cls_width=run.streams.cls_width if IMAGE_FEATURES in one.made else 0,
        patch_width=run.streams.patch_width if IMAGE_FEATURES in one.made else 0,
        pose_joints=run.streams.pose_joints if POSE in one.made else 0,
    )
    try:
        sample = decode("sample", _members(one, stored), folder, size, shapes)
    except Fault as fault:
        raise DataError(f"an encoder made what this run cannot be conditioned on: {fault}") from fault
    if one.joints_J3 is not None:
        sample = replace(sample, pose_J3=one.joints_J3)
    _refuse_nobody(one.question, sample)
    return Asked(collate([sample]).conditions, size, tuple(one.notes))


def _members(one: _Open, stored: tuple[int, int]) -> Mapping[str, bytes]:
    """The files of a sample. Its pixels are the reference, or black: nothing looks at them."""
    reference = one.inputs.get(IMAGE_FEATURES)
    pixels_CHW = np.zeros((3, *stored), dtype=np.uint8) if reference is None else reference.image_CHW
    assert pixels_CHW is not None, "image features are made from an image"
    files = {name: encoded(content) for made in one.made.values() for name, content in made.files.items()}
    return {
        "json": json.dumps({"caption": one.inputs[TEXT].caption}).encode(),
        "image.npy": encoded(pixels_CHW),
        **files,
    }


def _refuse_nobody(question: Question, sample: Sample) -> None:
    if sample.pose_J3 is not None and not (sample.pose_J3[:, 2] > 0).any():
        raise UsageError(
            f"--pose {question.pose}: there is no person in it, every joint has the confidence 0; use another image, "
            "or leave --pose out"
        )
