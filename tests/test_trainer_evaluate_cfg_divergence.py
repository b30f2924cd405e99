"""Images from subsets of the conditions: what the scores are for models whose answer is known."""

from __future__ import annotations

import math

import pytest
from torch import Tensor

from tests.fakes.trainer_evaluation import Oracle, eval_set
from trainer.data.sample import Conditions
from trainer.evaluate.cfg_divergence import Drawn, cfg_divergence
from trainer.evaluate.perceptual import Lpips, lpips_on
from trainer.evaluate.protocols import EvalSet
from trainer.evaluate.scores import means
from trainer.evaluate.sheets import cfg_divergence_sheet


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    return lpips_on("cpu")


@pytest.fixture(scope="module")
def inputs() -> EvalSet:
    return eval_set(samples=9)


class Painter(Oracle):
    """One colour channel for words, one for image features; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        super().__init__(self._paint)

    def _paint(self, z_BCHW: Tensor, conditions: Conditions) -> Tensor:
        self.asked.append(conditions.streams)
        x_BCHW = z_BCHW.clamp(-1, 1) * 0.2
        x_BCHW[:, 0] += 0.5 * ("text" in conditions.streams)
        x_BCHW[:, 2] += 0.7 * ("cls" in conditions.streams)
        return x_BCHW


def measured(inputs: EvalSet, model: Oracle, lpips: Lpips, guided: bool = True):
    own_BCHW = inputs.generate(model, inputs.conditions)
    text_BCHW = inputs.generate(model, inputs.conditions.keep(("text",)), count=inputs.first_third)
    return cfg_divergence(inputs, model, lpips, 0, Drawn(own_BCHW, text_BCHW, own_BCHW.flip(3) if guided else None))


def test_the_pairs_of_subsets_are_those_of_the_names(inputs: EvalSet, lpips: Lpips) -> None:
    model = Painter()
    found = measured(inputs, model, lpips)
    assert set(model.asked) == {
        ("text",),
        ("cls", "patches"),
        ("text", "cls", "patches"),
        ("text", "cls", "patches", "pose"),
    }
    images = found.images
    expected = {
        "text_dino": lpips(images["text"], images["dino"]),
        "text_both": lpips(images["text"], images["both"]),
        "dino_both": lpips(images["dino"], images["both"]),
    }
    values = means(found.scores)
    for name, value_B in expected.items():
        assert value_B.min() > 0.001
        assert values[f"val/cfg_divergence_{name}"] == pytest.approx(value_B.mean().item())
    assert values["val/cfg_divergence_text_dino"] > values["val/cfg_divergence_dino_both"]
    assert values["val/cfg_divergence_guidance"] > 0.001
    assert len(found.scores) == 4 * inputs.first_third
    assert images["text"][:, 0].mean() > images["dino"][:, 0].mean() + 0.3


def test_a_model_that_ignores_all_conditions_does_not_diverge(inputs: EvalSet, lpips: Lpips) -> None:
    values = means(measured(inputs, Oracle(lambda z_BCHW, _: z_BCHW * 0.5), lpips, guided=False).scores)
    assert values == {f"val/cfg_divergence_{name}": 0.0 for name in ("text_dino", "text_both", "dino_both")}


@pytest.mark.parametrize("off", [("text",), ("cls", "patches")])
def test_without_words_or_image_features_there_is_no_such_metric(lpips: Lpips, off: tuple[str, ...]) -> None:
    inputs = eval_set(samples=3, streams=dict.fromkeys(off, "off"))
    drawn = Drawn(inputs.x_BCHW, inputs.x_BCHW, None)
    assert cfg_divergence(inputs, Oracle(lambda z_BCHW, _: z_BCHW), lpips, 0, drawn) is None


def test_an_image_that_is_not_finite_makes_invalid_rows_and_a_sheet_that_says_so(inputs: EvalSet, lpips: Lpips) -> None:
    def broken(z_BCHW: Tensor, conditions: Conditions) -> Tensor:
        return z_BCHW * (1.0 if "text" in conditions.streams else math.nan)

    found = measured(inputs, Oracle(broken), lpips)
    assert {score.metric for score in found.scores if not score.valid} == {
        "cfg_divergence_text_dino",
        "cfg_divergence_dino_both",
    }
    assert cfg_divergence_sheet([(inputs, found, inputs.x_BCHW)]).height > 3 * 128
