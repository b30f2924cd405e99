"""Pooled conditions: fewer tokens that say what their members say, whatever is missing among them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.fakes.trainer_parts import SHAPES, NoiseSource, random_conditions, random_model, tiny_config
from trainer import randomness
from trainer.control import StopRequest
from trainer.data.batches import Batches
from trainer.data.sample import Conditions
from trainer.model.nanodit import NanoDiT
from trainer.model.pooling import mean_of_joints, mean_of_neighbours, mean_of_words
from trainer.objective.prediction import empty_model
from trainer.step import Learner

T_B = torch.tensor([0.05, 0.3, 0.6])
POOLABLE = ("text", "patches", "pose")


def model(*pooled: str) -> NanoDiT:
    return random_model(pooled=pooled)


def predict(built: NanoDiT, conditions: Conditions) -> torch.Tensor:
    return built(torch.ones(3, 3, 8, 8), T_B, conditions).x_BCHW


@pytest.mark.parametrize("name", POOLABLE)
def test_pooling_changes_the_prediction_and_the_gradient_arrives(name: str) -> None:
    built = model(name)
    predicted = predict(built, random_conditions(3))
    assert not torch.allclose(predicted, predict(model(), random_conditions(3)))
    predicted.square().sum().backward()
    own = [part for part in built.conditioning.embed[name].named_parameters() if part[0] != "null_D"]
    assert all(parameter.grad.any() for _, parameter in own)


@pytest.mark.parametrize(("pooled", "tokens"), [((), 5 + 1 + 16 + 9), (("text",), 27), (("pose",), 23), (POOLABLE, 7)])
def test_a_pooled_context_is_shorter(pooled: tuple[str, ...], tokens: int) -> None:
    context = model(*pooled).conditioning(random_conditions(3), {}, (3,))
    assert context.groups[0].tokens_GSD.shape[1] == tokens
    mask = context.groups[0].mask_G11S
    assert mask is None if "text" in pooled else mask.shape == (3, 1, 1, tokens), "only captions differ in length"


@pytest.mark.parametrize("name", POOLABLE)
def test_a_dropped_pooled_stream_is_its_null_token(name: str) -> None:
    built = model(*POOLABLE)
    present = {name: torch.tensor([True, False, True])}
    group = built.conditioning(random_conditions(3), present, (3,)).groups[0]
    start = {"text": 0, "patches": 2, "pose": 6}[name]
    assert torch.equal(group.tokens_GSD[1, start], built.conditioning.embed[name].null_D)
    assert not torch.equal(group.tokens_GSD[0, start], built.conditioning.embed[name].null_D)
    hidden = [index for index in range(7) if not group.mask_G11S[1, 0, 0, index]]
    assert hidden == ([3, 4, 5] if name == "patches" else [])


def test_words_are_averaged_over_those_that_are_there() -> None:
    features_BTF = torch.tensor([[[1.0, 4.0], [3.0, 0.0], [9.0, 9.0]], [[5.0, 6.0], [7.0, 7.0], [8.0, 8.0]]])
    mask_BT = torch.tensor([[True, True, False], [True, False, False]])
    assert mean_of_words(features_BTF, mask_BT).tolist() == [[[2.0, 2.0]], [[5.0, 6.0]]]
    assert mean_of_words(features_BTF[:1, :2], None).tolist() == [[[2.0, 2.0]]]
    assert mean_of_words(features_BTF, torch.zeros_like(mask_BT)).tolist() == [[[0.0, 0.0]], [[0.0, 0.0]]]


def test_neighbours_are_averaged_two_by_two_and_edges_over_what_is_there() -> None:
    features_BPF = torch.arange(15.0).reshape(1, 15, 1)  # three rows of five
    pooled = mean_of_neighbours(features_BPF, (3, 5))[0, :, 0].tolist()
    assert pooled == [3.0, 5.0, 6.5, 10.5, 12.5, 14.0]
    tall = mean_of_neighbours(torch.arange(8.0).reshape(1, 8, 1), (4, 2))[0, :, 0].tolist()
    assert tall == [1.5, 5.5]


def test_joints_count_by_their_confidence() -> None:
    tokens_BJD = torch.tensor([[[1.0], [5.0], [100.0]]])
    pose_BJ3 = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]]])
    assert mean_of_joints(tokens_BJD, pose_BJ3)[0, 0, 0] == pytest.approx((1 + 2.5) / 1.5)
    assert mean_of_joints(tokens_BJD, torch.zeros(1, 3, 3)).tolist() == [[[0.0]]]
    built, conditions = model("pose"), random_conditions(3)
    conditions.pose_BJ3[:, 4, 2] = 0.0
    moved = dataclasses.replace(conditions, pose_BJ3=conditions.pose_BJ3.clone())
    moved.pose_BJ3[:, 4, :2] += 3.0
    assert torch.equal(predict(built, conditions), predict(built, moved))


def test_padding_of_pooled_captions_changes_nothing() -> None:
    built, conditions = model("text"), random_conditions(3)
    longer = dataclasses.replace(
        conditions,
        text_BTD=torch.cat([conditions.text_BTD, randomness.normal((3, 7, SHAPES.text_width), 0, "noise", 0)], dim=1),
        text_mask_BT=torch.cat([conditions.text_mask_BT, torch.zeros(3, 7, dtype=torch.bool)], dim=1),
    )
    torch.testing.assert_close(predict(built, conditions), predict(built, longer), rtol=1e-5, atol=1e-5)


def test_a_run_pools_what_it_is_told_to_and_still_aligns_with_all_patches() -> None:
    streams = dict.fromkeys(POOLABLE, "pooled")
    config = tiny_config(streams=streams, repa={"enabled": True, "samples": "all"})
    source = NoiseSource(config, 0)
    learner = Learner(config, source.streams, 0, torch.device("cpu"))
    assert learner.model.conditioning.pooled == frozenset(POOLABLE)
    assert empty_model(config, source.streams).conditioning.pooled == frozenset(POOLABLE)
    assert all(average.conditioning.pooled == frozenset(POOLABLE) for average in learner.ema.models.values())
    result = learner.step(Batches(source, 0, config.samples_per_step), 0, StopRequest())
    assert result is not None
    assert torch.isfinite(result.losses_L).all()
    assert result.weights == {"repa": 0.5}
