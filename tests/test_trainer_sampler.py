"""Sampling: identities that hold whatever the model has learned."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.fakes.trainer_parts import random_conditions, random_model
from trainer import randomness
from trainer.config import NativeSamplerConfig
from trainer.data.sample import Conditions
from trainer.model.nanodit import NanoDiT
from trainer.model.tread import Route, keep_from_noise
from trainer.sampler import COMMON, dense, euler, nested_cfg, predictor, self_guided, time_grid

pytestmark = pytest.mark.usefixtures("_without_gradients")


@pytest.fixture
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> NanoDiT:
    return random_model().eval()


def noise(batch: int = 3) -> Tensor:
    return randomness.normal((batch, 3, 8, 8), 1, "eval", "x", 0)


def route(batch: int = 3) -> Route:
    return Route(keep_from_noise(randomness.uniform((batch, 16), 1, "eval", "x", 0, "route"), 8), 1, 2)


# ---- grid and steps --------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.floats(0.2, 8.0))
def test_the_grid_falls_from_one_to_zero(steps: int, shift: float) -> None:
    grid = time_grid(steps, shift)
    assert len(grid) == steps + 1
    assert grid[0] == pytest.approx(1.0)
    assert grid[-1] == 0.0
    assert all(later < earlier for earlier, later in pairwise(grid))


def test_shift_one_is_even_and_a_larger_one_stays_longer_in_noise() -> None:
    assert time_grid(4) == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert time_grid(2, 3.0)[1] == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))


@given(st.integers(1, 12))
def test_the_last_step_returns_the_prediction_itself(steps: int) -> None:
    seen = []

    def predict(z_BCHW: Tensor, t: float) -> Tensor:
        seen.append(torch.sin(3 * z_BCHW) * 7 + t)
        return seen[-1]

    assert euler(predict, noise(), time_grid(steps)) is seen[-1]
    assert len(seen) == steps


@given(st.integers(1, 20), st.floats(0.3, 5.0))
def test_a_perfect_prediction_leads_to_the_image_along_the_straight_path(steps: int, shift: float) -> None:
    x_BCHW, noise_BCHW = noise().tanh(), noise().flip(0)

    def predict(z_BCHW: Tensor, t: float) -> Tensor:
        torch.testing.assert_close(z_BCHW, (1 - t) * x_BCHW + t * noise_BCHW, atol=1e-4, rtol=1e-4)
        return x_BCHW

    assert torch.equal(euler(predict, noise_BCHW, time_grid(steps, shift)), x_BCHW)


def test_samples_are_not_clamped() -> None:
    assert euler(lambda z_BCHW, t: torch.full_like(z_BCHW, 4.0), noise(), time_grid(3)).max() == 4.0


# ---- guidance --------------------------------------------------------------------------------------------------------


def test_self_guidance_of_one_is_dense_and_of_zero_is_routed(model: NanoDiT) -> None:
    conditions, z_BCHW = random_conditions(3), noise()
    assert torch.equal(self_guided(model, conditions, route(), 1.0)(z_BCHW, 0.6), dense(model, conditions)(z_BCHW, 0.6))
    routed_BCHW = model(z_BCHW, torch.full((3,), 0.6), conditions, route=route()).x_BCHW
    assert torch.equal(self_guided(model, conditions, route(), 0.0)(z_BCHW, 0.6), routed_BCHW)
    strong_BCHW = self_guided(model, conditions, route(), 3.0)(z_BCHW, 0.6)
    expected_BCHW = routed_BCHW + 3.0 * (dense(model, conditions)(z_BCHW, 0.6) - routed_BCHW)
    torch.testing.assert_close(strong_BCHW, expected_BCHW)
    assert not torch.allclose(strong_BCHW, routed_BCHW)


def test_nested_guidance_with_all_scales_one_is_all_conditions(model: NanoDiT) -> None:
    conditions, z_BCHW = random_conditions(3), noise()
    ones = {"text": 1.0, "dino": 1.0, "pose": 1.0}
    dense_BCHW = dense(model, conditions)(z_BCHW, 0.4)
    torch.testing.assert_close(nested_cfg(model, conditions, ones)(z_BCHW, 0.4), dense_BCHW, atol=1e-4, rtol=1e-4)


def test_nested_guidance_goes_through_combinations_that_were_trained(model: NanoDiT) -> None:
    conditions, z_BCHW = random_conditions(3), noise()
    nothing, text, images, everything = (
        dense(model, conditions.keep(kept))(z_BCHW, 0.4)
        for kept in ((), ("text",), ("text", "cls", "patches"), ("text", "cls", "patches", "pose"))
    )
    found = nested_cfg(model, conditions, {"text": 3.0, "dino": 2.5, "pose": 0.5})(z_BCHW, 0.4)
    expected = nothing + 3.0 * (text - nothing) + 2.5 * (images - text) + 0.5 * (everything - images)
    torch.testing.assert_close(found, expected)
    zero = nested_cfg(model, conditions, {"text": 0.0, "dino": 0.0, "pose": 0.0})(z_BCHW, 0.4)
    torch.testing.assert_close(zero, nothing)


def test_streams_that_are_not_there_add_nothing(model: NanoDiT) -> None:
    only_text, calls = random_conditions(3).keep(("text",)), []

    def counted(z_BCHW: Tensor, t_B: Tensor, conditions: Conditions):
        calls.append(conditions.streams)
        return model(z_BCHW, t_B, conditions)

    found = nested_cfg(counted, only_text, {"text": 1.0, "dino": 9.0, "pose": 9.0})(noise(), 0.4)
    torch.testing.assert_close(found, dense(model, only_text)(noise(), 0.4), atol=1e-5, rtol=1e-5)
    assert calls == [(), ("text",)]


def test_leaving_a_stream_out_is_the_same_as_masking_it(model: NanoDiT) -> None:
    conditions, t_B = random_conditions(3), torch.full((3,), 0.5)
    absent = {name: torch.zeros(3, dtype=torch.bool) for name in ("cls", "patches", "pose")}
    masked_BCHW = model(noise(), t_B, conditions, absent).x_BCHW
    torch.testing.assert_close(model(noise(), t_B, conditions.keep(("text",))).x_BCHW, masked_BCHW)


def test_the_common_protocol_is_dense_under_all_conditions(model: NanoDiT) -> None:
    conditions = random_conditions(3)
    assert NativeSamplerConfig(kind="dense") == COMMON
    assert torch.equal(predictor(model, conditions)(noise(), 0.3), dense(model, conditions)(noise(), 0.3))


def test_a_configuration_chooses_its_guidance(model: NanoDiT) -> None:
    conditions, z_BCHW = random_conditions(3), noise()
    guided = predictor(model, conditions, NativeSamplerConfig(kind="self_guidance", scale=2.0), route())
    assert torch.equal(guided(z_BCHW, 0.3), self_guided(model, conditions, route(), 2.0)(z_BCHW, 0.3))
    nested = NativeSamplerConfig(kind="nested_cfg", dino=1.5)
    scales = {"text": 3.0, "dino": 1.5, "pose": 1.0}
    expected = nested_cfg(model, conditions, scales)(z_BCHW, 0.3)
    assert torch.equal(predictor(model, conditions, nested)(z_BCHW, 0.3), expected)
    with pytest.raises(AssertionError, match="routing"):
        predictor(model, conditions, NativeSamplerConfig(kind="self_guidance"))
