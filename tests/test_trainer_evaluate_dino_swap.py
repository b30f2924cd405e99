"""Exchanged image features: what the scores are for models whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.fakes.trainer_evaluation import Oracle, eval_set
from trainer.data.sample import Conditions
from trainer.evaluate.dino_swap import swap_dino
from trainer.evaluate.perceptual import Lpips, lpips_on
from trainer.evaluate.protocols import EvalSet
from trainer.evaluate.scores import means
from trainer.evaluate.sheets import dino_swap_sheet
from trainer.evaluate.streams import borrowed, shuffled


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    return lpips_on("cpu")


@pytest.fixture(scope="module")
def inputs() -> EvalSet:
    return eval_set(samples=15)


def recalling(inputs: EvalSet, stream: str) -> Oracle:
    """Draws the real image whose feature it is given."""
    table_BD = getattr(inputs.conditions, stream).flatten(1)

    def recall(z_BCHW: Tensor, conditions: Conditions) -> Tensor:
        return inputs.x_BCHW[torch.cdist(getattr(conditions, stream).flatten(1), table_BD).argmin(dim=1)]

    return Oracle(recall)


def test_a_model_that_follows_the_features_becomes_its_partner(inputs: EvalSet, lpips: Lpips) -> None:
    swap = swap_dino(inputs, recalling(inputs, "cls_BD"), lpips, 0, inputs.x_BCHW)
    assert swap is not None
    assert swap.partner_B.tolist() == [1, 0, 3, 2], "pairs within the first third of 15, rounded down to a whole pair"
    assert torch.equal(swap.swapped_BCHW, inputs.x_BCHW[[1, 0, 3, 2]])
    found = means(swap.scores)
    assert found["val/dino_swap_lpips"] == found["val/dino_swap_ceiling"] > 0.05
    assert found["val/dino_swap_spread"] == 0.0
    assert found["val/dino_swap_toward"] > 0.2
    assert [score.sample_id for score in swap.scores[:4]] == list(inputs.ids[:4])


def test_a_model_that_ignores_the_features_does_not_move(inputs: EvalSet, lpips: Lpips) -> None:
    swap = swap_dino(inputs, recalling(inputs, "pose_BJ3"), lpips, 0, inputs.x_BCHW)
    found = means(swap.scores)
    assert (found["val/dino_swap_lpips"], found["val/dino_swap_toward"]) == (0.0, 0.0)
    assert found["val/dino_swap_ceiling"] > 0.02, "with all conditions exchanged the pose changes the image"


def test_another_noise_shows_in_the_spread_only(inputs: EvalSet, lpips: Lpips) -> None:
    copy = Oracle(lambda z_BCHW, _: z_BCHW)
    found = means(swap_dino(inputs, copy, lpips, 0, inputs.generate(copy, inputs.conditions)).scores)
    assert found["val/dino_swap_spread"] > 0.01
    assert found["val/dino_swap_lpips"] == found["val/dino_swap_ceiling"] == 0.0


def test_only_the_named_streams_are_borrowed(inputs: EvalSet) -> None:
    partner_B = torch.tensor([1, 0, *range(2, 15)])
    moved, own = borrowed(inputs.conditions, ("cls", "patches"), partner_B), inputs.conditions
    for name in ("cls_BD", "patches_BPD"):
        assert torch.equal(getattr(moved, name)[:2], getattr(own, name)[[1, 0]])
        assert torch.equal(getattr(moved, name)[2:], getattr(own, name)[2:])
    assert torch.equal(moved.text_BTD, own.text_BTD)
    assert torch.equal(moved.pose_BJ3, own.pose_BJ3)
    assert borrowed(own.keep(("text",)), ("cls", "patches"), partner_B).streams == ("text",)
    assert torch.equal(shuffled(own, "pose").pose_BJ3, own.pose_BJ3.roll(1, 0))


@pytest.mark.parametrize("changes", [{"samples": 1}, {"streams": {"cls": "off", "patches": "off"}}])
def test_nothing_to_exchange_is_no_metric(lpips: Lpips, changes: dict) -> None:
    alone = eval_set(**changes)
    assert swap_dino(alone, Oracle(lambda z_BCHW, _: z_BCHW), lpips, 0, alone.x_BCHW) is None


def test_two_samples_and_one_image_stream_are_enough(lpips: Lpips) -> None:
    pair = eval_set(samples=2, streams={"patches": "off"})
    swap = swap_dino(pair, recalling(pair, "cls_BD"), lpips, 0, pair.x_BCHW)
    assert torch.equal(swap.swapped_BCHW, pair.x_BCHW.flip(0))


def test_one_image_that_is_not_finite_is_one_invalid_row(inputs: EvalSet, lpips: Lpips) -> None:
    def broken(z_BCHW: Tensor, conditions: Conditions) -> Tensor:
        first_B = (conditions.pose_BJ3 == inputs.conditions.pose_BJ3[0]).flatten(1).all(dim=1)
        return torch.where(first_B[:, None, None, None], math.nan, z_BCHW)

    swap = swap_dino(inputs, Oracle(broken), lpips, 0, inputs.x_BCHW)
    invalid = {score.sample_id for score in swap.scores if score.metric == "dino_swap_lpips" and not score.valid}
    assert invalid == {inputs.ids[0]}
    assert math.isfinite(means(swap.scores)["val/dino_swap_lpips"])
    assert dino_swap_sheet([(inputs, swap, inputs.x_BCHW)]).width > 5 * 128
