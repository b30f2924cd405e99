"""The switches of the transformer: each changes what is predicted, each is what it says, and all of it can learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.fakes.trainer_parts import SHAPES, NoiseSource, random_conditions, tiny_config
from trainer import randomness
from trainer.control import StopRequest
from trainer.data.batches import Batches
from trainer.model.nanodit import NanoDiT, build
from trainer.model.positions import positions_2d, rotate, rotation_2d
from trainer.model.tread import Route, keep_from_noise
from trainer.optim.groups import parameter_groups
from trainer.step import Learner

T_B = torch.tensor([0.05, 0.3, 0.6])
TINY_MODEL = {"width": 16, "depth": 4, "heads": 2, "patch": 2}
SHARED = {"kind": "shared", "rank": 3}
SWITCHES: dict[str, dict[str, Any]] = {
    "bottleneck": {"bottleneck": 5},
    "shared adaLN": {"adaln": SHARED},
    "no gates": {"gates": False},
    "no final modulation": {"final_modulation": False},
    "no QK-norm": {"qk_norm": False},
    "rope": {"positions": "rope"},
    "swiglu": {"mlp": "swiglu"},
    "rms": {"norm": "rms"},
    "no norm of conditions": {"condition_norm": False},
    "no type embeddings": {"type_embeddings": False},
    "null joints": {"null_joints": True},
}
POSITIONS = ("sincos", "rope")


def model(**switches: Any) -> NanoDiT:
    """A model whose parameters are noise that depends on their names only, so that models share what they can."""
    built = NanoDiT(tiny_config(model={**TINY_MODEL, **switches}).model, SHAPES)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            parameter.copy_(0.2 * randomness.normal(parameter.shape, 0, "init", name))
    return built


def images(height: int = 8, width: int = 8) -> torch.Tensor:
    return randomness.normal((3, 3, height, width), 3, "noise", 0)


def conditions() -> Any:
    """Conditions of three samples; every third joint is not seen."""
    found = random_conditions(3)
    found.pose_BJ3[:, ::3, 2] = 0.0
    return found


def predict(built: NanoDiT, route: Route | None = None, **size: int) -> torch.Tensor:
    return built(images(**size), T_B, conditions(), route=route).x_BCHW


@pytest.mark.parametrize("switch", SWITCHES.values(), ids=SWITCHES)
def test_a_switch_changes_the_prediction_and_a_gradient_reaches_every_parameter(switch: dict[str, Any]) -> None:
    built = model(**switch)
    predicted = predict(built)
    assert float((predicted - predict(model())).detach().square().mean().sqrt()) > 1e-3
    present = {name: torch.tensor([True, False, True]) for name in ("text", "cls", "patches", "pose")}
    output = built(images(), T_B, conditions(), present)
    (output.x_BCHW - images()).square().sum().backward()
    without = [name for name, parameter in built.named_parameters() if parameter.grad is None]
    without += [name for name, parameter in built.named_parameters() if not parameter.grad.any()]
    assert without == []


def test_parts_that_are_switched_off_have_no_parameters() -> None:
    off = {"final_modulation": False, "qk_norm": False, "type_embeddings": False}
    gone = {name for name, _ in model().named_parameters()} - {name for name, _ in model(**off).named_parameters()}
    assert {name.rpartition(".")[2] for name in gone} == {"gain_D", "kind_D", "weight", "bias"}
    assert {name for name in gone if name.endswith((".weight", ".bias"))} == {"modulation.weight", "modulation.bias"}


# ---- initial weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaln", [{}, SHARED])
def test_gated_blocks_start_as_identities_and_learn_at_once(adaln: dict[str, Any]) -> None:
    built = build(tiny_config(model={**TINY_MODEL, "adaln": adaln}).model, SHAPES, 0)
    states = [built(images(), T_B, conditions(), tap=block).hidden_BND for block in (0, 3)]
    assert torch.equal(states[0], states[1])
    assert not predict(built).any()
    with torch.no_grad():
        built.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    predict(built).square().sum().backward()
    names = (
        ("shared_modulation.weight", "blocks.0.modulation.lora_up.weight") if adaln else ("blocks.0.modulation.weight",)
    )
    assert all(built.get_parameter(name).grad.any() for name in names)


def test_blocks_without_gates_do_not_start_as_identities() -> None:
    built = build(tiny_config(model={**TINY_MODEL, "gates": False}).model, SHAPES, 0)
    states = [built(images(), T_B, conditions(), tap=block).hidden_BND for block in (0, 3)]
    assert not torch.allclose(states[0], states[1])


def test_a_switch_leaves_the_initial_weights_of_everything_else_alone() -> None:
    plain = build(tiny_config(model=TINY_MODEL).model, SHAPES, 3).state_dict()
    for switch in SWITCHES.values():
        switched = build(tiny_config(model={**TINY_MODEL, **switch}).model, SHAPES, 3).state_dict()
        both = [name for name in switched if name in plain and switched[name].shape == plain[name].shape]
        assert len(both) > 40
        assert all(torch.equal(plain[name], switched[name]) for name in both)


# ---- each is what it says --------------------------------------------------------------------------------------------


def test_a_shared_modulation_plus_low_rank_ones_equals_full_ones_of_their_sum() -> None:
    shared, full = model(adaln=SHARED), model()
    with torch.no_grad():
        for index, block in enumerate(shared.blocks):
            low_rank = block.modulation.lora_up.weight @ block.modulation.lora_down.weight
            assert torch.linalg.matrix_rank(low_rank) == 3
            full.blocks[index].modulation.weight.copy_(shared.shared_modulation.weight + low_rank)
            full.blocks[index].modulation.bias.copy_(shared.shared_modulation.bias)
    torch.testing.assert_close(predict(shared), predict(full), rtol=1e-4, atol=1e-4)


def test_a_bottleneck_is_a_linear_map_of_low_rank() -> None:
    narrow, full = model(bottleneck=5), model()
    with torch.no_grad():
        full.patches.weight.copy_(narrow.patches.wide.weight @ narrow.patches.narrow.weight)
        full.patches.bias.copy_(narrow.patches.wide.bias)
    assert narrow.patches.narrow.bias is None
    torch.testing.assert_close(predict(narrow), predict(full), rtol=1e-4, atol=1e-4)


def test_null_joints_hide_what_is_not_seen_and_nothing_else() -> None:
    embed = model(null_joints=True).conditioning.embed["pose"]
    pose_BJ3 = conditions().pose_BJ3
    moved_BJ3 = pose_BJ3.clone()
    moved_BJ3[..., :2] += 1.0
    before, after = embed(pose_BJ3), embed(moved_BJ3)
    assert torch.equal(before[:, ::3], after[:, ::3])
    assert not torch.isclose(before, after).all(dim=-1)[:, 1::3].any()


def test_rms_norm_keeps_the_mean() -> None:
    x_BND = randomness.normal((1, 2, 16), 0, "noise", 0) + 5.0
    kept, lost = (model(norm=name).norm(x_BND).mean() for name in ("rms", "layer"))
    assert kept > 0.9
    assert abs(lost) < 1e-5


@pytest.mark.parametrize(("switch", "muon"), [({"mlp": "swiglu"}, {"gate", "fc1", "fc2"}), ({}, {"fc1", "fc2"})])
def test_muon_moves_the_matrices_of_either_mlp_and_no_modulation(switch: dict[str, Any], muon: set[str]) -> None:
    groups = parameter_groups(model(**switch, adaln=SHARED, bottleneck=5), use_muon=True)
    assert {name.split(".")[3] for name in groups.muon if ".mlp." in name} == muon
    assert not [name for name in groups.muon if "modulation" in name or "patches" in name]
    expected = {
        "shared_modulation.weight",
        "blocks.0.modulation.lora_up.weight",
        "blocks.0.modulation.lora_down.weight",
    }
    assert expected | {"patches.narrow.weight", "patches.wide.weight"} <= set(groups.decayed)


def test_blocks_that_are_computed_again_give_the_same_gradients_with_everything_switched_on() -> None:
    switched = {"bottleneck": 5, "adaln": SHARED, "positions": "rope", "mlp": "swiglu", "norm": "rms"}
    block = {**TINY_MODEL, **switched, "maskdit": {"enabled": True, "decoder_depth": 1}}
    moved = []
    for kind in ("none", "full"):
        config = tiny_config(model=block, activation_checkpointing={"kind": kind})
        source = NoiseSource(config, 0)
        learner = Learner(config, source.streams, 0, torch.device("cpu"))
        assert learner.step(Batches(source, 0, config.samples_per_step), 0, StopRequest()) is not None
        moved.append(learner.model.state_dict())
    assert all(torch.equal(moved[0][name], moved[1][name]) for name in moved[0])


# ---- positions -------------------------------------------------------------------------------------------------------


def test_rotation_makes_products_depend_on_the_distance_alone() -> None:
    grid, q_E, k_E = (5, 7), *randomness.normal((2, 8), 0, "noise", 0)
    rotation = rotation_2d(grid, 8, torch.device("cpu"))
    turned_q, turned_k = (rotate(part.expand(1, 35, 1, 8), rotation)[0, :, 0].unflatten(0, grid) for part in (q_E, k_E))
    products = torch.einsum("abe,cde->abcd", turned_q, turned_k)
    torch.testing.assert_close(products[0, 0, :4, :5], products[1, 2, 1:, 2:], rtol=1e-4, atol=1e-5)
    assert not torch.isclose(products[0, 0, 1, 0], products[0, 0, 0, 0])
    assert not torch.isclose(products[0, 0, 1, 0], products[0, 0, 0, 1])
    torch.testing.assert_close(turned_q.norm(dim=-1), q_E.norm().expand(5, 7))


def test_only_self_attention_turns() -> None:
    built, seen = model(positions="rope"), []
    for block in built.blocks:
        for part in (block.self, block.cross):
            part.register_forward_pre_hook(
                lambda module, _, named: seen.append((module, named.get("rotation_BNE") is not None)), with_kwargs=True
            )
    predict(built)
    assert all(turns == any(module is block.self for block in built.blocks) for module, turns in seen)
    assert len(seen) == 8


@pytest.mark.parametrize("positions", POSITIONS)
def test_positions_travel_with_routed_tokens(positions: str) -> None:
    built = model(positions=positions)
    keep_BK = keep_from_noise(randomness.uniform((3, 16), 0, "route", 0), 8)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    one, other = (predict(built, Route(keep, 1, 2)) for keep in (keep_BK, keep_BK[:, order]))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    everything = Route(torch.arange(16).expand(3, 16), 1, 2)
    torch.testing.assert_close(predict(built, everything), predict(built), rtol=1e-4, atol=1e-4)
    if positions == "rope":
        built.turns = False
        assert not torch.allclose(predict(built, Route(keep_BK, 1, 2)), one)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("size", [(8, 12), (12, 8), (2, 16)])
def test_any_grid_is_drawn_routed_or_not(positions: str, size: tuple[int, int]) -> None:
    built, tokens = model(positions=positions), size[0] * size[1] // 4
    keep_BK = keep_from_noise(randomness.uniform((3, tokens), 0, "route", 0), tokens // 2)
    dense, routed = (predict(built, route, height=size[0], width=size[1]) for route in (None, Route(keep_BK, 1, 2)))
    assert dense.shape == routed.shape == (3, 3, *size)
    assert torch.isfinite(dense).all()
    assert not torch.allclose(dense, routed)


@pytest.mark.parametrize("positions", POSITIONS)
def test_in_low_precision_the_stream_through_the_blocks_stays_in_full_precision(positions: str) -> None:
    built = model(positions=positions, maskdit={"enabled": True, "decoder_depth": 1})
    route = Route(keep_from_noise(randomness.uniform((3, 16), 0, "route", 0), 8), 0, 3)
    exact = predict(built, route)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = built(images(), T_B, conditions(), route=route, tap=4)
    assert output.hidden_BND.dtype == torch.float32
    error = float(((output.x_BCHW.float() - exact).norm() / exact.norm()).detach())
    assert 0 < error < 0.03


@pytest.mark.parametrize("positions", POSITIONS)
def test_every_place_of_a_grid_is_another_one(positions: str) -> None:
    """Equal patches and equal conditions: what differs in the prediction comes from the places alone."""
    built = model(positions=positions)
    # Rotation says where tokens are to each other, so it needs tokens that differ: one bright patch.
    z_BCHW = torch.zeros(3, 3, 6, 10)
    z_BCHW[:, :, :2, :2] = 1.0
    hidden_BND = built(z_BCHW, T_B, conditions(), tap=3).hidden_BND
    assert len(hidden_BND[0].detach().mul(1e3).round().unique(dim=0)) == 15


@pytest.mark.parametrize("make", [positions_2d, lambda *place: rotation_2d(*place)[0]])
def test_a_smaller_grid_is_a_corner_of_a_larger_one(make: Any) -> None:
    cpu = torch.device("cpu")
    small, large = make((2, 3), 8, cpu), make((4, 6), 8, cpu).unflatten(0, (4, 6))
    assert torch.equal(small.unflatten(0, (2, 3)), large[:2, :3])
    assert len(large.flatten(0, 1).unique(dim=0)) == 24
