"""Token routing: which tokens are kept, and that routed tokens come back untouched."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.trainer_parts import random_conditions, random_model
from trainer import randomness
from trainer.model.nanodit import NanoDiT
from trainer.model.tread import Route, gather_tokens, keep_from_noise, scatter_tokens

sizes = st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 5)).flatmap(
    lambda size: st.tuples(st.just(size), st.integers(1, size[1]), st.integers(0, 2**20))
)


@given(sizes)
def test_kept_indices_are_ascending_distinct_and_the_smallest_noise(case: tuple) -> None:
    (batch, tokens, _), kept, seed = case
    noise_BN = randomness.uniform((batch, tokens), seed, "route", 0)
    keep_BK = keep_from_noise(noise_BN, kept)
    assert keep_BK.shape == (batch, kept)
    assert (keep_BK.diff(dim=1) > 0).all()
    for noise_N, keep_K in zip(noise_BN, keep_BK, strict=True):
        chosen = torch.zeros(tokens, dtype=torch.bool).index_fill(0, keep_K, True)
        assert chosen.all() or noise_N[chosen].max() <= noise_N[~chosen].min()


@given(sizes)
def test_scatter_undoes_gather_and_leaves_routed_tokens_bit_for_bit(case: tuple) -> None:
    (batch, tokens, width), kept, seed = case
    x_BND = randomness.normal((batch, tokens, width), seed, "noise", 0)
    before = x_BND.clone()
    keep_BK = keep_from_noise(randomness.uniform((batch, tokens), seed, "route", 0), kept)
    kept_BKD = gather_tokens(x_BND, keep_BK)
    assert torch.equal(scatter_tokens(x_BND, kept_BKD, keep_BK), x_BND)
    changed = scatter_tokens(x_BND, kept_BKD + 1, keep_BK)
    is_kept_BN = torch.zeros(batch, tokens, dtype=torch.bool).scatter(1, keep_BK, True)
    assert torch.equal(changed[~is_kept_BN], before[~is_kept_BN])
    assert torch.equal(changed[is_kept_BN], before[is_kept_BN] + 1)
    assert torch.equal(x_BND, before), "scatter works out of place"


def test_every_sample_has_its_own_mask() -> None:
    keep_BK = keep_from_noise(randomness.uniform_rows((64,), 0, "route", 0, range(8)), 32)
    assert len({tuple(row) for row in keep_BK.tolist()}) == 8


def predict(built: NanoDiT, route: Route | None, tap: int | None = None) -> tuple:
    z_BCHW = randomness.normal((3, 3, 8, 8), 0, "noise", 0)
    return built(z_BCHW, torch.tensor([0.1, 0.5, 0.9]), random_conditions(3), None, route, tap)


def test_keeping_all_tokens_is_the_dense_model() -> None:
    built = random_model()
    everything = Route(torch.arange(16).expand(3, 16), 1, 2)
    torch.testing.assert_close(predict(built, everything).x_BCHW, predict(built, None).x_BCHW, rtol=0, atol=0)


def test_routing_changes_the_prediction_and_each_mask_matters() -> None:
    built = random_model()
    masks = [keep_from_noise(randomness.uniform((3, 16), seed, "route", 0), 8) for seed in (0, 1)]
    one, two = (predict(built, Route(mask, 1, 2)).x_BCHW for mask in masks)
    assert not torch.allclose(one, two)
    assert not torch.allclose(one, predict(built, None).x_BCHW)


def test_routed_tokens_skip_the_blocks_and_kept_ones_do_not_see_them() -> None:
    built = random_model()
    keep_BK = keep_from_noise(randomness.uniform((3, 16), 0, "route", 0), 8)
    before = predict(built, None, tap=0).hidden_BND
    inside = predict(built, Route(keep_BK, 1, 2), tap=1).hidden_BND
    assert inside.shape == (3, 8, 16)
    with torch.no_grad():
        for parameter in [*built.blocks[1].parameters(), *built.blocks[2].parameters()]:
            parameter.zero_()
    # Blocks of zeros are identities, so after scattering everything equals the state before the first routed block.
    built.blocks[3].modulation.weight.data.zero_()
    built.blocks[3].modulation.bias.data.zero_()
    after = predict(built, Route(keep_BK, 1, 2), tap=3).hidden_BND
    torch.testing.assert_close(after, before)


def test_a_ratio_changes_the_work_and_not_the_parameters() -> None:
    built = random_model()
    shapes = []
    built.blocks[1].mlp.fc1.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape[1]))
    for kept in (4, 12):
        predict(built, Route(keep_from_noise(randomness.uniform((3, 16), 0, "route", 0), kept), 1, 2))
    assert shapes == [4, 12]
