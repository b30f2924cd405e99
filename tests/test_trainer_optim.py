"""How weights move: who moves which parameter, how fast, and what the averages remember."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from tests.fakes.trainer_parts import SHAPES, tiny_config
from trainer.config import EmaConfig, OptimizerConfig
from trainer.model.nanodit import build
from trainer.objective.repa import build_projector
from trainer.optim.ema import Ema, decay
from trainer.optim.groups import parameter_groups
from trainer.optim.optimizers import PARTS, Optimizers
from trainer.optim.schedule import learning_rate

MUON_LEAVES = (
    "self.q", "self.k", "self.v", "self.out", "cross.q", "cross.k", "cross.v", "cross.out", "mlp.fc1", "mlp.fc2"
)  # fmt: skip
DECAYED = {
    "model.patches.weight",
    "model.time.fc1.weight",
    "model.time.fc2.weight",
    "model.conditioning.embed.text.project.weight",
    "model.conditioning.embed.cls.project.weight",
    "model.conditioning.embed.patches.project.weight",
    "model.conditioning.embed.pose.fc1.weight",
    "model.conditioning.embed.pose.fc2.weight",
    "model.blocks.0.modulation.weight",
    "model.blocks.1.modulation.weight",
    "model.modulation.weight",
    "model.head.weight",
    "repa.net.0.weight",
    "repa.net.2.weight",
    "repa.net.4.weight",
}
PLAIN = {
    "model.patches.bias",
    "model.time.fc1.bias",
    "model.time.fc2.bias",
    "model.conditioning.embed.text.kind_D",
    "model.conditioning.embed.text.null_D",
    "model.conditioning.embed.text.project.bias",
    "model.conditioning.embed.cls.kind_D",
    "model.conditioning.embed.cls.null_D",
    "model.conditioning.embed.cls.project.bias",
    "model.conditioning.embed.patches.kind_D",
    "model.conditioning.embed.patches.null_D",
    "model.conditioning.embed.patches.project.bias",
    "model.conditioning.embed.pose.joint_JD",
    "model.conditioning.embed.pose.kind_D",
    "model.conditioning.embed.pose.null_D",
    "model.conditioning.embed.pose.fc1.bias",
    "model.conditioning.embed.pose.fc2.bias",
    "model.blocks.0.modulation.bias",
    "model.blocks.0.self.gain_D",
    "model.blocks.0.cross.gain_D",
    "model.blocks.1.modulation.bias",
    "model.blocks.1.self.gain_D",
    "model.blocks.1.cross.gain_D",
    "model.modulation.bias",
    "model.head.bias",
    "model.smooth.weight",
    "model.smooth.bias",
    "repa.net.0.bias",
    "repa.net.2.bias",
    "repa.net.4.bias",
}


def modules() -> nn.ModuleDict:
    config = tiny_config(repa={"enabled": True}, model={"width": 16, "depth": 2, "heads": 2, "patch": 2})
    return nn.ModuleDict({"model": build(config.model, SHAPES, 0), "repa": build_projector(config, 8, 0, "cpu")})


def test_muon_gets_the_matrices_inside_the_blocks_and_nothing_else() -> None:
    groups = parameter_groups(modules(), use_muon=True)
    assert set(groups.muon) == {f"model.blocks.{block}.{leaf}.weight" for block in (0, 1) for leaf in MUON_LEAVES}
    assert set(groups.decayed) == DECAYED
    assert set(groups.plain) == PLAIN


def test_adamw_alone_decays_the_same_matrices() -> None:
    muon, adamw = (parameter_groups(modules(), use_muon=flag) for flag in (True, False))
    assert adamw.muon == ()
    assert set(adamw.decayed) == set(muon.decayed) | set(muon.muon)
    assert adamw.plain == muon.plain


@pytest.mark.parametrize("name", PARTS)
def test_weight_decay_touches_matrices_only(name: str) -> None:
    trained = modules()
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    optimizer = Optimizers(OptimizerConfig(name=name, weight_decay=0.5), trained)
    for parameter in trained.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(lr=0.1)
    for key, value in trained.state_dict().items():
        factor = 1.0 if key in PLAIN else 0.95
        torch.testing.assert_close(value, factor * before[key], msg=key)


def test_a_muon_step_is_as_large_as_an_adamw_step_is_meant_to_be() -> None:
    trained = modules()
    weight = trained["model"].blocks[0].mlp.fc1.weight
    before = weight.detach().clone()
    for index, parameter in enumerate(trained.parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    Optimizers(OptimizerConfig(name="muon"), trained).step(lr=0.01)
    step = (weight.detach() - before) / 0.01
    # Singular values near 1, scaled by 0.2 sqrt(max(rows, columns)).
    values = torch.linalg.svdvals(step) / (0.2 * math.sqrt(64))
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.5
    assert all(parameter.grad is None for parameter in trained.parameters())


@pytest.mark.parametrize("name", PARTS)
def test_the_state_of_all_rules_is_restored(name: str) -> None:
    def advance(optimizer: Optimizers, trained: nn.ModuleDict, seed: int) -> None:
        source = torch.Generator().manual_seed(seed)
        for parameter in trained.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=source)
        optimizer.step(lr=0.01)

    one, other = modules(), modules()
    config = OptimizerConfig(name=name)
    first, second = Optimizers(config, one), Optimizers(config, other)
    advance(first, one, 0)
    other.load_state_dict(one.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    advance(first, one, 1)
    advance(second, other, 1)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


# ---- schedule --------------------------------------------------------------------------------------------------------


def test_warm_up_then_cosine() -> None:
    config = OptimizerConfig(lr=0.2, warmup_steps=10, final_lr_share=0.1)
    rates = [learning_rate(config, step, 110) for step in (1, 5, 10, 60, 110)]
    assert rates == pytest.approx([0.02, 0.1, 0.2, 0.11, 0.02])


def test_no_warm_up_and_nothing_but_warm_up() -> None:
    assert learning_rate(OptimizerConfig(lr=0.2, final_lr_share=1.0), 1, 5) == 0.2
    assert learning_rate(OptimizerConfig(lr=0.2, warmup_steps=5), 5, 5) == 0.2


# ---- averages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
def test_the_average_weighs_every_update_by_its_age(every: int) -> None:
    model, steps, half_life = nn.Linear(3, 2), 40, 0.1
    ema = Ema(EmaConfig(half_lives=(half_life, 0.5), every=every), model, steps)
    seen = []
    for step in range(1, 31):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3, generator=torch.Generator().manual_seed(step)))
        if step % every == 0:
            seen.append(model.weight.detach().double().clone())
        ema.update(model, step)
    d = decay(half_life, every, steps)
    mass = torch.tensor([d ** (len(seen) - 1 - index) for index in range(len(seen))], dtype=torch.float64)
    expected = (torch.stack(seen) * (mass / mass.sum())[:, None, None]).sum(0)
    torch.testing.assert_close(ema.first.weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_half_of_the_memory_is_younger_than_the_half_life() -> None:
    assert decay(0.05, 1, 800) ** 40 == pytest.approx(0.5)
    assert decay(0.05, 10, 800) ** 4 == pytest.approx(0.5)


def test_the_average_starts_as_the_model_and_first_copies_it() -> None:
    model = nn.Linear(3, 2)
    ema = Ema(EmaConfig(), model, 100)
    assert torch.equal(ema.first.weight, model.weight)
    with torch.no_grad():
        model.weight.add_(1.0)
    assert not torch.equal(ema.first.weight, model.weight)
    ema.update(model, 1)
    assert torch.equal(ema.first.weight, model.weight)
    assert not any(parameter.requires_grad for parameter in ema.first.parameters())


def test_all_parameters_are_averaged() -> None:
    model = build(tiny_config().model, SHAPES, 0)
    ema = Ema(EmaConfig(), model, 100)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.25)
    ema.update(model, 1)
    assert all((parameter == 0.25).all() for parameter in ema.first.parameters())
