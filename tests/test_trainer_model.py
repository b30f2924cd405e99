"""The transformer: initial weights, absent conditions, and that every parameter can learn."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from tests.fakes.trainer_parts import SHAPES, random_conditions, random_model, randomise, tiny_config
from trainer import randomness
from trainer.data.sample import Conditions
from trainer.model.attention import Attention, RmsNorm
from trainer.model.conditioning import STREAMS
from trainer.model.nanodit import build
from trainer.model.patches import from_patches, to_patches
from trainer.model.positions import positions_2d
from trainer.model.tread import Route, keep_from_noise
from trainer.objective.repa import build_projector

T_B = torch.tensor([0.05, 0.3, 0.6, 0.95])


def images(batch: int = 4) -> torch.Tensor:
    return randomness.normal((batch, 3, 8, 8), 3, "noise", 0)


def present(**masks: list[bool]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(mask) for name, mask in masks.items()}


def everywhere(value: bool, batch: int = 4) -> dict[str, torch.Tensor]:
    return present(**{name: [value] * batch for name in STREAMS})


# ---- initial weights -------------------------------------------------------------------------------------------------


def test_a_fresh_model_predicts_zero_and_its_blocks_are_identities() -> None:
    built = build(tiny_config().model, SHAPES, run_seed=0)
    output = built(images(), T_B, random_conditions(4), tap=3)
    assert not output.x_BCHW.any()
    first = built(images(), T_B, random_conditions(4), tap=0).hidden_BND
    assert torch.equal(first, output.hidden_BND)


def test_arms_of_one_seed_share_their_initial_weights() -> None:
    config = tiny_config()
    one = build(config.model, SHAPES, 3).state_dict()
    fewer_streams = build(config.model, dataclasses.replace(SHAPES, patch_width=0, pose_joints=0), 3).state_dict()
    assert set(fewer_streams) < set(one)
    assert all(torch.equal(one[name], value) for name, value in fewer_streams.items())
    build_projector(tiny_config(repa={"enabled": True}), 8, 3, "cpu")
    again = build(config.model, SHAPES, 3).state_dict()
    assert all(torch.equal(one[name], value) for name, value in again.items())


def test_depth_adds_blocks_without_touching_the_others() -> None:
    short = build(tiny_config().model, SHAPES, 3).state_dict()
    deep = build(tiny_config().model.model_copy(update={"depth": 5}), SHAPES, 3).state_dict()
    assert all(torch.equal(deep[name], value) for name, value in short.items())


def test_seeds_differ_and_matrices_are_xavier() -> None:
    one, other = (build(tiny_config().model, SHAPES, seed).blocks[0].mlp.fc1.weight for seed in (0, 1))
    assert not torch.equal(one, other)
    bound = (6 / (16 + 64)) ** 0.5
    assert 0.9 * bound < one.abs().max() <= bound
    assert abs(float(one.detach().mean())) < 0.1 * bound


# ---- conditions ------------------------------------------------------------------------------------------------------


def test_a_stream_that_is_missing_equals_one_that_every_sample_dropped() -> None:
    built = random_model()
    dropped = built(images(), T_B, random_conditions(4), everywhere(False)).x_BCHW
    torch.testing.assert_close(built(images(), T_B, Conditions(), {}).x_BCHW, dropped, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", STREAMS)
def test_a_dropped_stream_does_not_leak_its_content(name: str) -> None:
    built = random_model()
    masks = everywhere(True) | {name: torch.tensor([True, False, True, False])}
    one, other = random_conditions(4, seed=0), random_conditions(4, seed=1)
    field = {"text": "text_BTD", "cls": "cls_BD", "patches": "patches_BPD", "pose": "pose_BJ3"}[name]
    swapped = dataclasses.replace(one, **{field: getattr(other, field)})
    before, after = (built(images(), T_B, conditions, masks).x_BCHW for conditions in (one, swapped))
    torch.testing.assert_close(before[1::2], after[1::2], rtol=0, atol=0)
    assert not torch.allclose(before[::2], after[::2])


def test_a_dropped_stream_is_one_null_token_whatever_the_length() -> None:
    built = random_model()
    conditions = random_conditions(4)
    masks = everywhere(True) | {"text": torch.tensor([True, False, True, True])}
    group = built.conditioning(conditions, masks, (4,)).groups[0]
    text = group.mask_G11S[1, 0, 0, : SHAPES.text_length]
    assert text.tolist() == [True] + [False] * (SHAPES.text_length - 1)
    assert torch.equal(group.tokens_GSD[1, 0], built.conditioning.embed["text"].null_D)


def test_padding_of_captions_changes_nothing() -> None:
    built = random_model()
    conditions = random_conditions(4)
    longer = dataclasses.replace(
        conditions,
        text_BTD=torch.cat([conditions.text_BTD, torch.full((4, 7, SHAPES.text_width), 9.0)], dim=1),
        text_mask_BT=torch.cat([conditions.text_mask_BT, torch.zeros(4, 7, dtype=torch.bool)], dim=1),
    )
    one, padded = (built(images(), T_B, batch).x_BCHW for batch in (conditions, longer))
    torch.testing.assert_close(one, padded, rtol=1e-5, atol=1e-5)


def test_grouping_by_length_does_not_change_predictions() -> None:
    built = random_model()
    conditions = random_conditions(4)
    masks = present(
        text=[True, True, False, True],
        cls=[False, True, True, False],
        patches=[False, True, False, False],
        pose=[False, True, True, False],
    )
    keep_BK = keep_from_noise(randomness.uniform((4, 16), 0, "route", 0), 8)
    together = built(images(), T_B, conditions, masks, Route(keep_BK, 1, 2), tap=2)
    for row in range(4):
        index = torch.tensor([row])
        alone = built(
            images()[index],
            T_B[index],
            conditions.select(index),
            {name: mask[index] for name, mask in masks.items()},
            Route(keep_BK[index], 1, 2),
            tap=2,
        )
        torch.testing.assert_close(together.x_BCHW[index], alone.x_BCHW, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.hidden_BND[index], alone.hidden_BND, rtol=1e-4, atol=1e-4)


def test_cls_drives_the_modulation_too() -> None:
    built = random_model()
    with torch.no_grad():
        for block in built.blocks:
            block.cross.out.weight.zero_()
    one, other = (random_conditions(4, seed=seed) for seed in (0, 1))
    swapped = dataclasses.replace(one, cls_BD=other.cls_BD)
    assert not torch.allclose(built(images(), T_B, one).x_BCHW, built(images(), T_B, swapped).x_BCHW)


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_rms_norm_matches_the_library_forth_and_back() -> None:
    x = randomness.normal((3, 5, 2, 8), 0, "noise", 0).double().requires_grad_()
    torch.testing.assert_close(RmsNorm.apply(x), rms_norm(x, (8,), eps=1e-6))
    assert torch.autograd.gradcheck(RmsNorm.apply, (x,))


def test_attention_is_softmax_of_normalised_queries_and_keys() -> None:
    attention = Attention(16, 2)
    randomise(attention)
    x_BND, context_BSD = (randomness.normal((2, length, 16), 0, "noise", length) for length in (3, 5))
    mask_B11S = torch.tensor([[1, 1, 1, 1, 0], [1, 0, 1, 1, 1]], dtype=torch.bool)[:, None, None]
    heads = [
        part.unflatten(-1, (2, 8)) for part in (attention.q(x_BND), attention.k(context_BSD), attention.v(context_BSD))
    ]
    query, key = (rms_norm(part, (8,), eps=1e-6) for part in heads[:2])
    query = query * attention.gain_D.view(2, 8)
    expected = scaled_dot_product_attention(
        *(part.transpose(1, 2) for part in (query, key, heads[2])), attn_mask=mask_B11S
    )
    torch.testing.assert_close(
        attention(x_BND, context_BSD, mask_B11S), attention.out(expected.transpose(1, 2).flatten(2))
    )


def test_patches_can_be_put_together_again() -> None:
    image_BCHW = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    patches_BNF = to_patches(image_BCHW, 2)
    assert torch.equal(from_patches(patches_BNF, (2, 3), 2), image_BCHW)
    assert torch.equal(patches_BNF[0, 1], image_BCHW[0, :, :2, 2:4].flatten())


def test_positions_tell_rows_from_columns() -> None:
    positions_ND = positions_2d((3, 4), 16, torch.device("cpu"))
    grid = positions_ND.unflatten(0, (3, 4))
    assert torch.equal(grid[1, 0, :8], grid[1, 3, :8])
    assert torch.equal(grid[0, 2, 8:], grid[2, 2, 8:])
    assert len(positions_ND.unique(dim=0)) == 12


def test_a_gradient_reaches_every_parameter() -> None:
    built = random_model()
    masks = present(
        text=[True, False, True, True],
        cls=[True, False, True, True],
        patches=[True, False, True, True],
        pose=[True, False, True, True],
    )
    output = built(images(), T_B, random_conditions(4), masks)
    (output.x_BCHW - images()).square().sum().backward()
    without = [
        name for name, parameter in built.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []
