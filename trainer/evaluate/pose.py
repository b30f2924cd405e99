"""Do the joints of a generated image lie where its pose condition asked for them?

Scores are in inter-ocular distances of the condition. Two levels belong to them: the ceiling is what the detector says
of the real images, the floor what it says when every image meets the pose of the next one.

Shapes: B samples, C channels, H x W pixels, J joints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    """Scores poses on one evaluation set with one detector. Needs the pose stream and at least two samples.

    `asked` holds the joints of the conditions, (B, J, 3).
    """

    def __init__(self, inputs: EvalSet, detector: Detector) -> None:
        assert inputs.conditions.pose_BJ3 is not None, "pose is scored against the pose condition"
        self._inputs, self._detector = inputs, detector
        self.asked = inputs.conditions.pose_BJ3.cpu().numpy().astype(np.float64)

    @property
    def hash(self) -> str:
        """Of the detector's weights."""
        return self._detector.hash

    def scores(self, variant: Variant, eval_seed: int, images_BCHW: Tensor) -> list[Score]:
        """mpjpe, pa_mpjpe (mean over its groups), pa_mpjpe_<group> and pose_missed of images of the first samples.

        An image in which the detector finds no pose is missed: it counts as the floor's mean error. An image that is
        not finite has no valid score. Metrics that the detector is not good enough for are left out.
        """
        found = self._found(images_BCHW)
        missed_B = np.array([self._is_missed(found, index) for index in range(len(found))])
        ids = self._inputs.ids[: len(found)]
        scores = scores_of(variant, "pose_missed", ids, eval_seed, missed_B.tolist())
        values = self._errors(found, self.asked, missed_B)
        for name, (_, floor) in self.levels.items():
            if name in self.withheld:
                continue
            value_B = _with_floor(values[name], missed_B, floor)
            scores += scores_of(variant, name, ids, eval_seed, value_B.tolist())
        return scores if len(self.withheld) < len(self.levels) else []

    @cached_property
    def levels(self) -> dict[str, tuple[float, float]]:
        """(ceiling, floor) of every metric that the conditions allow: means over all samples."""
        found = self._found(self._inputs.x_BCHW)
        missed_B = np.array([self._is_missed(found, index) for index in range(len(found))])
        shuffled = self._errors(np.roll(found, 1, axis=0), self.asked, np.zeros(len(found)))
        floors = {name: _mean(value_B) for name, value_B in shuffled.items()}
        own = self._errors(found, self.asked, missed_B)
        return {
            name: (_mean(_with_floor(own[name], missed_B, floor)), floor)
            for name, floor in floors.items()
            if math.isfinite(floor)
        }

    @cached_property
    def withheld(self) -> frozenset[str]:
        """Metrics whose ceiling is above a third of their floor."""
        return frozenset(
            name for name, (ceiling, floor) in self.levels.items() if not ceiling <= floor * WITHHELD_ABOVE
        )

    def calibration(self, stand_ins: Mapping[str, Tensor]) -> dict[str, dict[str, float | None]]:
        """Mean score of stand-ins (B, C, H, W) for the real images by metric and name; None where none is valid."""
        kept = [name for name in self.levels if name not in self.withheld]
        found: dict[str, dict[str, float | None]] = {name: {} for name in kept}
        for name, images_BCHW in stand_ins.items():
            scores = self.scores(Variant("ema", "common"), 0, images_BCHW)
            for metric in kept:
                values = [score.value for score in scores if score.metric == metric and score.valid]
                found[metric][name] = math.fsum(values) / len(values) if values else None
        return found

    def about(self) -> dict[str, object]:
        """For meta.json: the detector, the levels of every metric, and which of them are withheld."""
        levels = {
            name: {"ceiling": ceiling, "floor": floor, "withheld": name in self.withheld}
            for name, (ceiling, floor) in self.levels.items()
        }
        return {"detector": self.hash, "unit": "inter-ocular distances of the condition", "levels": levels}

    def joints(self, images_BCHW: Tensor) -> np.ndarray:
        """What the detector finds in images of the first samples: (B, J, 3)."""
        return self._found(images_BCHW)

    def _found(self, images_BCHW: Tensor) -> np.ndarray:
        return self._detector(displayed(images_BCHW)).numpy().astype(np.float64)

    def _is_missed(self, found_BJ3: np.ndarray, index: int) -> float:
        """1 when too little of the pose is found, nan for an image that is not finite or where nothing is asked for."""
        confidence_N = found_BJ3[index, counted(self.asked[index]), 2]
        known = len(confidence_N) > 0 and bool(np.isfinite(confidence_N).all())
        return float(confidence_N.mean() < FOUND_FROM) if known else math.nan

    def _errors(self, found_BJ3: np.ndarray, asked_BJ3: np.ndarray, missed_B: np.ndarray) -> dict[str, np.ndarray]:
        """Every metric of every sample, nan where it is not known."""
        height, width = self._inputs.x_BCHW.shape[-2:]
        values = {name: np.full(len(found_BJ3), math.nan) for name in METRICS}
        for index, (found_J3, asked_J3) in enumerate(zip(found_BJ3, asked_BJ3, strict=False)):
            if math.isnan(missed_B[index]):
                continue
            values["mpjpe"][index] = mpjpe(found_J3, asked_J3, height, width)
            groups = pa_mpjpe(found_J3, asked_J3, height, width)
            for group, error in groups.items():
                values[f"pa_mpjpe_{group}"][index] = error
            values["pa_mpjpe"][index] = math.fsum(groups.values()) / len(groups) if groups else math.nan
        return values


def _with_floor(value_B: np.ndarray, missed_B: np.ndarray, floor: float) -> np.ndarray:
    """The floor in place of the errors of missed images; what a sample does not have stays nan."""
    return np.where((missed_B == 1.0) & np.isfinite(value_B), floor, value_B)


def _mean(value_B: np.ndarray) -> float:
    """Mean of the finite values; nan where there is none."""
    finite = value_B[np.isfinite(value_B)]
    return math.fsum(finite) / len(finite) if len(finite) else math.nan
