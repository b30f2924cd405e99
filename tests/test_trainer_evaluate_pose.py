"""The scores of poses, for detectors whose answer is known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fakes.trainer_evaluation import eval_set
from trainer import rules
from trainer.document import parse_config
from trainer.errors import ConfigError
from trainer.evaluate.calibration import distortions
from trainer.evaluate.pose import PoseJudge
from trainer.evaluate.protocols import EvalSet
from trainer.evaluate.scores import EMA_COMMON, Variant, means
from trainer.evaluate.sheets import pose_sheet


class Recognising:
    """Knows the joints of every real image, off by `error` of half the frame; sees none in anything else."""

    hash = "0123456789abcdef"

    def __init__(self, inputs: EvalSet, error: float = 0.0) -> None:
        self._images, self._joints = inputs.x_BCHW, inputs.conditions.pose_BJ3.clone()
        self._joints[..., 0] += error * torch.sin(torch.arange(133.0))

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        distance = torch.cdist(x_BCHW.flatten(1), self._images.flatten(1))
        found = self._joints[distance.argmin(dim=1)].clone()
        found[..., 2] = (distance.min(dim=1).values < 1e-3).float()[:, None]
        return torch.where(x_BCHW.isfinite().flatten(1).all(1)[:, None, None], found, math.nan)


@pytest.fixture(scope="module")
def inputs() -> EvalSet:
    return eval_set(samples=12)


def judged(inputs: EvalSet, error: float = 0.02) -> PoseJudge:
    return PoseJudge([inputs], Recognising(inputs, error))  # type: ignore[arg-type]


def test_real_images_score_the_ceiling_and_exchanged_ones_the_floor(inputs: EvalSet) -> None:
    judge = judged(inputs)
    assert set(judge.levels) == {"mpjpe", "pa_mpjpe", "pa_mpjpe_body", "pa_mpjpe_face"}
    own = means(judge.scores(inputs, EMA_COMMON, 0, inputs.x_BCHW))
    others = means(judge.scores(inputs, Variant("raw", "native"), 0, inputs.x_BCHW.roll(1, 0)))
    for name, (ceiling, floor) in judge.levels.items():
        assert own[f"val/{name}"] == pytest.approx(ceiling)
        assert others[f"val_raw_native/{name}"] == pytest.approx(floor)
        assert ceiling < floor / 3
    assert own["val/pose_missed"] == 0.0
    assert judged(inputs, 0.0).levels["mpjpe"][0] == pytest.approx(0.0, abs=1e-3)


def test_the_macro_mean_is_over_the_groups(inputs: EvalSet) -> None:
    scores = judged(inputs).scores(inputs, EMA_COMMON, 0, inputs.x_BCHW)
    by_name = {name: [s.value for s in scores if s.metric == name] for name in {s.metric for s in scores}}
    groups = np.mean([by_name["pa_mpjpe_body"], by_name["pa_mpjpe_face"]], axis=0)
    assert by_name["pa_mpjpe"] == pytest.approx(groups.tolist())


def test_a_missed_pose_counts_as_the_floor(inputs: EvalSet) -> None:
    judge = judged(inputs)
    images = inputs.x_BCHW[:4].clone()
    images[2] = inputs.noise(0)[2]
    scores = judge.scores(inputs, EMA_COMMON, 0, images)
    third = {score.metric: score.value for score in scores if score.sample_id == inputs.ids[2]}
    assert third["pose_missed"] == 1.0
    assert {name: third[name] for name in judge.levels} == {name: floor for name, (_, floor) in judge.levels.items()}
    assert means(scores)["val/pose_missed"] == 0.25


def test_an_image_that_is_not_finite_is_invalid_and_not_missed(inputs: EvalSet) -> None:
    images = inputs.x_BCHW[:3].clone()
    images[0, 0, 0, 0] = math.nan
    scores = judged(inputs).scores(inputs, EMA_COMMON, 0, images)
    assert {score.valid for score in scores if score.sample_id == inputs.ids[0]} == {False}
    assert {score.valid for score in scores if score.sample_id != inputs.ids[0]} == {True}
    assert pose_sheet(judged(inputs), [(inputs, {"EMA": images})], scores).height > 3 * 128


def test_a_detector_that_is_too_weak_is_withheld_metric_by_metric(inputs: EvalSet) -> None:
    weak = judged(inputs, 0.09)
    assert weak.withheld == {"pa_mpjpe", "pa_mpjpe_body", "pa_mpjpe_face"}, "only coarse errors can be told apart"
    assert set(means(weak.scores(inputs, EMA_COMMON, 0, inputs.x_BCHW))) == {"val/pose_missed", "val/mpjpe"}
    about = weak.about()["levels"]
    assert about["mpjpe"]["withheld"] is False
    assert about["pa_mpjpe"]["withheld"] is True
    useless = judged(inputs, 0.9)
    assert useless.scores(inputs, EMA_COMMON, 0, inputs.x_BCHW) == []
    assert len(useless.withheld) == 4


def test_the_levels_of_distorted_images_are_between_ceiling_and_floor(inputs: EvalSet) -> None:
    judge = judged(inputs)
    found = judge.calibration([distortions(inputs.x_BCHW, inputs.noise(0))])["mpjpe"]
    assert found["identical"] == pytest.approx(judge.levels["mpjpe"][0])
    assert found["other_portrait"] == found["noise"] == pytest.approx(judge.levels["mpjpe"][1])


def test_a_sample_whose_condition_asks_for_nothing_is_invalid(inputs: EvalSet) -> None:
    joints = inputs.conditions.pose_BJ3.clone()
    joints[0, :, 2] = 0.1
    part = SimpleNamespace(ids=inputs.ids, x_BCHW=inputs.x_BCHW, conditions=SimpleNamespace(pose_BJ3=joints))
    scores = PoseJudge([part], Recognising(inputs)).scores(part, EMA_COMMON, 0, inputs.x_BCHW)  # type: ignore[arg-type]
    assert {score.valid for score in scores if score.sample_id == inputs.ids[0]} == {False}
    assert {score.valid for score in scores if score.sample_id == inputs.ids[1]} == {True}


def test_a_detector_needs_a_pose_and_another_sample() -> None:
    asked = {"validation": {"pose": {"detector": "x.safetensors"}}}
    assert parse_config({"steps": 1, **asked}).validation.pose.detector == "x.safetensors"
    for changes in ({"streams": {"pose": "off"}}, {"data": {"source": "folder", "path": "x"}}):
        with pytest.raises(ConfigError, match=r"validation\.pose\.detector: there is no pose"):
            parse_config({"steps": 1, **asked, **changes})
    with pytest.raises(ConfigError, match="another sample"):
        parse_config({"steps": 1, "validation": {**asked["validation"], "samples": 1}})
    assert rules.issues(parse_config({"steps": 1})) == []
