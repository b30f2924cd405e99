"""MaskDiT: what is hidden is hidden, what is drawn for it disturbs nothing, and it is learned to be made up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.fakes.trainer_parts import SHAPES, NoiseSource, random_conditions, random_model, tiny_config
from trainer import randomness
from trainer.control import StopRequest
from trainer.data.batches import Batches
from trainer.model.nanodit import NanoDiT, Output
from trainer.model.patches import from_patches, to_patches
from trainer.model.tread import Route, keep_from_noise
from trainer.objective.draws import StepDraws
from trainer.objective.maskdit import hidden_error
from trainer.optim.groups import parameter_groups
from trainer.size import forward_flops
from trainer.step import Learner

T_B = torch.tensor([0.05, 0.3, 0.6])
TINY_MODEL = {"width": 16, "depth": 4, "heads": 2, "patch": 2}
MASKDIT = {"enabled": True, "decoder_depth": 2}


def config_of(positions: str = "sincos", maskdit: dict[str, Any] = MASKDIT, **changes: Any) -> Any:
    return tiny_config(model={**TINY_MODEL, "positions": positions, "maskdit": maskdit}, **changes)


def model(positions: str = "sincos") -> NanoDiT:
    return random_model(config_of(positions).model)


def predict(built: NanoDiT, z_BCHW: torch.Tensor, route: Route | None = None, tap: int | None = None) -> Output:
    return built(z_BCHW, T_B, random_conditions(3), route=route, tap=tap)


def hidden_route() -> Route:
    return Route(keep_from_noise(randomness.uniform((3, 16), 0, "maskdit", 0), 4), 0, 3)


@pytest.mark.parametrize("positions", ["sincos", "rope"])
def test_hidden_patches_say_nothing_and_the_mask_token_stands_for_them(positions: str) -> None:
    built, route = model(positions), hidden_route()
    patches_BNF = randomness.normal((3, 16, 12), 0, "noise", 0)
    other_BNF = randomness.normal((3, 16, 12), 0, "noise", 1)
    other_BNF = other_BNF.scatter(
        1,
        route.keep_BK[..., None].expand(-1, -1, 12),
        patches_BNF.gather(1, route.keep_BK[..., None].expand(-1, -1, 12)),
    )
    one, other = (from_patches(part, (4, 4), 2) for part in (patches_BNF, other_BNF))
    assert torch.equal(predict(built, one, route).x_BCHW, predict(built, other, route).x_BCHW)
    assert not torch.allclose(predict(built, one).x_BCHW, predict(built, other).x_BCHW)
    before_hidden, before_dense = predict(built, one, route).x_BCHW, predict(built, one).x_BCHW
    with torch.no_grad():
        built.mask_D += 1.0
    assert not torch.allclose(predict(built, one, route).x_BCHW, before_hidden)
    assert torch.equal(predict(built, one).x_BCHW, before_dense), "sampling hides nothing"


def test_the_encoder_sees_few_tokens_and_the_decoder_all_places() -> None:
    built, z_BCHW = model(), torch.ones(3, 3, 8, 8)
    assert len(built.blocks) == 6
    lengths = [predict(built, z_BCHW, hidden_route(), tap).hidden_BND.shape[1] for tap in (0, 3, 4, 5)]
    assert lengths == [4, 4, 16, 16]
    places = predict(built, z_BCHW, hidden_route(), 4).hidden_BND[0]
    assert len(places.detach().mul(1e3).round().unique(dim=0)) == 16, "mask tokens know their places"


def test_the_error_is_that_of_the_hidden_patches() -> None:
    square_BNF = torch.tensor([[[1.0, 3.0], [10.0, 20.0], [5.0, 7.0]], [[2.0, 2.0], [4.0, 4.0], [0.0, 1.0]]])
    keep_BK = torch.tensor([[1], [2]])
    assert hidden_error(square_BNF, keep_BK).tolist() == [4.0, 3.0]


def test_what_is_hidden_is_drawn_apart_from_everything_else() -> None:
    plain, masked, routed = (
        StepDraws(config, 3, 5).of(range(4), (8, 8))
        for config in (tiny_config(), config_of(), tiny_config(tread={"enabled": True, "ratio": 0.75}))
    )
    assert torch.equal(plain.t_B, masked.t_B)
    assert torch.equal(plain.noise_BCHW, masked.noise_BCHW)
    assert all(torch.equal(plain.present[name], mask) for name, mask in masked.present.items())
    assert plain.keep_BK is None
    assert masked.keep_BK.shape == routed.keep_BK.shape == (4, 4)
    assert len({tuple(row) for row in masked.keep_BK.tolist()}) == 4, "every sample has its own mask"
    assert not torch.equal(masked.keep_BK, routed.keep_BK), "a stream of its own"


def learn(batch: int, accumulation: int, **maskdit: Any) -> tuple[Learner, list[dict[str, float]]]:
    """Two optimizer steps on noise, and their losses by name."""
    config = config_of(maskdit={**MASKDIT, **maskdit}, batch=batch, accumulation=accumulation)
    source = NoiseSource(config, 0)
    learner = Learner(config, source.streams, 0, torch.device("cpu"))
    batches = Batches(source, 0, config.samples_per_step)
    results = [learner.step(batches, step, StopRequest()) for step in (0, 1)]
    assert all(result.active_tokens == pytest.approx((4 * 4 + 2 * 16) / 6) for result in results)
    return learner, [dict(zip(learner.loss_names, result.losses_L.tolist(), strict=True)) for result in results]


def test_a_run_learns_to_make_up_what_is_hidden() -> None:
    learner, (first, _) = learn(4, 1)
    assert first["maskdit_loss"] > 0
    assert first["loss"] == pytest.approx(first["flow_loss"] + 0.1 * first["maskdit_loss"])
    fresh = Learner(learner.config, NoiseSource(learner.config, 0).streams, 0, torch.device("cpu"))
    assert not torch.equal(learner.model.mask_D, fresh.model.mask_D), "the mask token is trained"
    _, (again, heavier) = learn(4, 1, weight=5.0)
    assert again["loss"] == pytest.approx(again["flow_loss"] + 5.0 * again["maskdit_loss"])
    assert heavier["flow_loss"] != pytest.approx(learn(4, 1)[1][1]["flow_loss"], rel=1e-6)


def test_micro_batches_change_neither_masks_nor_weights_of_the_losses() -> None:
    (_, whole), (_, halves) = learn(4, 1), learn(2, 2)
    for one, two in zip(whole, halves, strict=True):
        assert two == pytest.approx(one, rel=1e-4)


def test_the_decoder_is_a_part_of_the_transformer() -> None:
    groups = parameter_groups(model(), use_muon=True)
    assert "blocks.5.cross.q.weight" in groups.muon
    assert "mask_D" in groups.plain
    learner, _ = learn(4, 1)
    assert [block.name for block in learner.recorder.blocks][4:] == ["block_04", "block_05", "embed", "head"]
    hidden, dense = (forward_flops(config_of(), SHAPES, is_routed) for is_routed in (True, False))
    assert 0.4 < hidden / dense < 0.8


def test_patches_and_errors_lie_in_the_same_order() -> None:
    image_BCHW = torch.zeros(1, 3, 4, 4)
    image_BCHW[:, :, :2, 2:] = 1.0
    assert to_patches(image_BCHW, 2)[0].mean(dim=1).tolist() == [0.0, 1.0, 0.0, 0.0]
