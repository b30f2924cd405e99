"""The pass that finds the pose of the largest person in every image. No torch.

Shapes: B images, C channels, H x W pixels, J joints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np

from trainer.data.shapes import POSE_JOINTS
from trainer.prepare.dwpose.crop import person_crop, pose_input
from trainer.prepare.dwpose.model_files import Networks, networks
from trainer.prepare.dwpose.simcc import pose_of_image
from trainer.prepare.dwpose.yolox import SIDE, People, detector_input, people
from trainer.prepare.onnx_session import OnnxModel, opened, revision, runs_at_once
from trainer.prepare.options import Options
from trainer.prepare.passes import Encode, Failed, Inputs, Made, Pass
from trainer.prepare.placement import Placement, letterbox
from trainer.prepare.recipe import Recipe

FILE = "pose.npy"
_BATCH = 4


def pose_pass(options: Options) -> Pass:
    """The pass for `pose`. Nothing is looked for before its recipe is asked for."""
    return PosePass(options)


class PosePass:
    """pose.npy: float16 (133, 3), x right and y down in [-1, 1] over the image, and the confidence in [0, 1].

    Of several people it is the one whose box has the largest area, of equals the one that the detector is surest of.
    Where there is nobody, every confidence is 0. The record says `detected`, how many `persons` there were, and the
    `detector_score` of the chosen one.
    """

    artefact = "pose"
    files = (FILE,)
    needs = ("image",)

    def __init__(self, options: Options) -> None:
        self._options = options
        self.batch = options.batch or _BATCH

    @cached_property
    def _networks(self) -> Networks:
        return networks(self._options)

    @cached_property
    def recipe(self) -> Recipe:
        """`revision` is that of the network of joints; that of the detector is among the options."""
        return Recipe(
            model=self._networks.name,
            revision=revision(self._networks.joints),
            options={"detector": revision(self._networks.detector), "person": "largest box"},
            label=self._networks.label,
        )

    @property
    def threads(self) -> int:
        """How many batches are worth computing at once."""
        return runs_at_once(self._options.device)

    @contextmanager
    def open(self) -> Iterator[Encode]:
        """Both networks at once."""
        with (
            opened(self._networks.detector, self._options.device) as detector,
            opened(self._networks.joints, self._options.device) as joints,
        ):
            yield lambda inputs: _encode(detector, joints, inputs)


def _encode(detector: OnnxModel, joints: OnnxModel, inputs: Sequence[Inputs]) -> list[Made | Failed]:
    images_BCHW = []
    for one in inputs:
        assert one.image_CHW is not None, "this pass needs the image"
        images_BCHW.append(one.image_CHW)
    found = _find_people(detector, images_BCHW)
    answers: list[Made | Failed] = [seen if isinstance(seen, Failed) else _nobody() for seen in found]
    chosen = [
        (index, seen, largest)
        for index, seen in enumerate(found)
        if isinstance(seen, People) and (largest := seen.largest()) is not None
    ]
    if not chosen:
        return answers
    places = [person_crop(seen.box_N4[largest]) for _, seen, largest in chosen]
    crops_BCHW = [pose_input(images_BCHW[index], place) for (index, _, _), place in zip(chosen, places, strict=True)]
    x_BJX, y_BJY = joints(np.stack(crops_BCHW))
    for (index, seen, largest), place, x_JX, y_JY in zip(chosen, places, x_BJX, y_BJY, strict=True):
        answers[index] = _made(images_BCHW[index], place, x_JX, y_JY, seen, largest)
    return answers


def _find_people(detector: OnnxModel, images_BCHW: Sequence[np.ndarray]) -> list[People | Failed]:
    places = [letterbox(_size(image_CHW), (SIDE, SIDE)) for image_CHW in images_BCHW]
    inputs_BCHW = [detector_input(image_CHW, place) for image_CHW, place in zip(images_BCHW, places, strict=True)]
    (raw_BNF,) = detector(np.stack(inputs_BCHW))
    return [_people(raw_NF, place) for raw_NF, place in zip(raw_BNF, places, strict=True)]


def _people(raw_NF: np.ndarray, place: Placement) -> People | Failed:
    try:
        return people(raw_NF, place)
    except ValueError as error:
        return Failed(str(error))


def _made(
    image_CHW: np.ndarray, place: Placement, x_JX: np.ndarray, y_JY: np.ndarray, found: People, chosen: int
) -> Made | Failed:
    if not (np.isfinite(x_JX).all() and np.isfinite(y_JY).all()):
        return Failed("the network of joints gave numbers that are not finite")
    pose_J3 = pose_of_image(x_JX, y_JY, place, _size(image_CHW))
    score = round(float(found.score_N[chosen]), 6)
    return Made({FILE: pose_J3}, {"detected": True, "persons": len(found.score_N), "detector_score": score})


def _nobody() -> Made:
    nowhere_J3 = np.zeros((POSE_JOINTS, 3), dtype=np.float16)
    return Made({FILE: nowhere_J3}, {"detected": False, "persons": 0, "detector_score": 0.0})


def _size(image_CHW: np.ndarray) -> tuple[int, int]:
    return image_CHW.shape[2], image_CHW.shape[1]
