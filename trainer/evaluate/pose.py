"""Do the joints of a generated image lie where its pose condition asked for them?

Scores are in inter-ocular distances of the condition. Two levels belong to them: the ceiling is what the detector says
of the real images, the floor what it says when every image meets the pose of the next one of its shape. Both are over
the images of all shapes.

Shapes: B samples, C channels, H x W pixels, J joints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from torch import Tensor

from trainer.evaluate.protocols import EvalSet
from trainer.evaluate.reconstruction import displayed
from trainer.evaluate.scores import Score, Variant, scores_of
from trainer.pose.detector import Detector
from trainer.pose.error import GROUPS, counted, mpjpe, pa_mpjpe

WITHHELD_ABOVE = 1 / 3  # of the floor: a detector this bad on real images says nothing about generated ones
FOUND_FROM = 0.5  # mean confidence over the joints that were asked for
METRICS = ("mpjpe", "pa_mpjpe", *(f"pa_mpjpe_{group}" for group in GROUPS))


class PoseJudge:
    """Scores poses on the evaluation sets of a run with one detector.

    Needs the pose stream; without two samples of one shape there is no floor and no score.
    """

    def __init__(self, sets: Sequence[EvalSet], detector: Detector) -> None:
        assert all(inputs.conditions.pose_BJ3 is not None for inputs in sets), "poses are scored against the condition"
        self._sets, self._detector = sets, detector

    @property
    def hash(self) -> str:
        """Of the detector's weights."""
        return self._detector.hash

    def asked(self, inputs: EvalSet) -> np.ndarray:
        """The joints of the conditions: (B, J, 3)."""
        pose_BJ3 = inputs.conditions.pose_BJ3
        assert pose_BJ3 is not None, "poses are scored against the condition"
        return pose_BJ3.cpu().numpy().astype(np.float64)

    def scores(self, inputs: EvalSet, variant: Variant, eval_seed: int, images_BCHW: Tensor) -> list[Score]:
        """mpjpe, pa_mpjpe (mean over its groups), pa_mpjpe_<group> and pose_missed of images of the first of `inputs`.

        An image in which the detector finds no pose is missed: it counts as the floor's mean error. An image that is
        not finite has no valid score. Metrics that the detector is not good enough for are left out.
        """
        found_BJ3 = self.joints(images_BCHW)
        missed_B = self._missed(inputs, found_BJ3)
        ids = inputs.ids[: len(found_BJ3)]
        scores = scores_of(variant, "pose_missed", ids, eval_seed, missed_B.tolist())
        values = self._errors(inputs, found_BJ3, missed_B)
        for name, (_, floor) in self.levels.items():
            if name in self.withheld:
                continue
            value_B = _with_floor(values[name], missed_B, floor)
            scores += scores_of(variant, name, ids, eval_seed, value_B.tolist())
        return scores if len(self.withheld) < len(self.levels) else []

    @cached_property
    def levels(self) -> dict[str, tuple[float, float]]:
        """(ceiling, floor) of every metric that the conditions allow: means over all samples that have another."""
        found = [(inputs, self.joints(inputs.x_BCHW)) for inputs in self._sets if len(inputs.ids) > 1]
        missed = [self._missed(inputs, found_BJ3) for inputs, found_BJ3 in found]
        own = [self._errors(*each, missed_B) for each, missed_B in zip(found, missed, strict=True)]
        shuffled = [self._errors(inputs, np.roll(joints, 1, axis=0), np.zeros(len(joints))) for inputs, joints in found]
        levels = {}
        for name in METRICS:
            floor = _mean([values[name] for values in shuffled])
            if math.isfinite(floor):
                pairs = zip(own, missed, strict=True)
                levels[name] = _mean([_with_floor(values[name], missed_B, floor) for values, missed_B in pairs]), floor
        return levels

    @cached_property
    def withheld(self) -> frozenset[str]:
        """Metrics whose ceiling is above a third of their floor."""
        return frozenset(
            name for name, (ceiling, floor) in self.levels.items() if not ceiling <= floor * WITHHELD_ABOVE
        )

    def calibration(self, stand_ins: Sequence[Mapping[str, Tensor]]) -> dict[str, dict[str, float | None]]:
        """Mean score of the stand-ins (B, C, H, W) of each set by metric and name; None where none is valid."""
        kept = [name for name in self.levels if name not in self.withheld]
        scores: dict[str, list[Score]] = {}
        for inputs, images in zip(self._sets, stand_ins, strict=True):
            for name, images_BCHW in images.items():
                scores.setdefault(name, []).extend(self.scores(inputs, Variant("ema", "common"), 0, images_BCHW))
        return {metric: {name: _mean_of(metric, found) for name, found in scores.items()} for metric in kept}

    def about(self) -> dict[str, object]:
        """For meta.json: the detector, the levels of every metric, and which of them are withheld."""
        levels = {
            name: {"ceiling": ceiling, "floor": floor, "withheld": name in self.withheld}
            for name, (ceiling, floor) in self.levels.items()
        }
        return {"detector": self.hash, "unit": "inter-ocular distances of the condition", "levels": levels}

    def joints(self, images_BCHW: Tensor) -> np.ndarray:
        """What the detector finds in images of one shape: (B, J, 3)."""
        return self._detector(displayed(images_BCHW)).numpy().astype(np.float64)

    def _missed(self, inputs: EvalSet, found_BJ3: np.ndarray) -> np.ndarray:
        """1 where too little of the pose is found, nan for an image that is not finite or asked for nothing: (B,)."""
        asked_BJ3 = self.asked(inputs)
        return np.array(
            [_is_missed(found_J3, asked_J3) for found_J3, asked_J3 in zip(found_BJ3, asked_BJ3, strict=False)]
        )

    def _errors(self, inputs: EvalSet, found_BJ3: np.ndarray, missed_B: np.ndarray) -> dict[str, np.ndarray]:
        """Every metric of every sample, nan where it is not known."""
        height, width = inputs.x_BCHW.shape[-2:]
        values = {name: np.full(len(found_BJ3), math.nan) for name in METRICS}
        for index, (found_J3, asked_J3) in enumerate(zip(found_BJ3, self.asked(inputs), strict=False)):
            if math.isnan(missed_B[index]):
                continue
            values["mpjpe"][index] = mpjpe(found_J3, asked_J3, height, width)
            groups = pa_mpjpe(found_J3, asked_J3, height, width)
            for group, error in groups.items():
                values[f"pa_mpjpe_{group}"][index] = error
            values["pa_mpjpe"][index] = math.fsum(groups.values()) / len(groups) if groups else math.nan
        return values


def _is_missed(found_J3: np.ndarray, asked_J3: np.ndarray) -> float:
    """1 when too little of the pose is found, nan for an image that is not finite or where nothing is asked for."""
    confidence_N = found_J3[counted(asked_J3), 2]
    known = len(confidence_N) > 0 and bool(np.isfinite(confidence_N).all())
    return float(confidence_N.mean() < FOUND_FROM) if known else math.nan


def _with_floor(value_B: np.ndarray, missed_B: np.ndarray, floor: float) -> np.ndarray:
    """The floor in place of the errors of missed images; what a sample does not have stays nan."""
    return np.where((missed_B == 1.0) & np.isfinite(value_B), floor, value_B)


def _mean(values: Sequence[np.ndarray]) -> float:
    """Mean of the finite values; nan where there is none."""
    finite = [value for value_B in values for value in value_B[np.isfinite(value_B)].tolist()]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _mean_of(metric: str, scores: Sequence[Score]) -> float | None:
    values = [score.value for score in scores if score.metric == metric and score.valid]
    return math.fsum(values) / len(values) if values else None
