"""What is minimised: flow matching, times, dropped conditions, alignment and its three ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from tests.fakes.trainer_parts import tiny_config
from trainer import randomness
from trainer.config import ObjectiveConfig
from trainer.model.conditioning import STREAMS
from trainer.objective.dropout import CATEGORIES, draw_categories, present_streams
from trainer.objective.flow import corrupt, velocity
from trainer.objective.repa import alignment_loss, build_projector, resample_teacher
from trainer.objective.repa_schedule import RepaSchedule, gradient_cosine
from trainer.objective.timesteps import BINS, bin_of, draw_timesteps, shift_timesteps

# ---- flow ------------------------------------------------------------------------------------------------------------


def test_time_runs_from_image_to_noise() -> None:
    x, noise = (randomness.normal((2, 3, 4, 4), 0, "noise", index) for index in (0, 1))
    assert torch.equal(corrupt(x, noise, torch.zeros(2)), x)
    assert torch.equal(corrupt(x, noise, torch.ones(2), noise_scale=2.0), 2.0 * noise)


def test_the_clean_image_implies_the_true_velocity() -> None:
    x, noise = (randomness.normal((2, 3, 4, 4), 0, "noise", index) for index in (0, 1))
    t_B = torch.tensor([0.2, 0.9])
    z = corrupt(x, noise, t_B, noise_scale=1.5)
    torch.testing.assert_close(velocity(z, x, t_B), 1.5 * noise - x, rtol=1e-4, atol=1e-5)


@given(st.floats(0, 1))
def test_every_time_lies_in_the_bin_around_its_centre(t: float) -> None:
    assert abs(BINS[int(bin_of(torch.tensor(t)))] - t) <= 0.1 + 1e-6


# ---- times -----------------------------------------------------------------------------------------------------------


@given(st.floats(0.1, 10), st.floats(0, 1))
def test_shift_keeps_the_ends_and_composes(shift: float, value: float) -> None:
    t = torch.tensor([0.0, value, 1.0], dtype=torch.float64)
    shifted = shift_timesteps(t, shift)
    assert (shifted[0], shifted[2]) == (0.0, 1.0)
    torch.testing.assert_close(shift_timesteps(shifted, 1 / shift), t)
    assert (shifted[1] - t[1]) * (shift - 1) >= 0


def times(**changes: Any) -> torch.Tensor:
    return draw_timesteps(ObjectiveConfig(**changes), 0, 0, range(2000))


def test_times_follow_a_logit_normal() -> None:
    logit = times(timestep_mean=0.8, timestep_std=0.5).double().logit()
    assert float(logit.mean()) == pytest.approx(0.8, abs=0.05)
    assert float(logit.std()) == pytest.approx(0.5, abs=0.03)


def test_a_higher_mean_or_shift_is_noisier_and_the_share_is_uniform() -> None:
    assert times(timestep_mean=1.0).mean() > times().mean() + 0.1
    assert torch.equal(times(shift=3.0), shift_timesteps(times(), 3.0))
    uniform = times(uniform_share=1.0)
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.02)
    assert float((uniform < 0.1).float().mean()) == pytest.approx(0.1, abs=0.02)


# ---- dropped conditions ----------------------------------------------------------------------------------------------


def test_the_seven_categories() -> None:
    table = {"".join(str(int(keep)) for keep in category.keeps): category.probability for category in CATEGORIES}
    assert table == {
        "0000": 0.10,
        "1000": 0.25,
        "0100": 0.05,
        "0010": 0.05,
        "1110": 0.10,
        "0001": 0.05,
        "1111": 0.40,
    }
    assert sum(category.probability for category in CATEGORIES) == pytest.approx(1.0)


def test_categories_are_drawn_as_often_as_they_say() -> None:
    counts = draw_categories(0, 0, range(8000)).bincount(minlength=len(CATEGORIES)) / 8000
    assert counts.tolist() == pytest.approx([category.probability for category in CATEGORIES], abs=0.015)


def test_a_category_keeps_exactly_its_streams() -> None:
    present = present_streams(torch.arange(len(CATEGORIES)))
    for index, category in enumerate(CATEGORIES):
        assert tuple(bool(present[name][index]) for name in STREAMS) == category.keeps


# ---- alignment -------------------------------------------------------------------------------------------------------


def test_alignment_is_one_minus_cosine_over_kept_tokens() -> None:
    teacher = randomness.normal((2, 6, 5), 0, "noise", 0)
    assert alignment_loss(3 * teacher, teacher).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert alignment_loss(-teacher, teacher).tolist() == pytest.approx([2, 2], abs=1e-6)
    keep_BK = torch.tensor([[0, 3], [1, 5]])
    projected = randomness.normal((2, 2, 5), 0, "noise", 1)
    chosen = torch.stack([teacher[0, [0, 3]], teacher[1, [1, 5]]])
    expected = (1 - (normalize(projected, dim=-1) * normalize(chosen, dim=-1)).sum(-1)).mean(1)
    torch.testing.assert_close(alignment_loss(projected, teacher, keep_BK), expected)


def test_the_teacher_is_resampled_and_never_truncated() -> None:
    row = torch.arange(6.0).repeat(6, 1)
    teacher = torch.stack([row, row.T], dim=-1).reshape(1, 36, 2)
    small = resample_teacher(teacher, (6, 6), (3, 3)).reshape(3, 3, 2)
    assert small[0, :, 0].tolist() == [0.5, 2.5, 4.5]
    assert small[:, 0, 1].tolist() == [0.5, 2.5, 4.5]
    assert resample_teacher(teacher, (6, 6), (6, 6)) is teacher


@pytest.mark.parametrize("kind", ["mlp", "linear", "conv"])
def test_projectors_map_channels_to_features(kind: str) -> None:
    config = tiny_config(repa={"enabled": True, "projector": kind})
    projector = build_projector(config, 5, 0, "cpu")
    hidden_BND = randomness.normal((2, 16, 16), 0, "noise", 0).requires_grad_()
    projected = projector(hidden_BND, (4, 4))
    assert projected.shape == (2, 16, 5)
    one_token = torch.autograd.grad(projected[0, 5].sum(), hidden_BND)[0][0].any(dim=1)
    # Token 5 of a 4 x 4 grid has eight neighbours, which only a convolution looks at.
    assert int(one_token.sum()) == (9 if kind == "conv" else 1)


def schedule(steps: int = 1000, **stop: Any) -> RepaSchedule:
    return RepaSchedule(tiny_config(steps=steps, repa={"enabled": True, "weight": 0.5, "stop": stop}))


def test_fixed_alignment_ends_at_once() -> None:
    weights = [schedule(kind="fixed", end=0.1).weight(step) for step in (0, 99, 100, 999)]
    assert weights == [0.5, 0.5, 0.0, 0.0]


def test_linear_alignment_fades() -> None:
    linear = schedule(kind="linear", start=0.10, end=0.25)
    weights = [linear.weight(step) for step in (0, 100, 175, 249, 250)]
    assert weights == pytest.approx([0.5, 0.5, 0.25, 0.5 / 150, 0.0])


def test_alignment_that_is_off_has_no_weight() -> None:
    assert RepaSchedule(tiny_config()).weight(0) == 0.0


def test_gradients_that_keep_pointing_apart_end_alignment() -> None:
    cosine = schedule(kind="gradient_cosine")
    assert [step for step in range(0, 200) if cosine.wants_probe(step)] == [0, 50, 100, 150]
    for value in (0.5, -0.9, -0.9, -0.9, -0.9, -0.9, -0.9):
        cosine.observe(value)  # the average is below 0 from the fifth look at -0.9 on
    assert cosine.weight(10) == 0.5
    cosine.observe(-0.9)
    assert cosine.weight(10) == 0.0
    assert not cosine.wants_probe(50)
    cosine.observe(1.0)
    cosine.observe(1.0)
    assert cosine.weight(10) == 0.0, "an end is for good"


def test_a_positive_average_starts_the_count_anew_and_the_end_comes_anyway() -> None:
    cosine = schedule(kind="gradient_cosine", end=0.3)
    for value in (-0.1, -0.1, 1.0, -0.1, -0.1):
        cosine.observe(value)
    assert cosine.weight(299) == 0.5
    assert cosine.weight(300) == 0.0


def test_the_schedule_remembers() -> None:
    one, other = schedule(kind="gradient_cosine"), schedule(kind="gradient_cosine")
    for _ in range(2):
        one.observe(-1.0)
    other.load_state_dict(one.state_dict())
    other.observe(-1.0)
    assert (one.weight(0), other.weight(0)) == (0.5, 0.0)


def test_gradient_cosine_of_known_gradients() -> None:
    hidden = torch.ones(1, 2, 2, requires_grad=True)
    assert gradient_cosine(hidden.sum(), 3 * hidden.sum(), hidden) == pytest.approx(1.0)
    assert gradient_cosine(hidden.sum(), -hidden.sum(), hidden) == pytest.approx(-1.0)
    assert gradient_cosine(hidden[0, 0].sum(), hidden[0, 1].sum(), hidden) == pytest.approx(0.0)
