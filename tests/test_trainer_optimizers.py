"""The update rules one by one: against plain arithmetic and each other, resumed, never waiting for a device."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.fakes.trainer_parts import NoiseSource, tiny, tiny_config
from trainer import rescue, rules, size
from trainer.config import OptimizerConfig, TrainerConfig
from trainer.control import StopRequest
from trainer.data.batches import Batches
from trainer.document import parse_config
from trainer.errors import ConfigError
from trainer.optim.groups import parameter_groups
from trainer.optim.normuon import NorMuon, orthogonal
from trainer.optim.optimizers import PARTS
from trainer.optim.stable_adamw import StableAdamW
from trainer.step import Learner

CPU = torch.device("cpu")
SHAPES = ((6, 10), (10, 4), (7,), (3, 2, 3, 3))
MATRICES = ((6, 10), (10, 4), (5, 5))


def parameters(shapes: tuple[tuple[int, ...], ...], seed: int = 0) -> list[nn.Parameter]:
    source = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=source)) for shape in shapes]


def give_gradients(params: list[nn.Parameter], step: int, factor: float = 1.0) -> None:
    source = torch.Generator().manual_seed(1000 + step)
    for param in params:
        param.grad = factor * torch.randn(param.shape, generator=source)


def learner_of(**changes: Any) -> tuple[Learner, Callable[[int], Any]]:
    """A learner on noise, and what makes it take the step after so many."""
    config = tiny_config(**{"model": {"width": 16, "depth": 2, "heads": 2, "patch": 2}, **changes})
    source = NoiseSource(config, 1)
    learner = Learner(config, source.streams, 1, CPU)
    batches = Batches(source, 1, config.samples_per_step)
    return learner, lambda step: learner.step(batches, step, StopRequest())


def digest(learner: Learner) -> str:
    found = hashlib.sha256()
    for name, param in learner.modules.named_parameters():
        found.update(name.encode() + param.detach().numpy().tobytes())
    return found.hexdigest()


# ---- StableAdamW -----------------------------------------------------------------------------------------------------


class PlainStableAdamW:
    """The update of one tensor in float64 NumPy, with decay rates that change with t, as the paper writes it."""

    def __init__(self, weight: np.ndarray, beta1: float, beta2: float, eps: float, weight_decay: float) -> None:
        self.weight, self.betas, self.eps, self.decay = weight, (beta1, beta2), eps, weight_decay
        self.first, self.second, self.updates = np.zeros_like(weight), np.zeros_like(weight), 0

    def step(self, gradient: np.ndarray, lr: float) -> float:
        self.updates += 1
        t = self.updates
        hat1, hat2 = (beta * (1 - beta ** (t - 1)) / (1 - beta**t) for beta in self.betas)
        self.first = hat1 * self.first + (1 - hat1) * gradient
        self.second = hat2 * self.second + (1 - hat2) * gradient**2
        rms = float(np.sqrt(np.mean(gradient**2 / np.maximum(self.second, self.eps**2))))
        self.weight = self.weight * (1 - lr * self.decay)
        self.weight = self.weight - lr / max(1.0, rms) * self.first / (np.sqrt(self.second) + self.eps)
        return rms


def test_stable_adamw_is_the_published_rule() -> None:
    params = parameters(SHAPES)
    plain = [PlainStableAdamW(p.detach().double().numpy(), 0.8, 0.95, 1e-8, 0.3) for p in params]
    optimizer = StableAdamW(params, betas=(0.8, 0.95), weight_decay=0.3)
    surprises = []
    for step, factor in enumerate((1.0, 0.5, 20.0, 1.0, 300.0, 0.0)):
        give_gradients(params, step, factor)
        optimizer.param_groups[0]["lr"] = lr = 0.01 * (step + 1)
        optimizer.step()
        for param, reference in zip(params, plain, strict=True):
            surprises.append(reference.step(param.grad.double().numpy(), lr))
            np.testing.assert_allclose(param.detach().numpy(), reference.weight, rtol=2e-5, atol=2e-6)
    assert max(surprises) > 2.0, "the clipping was seen at work"
    assert min(surprises) < 1.0


def test_without_surprise_stable_adamw_is_adamw() -> None:
    ours, theirs = parameters(SHAPES), parameters(SHAPES)
    options = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}
    one, other = StableAdamW(ours, **options), torch.optim.AdamW(theirs, **options)
    for step in range(8):
        for params in (ours, theirs):
            give_gradients(params, 0, 0.9**step)  # gradients that shrink: RMS <= 1
        one.step()
        other.step()
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)
    for params in (ours, theirs):
        give_gradients(params, 0, 100.0)
    one.step()
    other.step()
    assert not any(torch.allclose(mine, its, rtol=1e-3) for mine, its in zip(ours, theirs, strict=True))


def test_surprise_is_measured_tensor_by_tensor_and_a_dead_one_stays() -> None:
    params = parameters(((4, 4), (4, 4), (4, 4)))
    alone = parameters(((4, 4), (4, 4), (4, 4)))[:1]
    together, single = StableAdamW(params), StableAdamW(alone)
    still = params[2].detach().clone()
    for step in range(4):
        give_gradients(params, step)
        give_gradients(alone, step)
        params[1].grad *= 1e3**step
        params[2].grad.zero_()
        together.step()
        single.step()
    assert torch.equal(params[0], alone[0])
    assert torch.equal(params[2], still)


# ---- NorMuon and Muon ------------------------------------------------------------------------------------------------


class PlainNorMuon:
    """The update of one matrix in float64 NumPy, but for Newton-Schulz, which is shared."""

    def __init__(self, weight: np.ndarray, momentum: float, beta2: float, weight_decay: float) -> None:
        self.weight, self.momentum, self.beta2, self.decay = weight, momentum, beta2, weight_decay
        self.buffer, self.rows = np.zeros_like(weight), np.zeros(len(weight))

    def step(self, gradient: np.ndarray, lr: float) -> None:
        self.buffer = self.momentum * self.buffer + (1 - self.momentum) * gradient
        ahead = (1 - self.momentum) * gradient + self.momentum * self.buffer
        turned = orthogonal(torch.from_numpy(ahead).float()).double().numpy()
        self.rows = self.beta2 * self.rows + (1 - self.beta2) * (turned**2).mean(axis=1)
        even = turned / np.sqrt(self.rows)[:, None]
        size_ = 0.2 * lr * math.sqrt(even.size) / np.sqrt((even**2).sum())
        self.weight = self.weight * (1 - lr * self.decay) - size_ * even


def test_normuon_is_the_published_rule() -> None:
    params = parameters(MATRICES)
    plain = [PlainNorMuon(p.detach().double().numpy(), 0.9, 0.7, 0.3) for p in params]
    optimizer = NorMuon(params, momentum=0.9, beta2=0.7, weight_decay=0.3)
    for step in range(5):
        give_gradients(params, step)
        optimizer.param_groups[0]["lr"] = lr = 0.01 * (step + 1)
        optimizer.step()
        for param, reference in zip(params, plain, strict=True):
            reference.step(param.grad.double().numpy(), lr)
            # Newton-Schulz runs in bfloat16: one rounding of its input more or less shows in the third digit.
            np.testing.assert_allclose(param.detach().numpy(), reference.weight, rtol=1e-3, atol=1e-3 * lr)


def test_normuon_evens_out_the_rows_and_keeps_the_size_of_an_adamw_update() -> None:
    for shape in MATRICES:
        steps: dict[str, Tensor] = {}
        for name in ("muon", "normuon"):
            (param,) = parameters((shape,))
            build = PARTS[name][1].build
            optimizer = build(OptimizerConfig(name=name, lr=1.0), [{"params": [param], "weight_decay": 0.0}])
            for step in range(3):
                before = param.detach().clone()
                give_gradients([param], step)
                param.grad[0] *= 30.0
                optimizer.step()
            steps[name] = param.detach() - before
        rows = {name: step.square().mean(1).sqrt() for name, step in steps.items()}
        assert float(steps["normuon"].square().mean().sqrt()) == pytest.approx(0.2, rel=1e-4)
        assert float(steps["muon"].square().mean().sqrt()) == pytest.approx(0.2, rel=0.3)
        if shape[0] != shape[1]:
            assert rows["normuon"].std() / rows["normuon"].mean() < rows["muon"].std() / rows["muon"].mean()


@pytest.mark.parametrize("rule", [torch.optim.Muon, NorMuon])
def test_a_matrix_without_gradient_stays_where_it_is(rule: Any) -> None:
    params = parameters(MATRICES)
    before = [param.detach().clone() for param in params]
    optimizer = rule(params, weight_decay=0.0)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))


def test_normuon_takes_matrices_only() -> None:
    with pytest.raises(ValueError, match=r"a parameter of shape \(7,\) belongs to AdamW"):
        NorMuon(parameters(SHAPES))


def test_every_matrix_is_made_orthogonal_alone() -> None:
    """q, k and v of one attention: the singular values of each update by itself lie where Newton-Schulz puts them."""
    learner, step = learner_of(optimizer={"name": "muon", "lr": 0.01})
    for done in range(3):
        before = {name: param.detach().clone() for name, param in learner.modules.named_parameters()}
        result = step(done)
    named = dict(learner.modules.named_parameters())
    for name in learner.optimizer.groups.muon:
        moved = (named[name].detach() - before[name]) / (0.2 * math.sqrt(max(named[name].shape)) * result.lr)
        values = torch.linalg.svdvals(moved)
        assert float(values.max()) < 1.3, name
        # Directions that the gradient hardly has are not lifted to 1: the middle of the spectrum is.
        assert 0.5 < float(values.median()) < 1.3, name


# ---- groups ----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, query: nn.Module) -> None:
        super().__init__()
        self.add_module("self", nn.ModuleDict({"q": query}))


@pytest.mark.parametrize(
    ("part", "kind"),
    [(nn.Embedding(4, 6), "Embedding"), (nn.Conv2d(2, 3, 1), "Conv2d"), (nn.LayerNorm(4), "LayerNorm")],
)
def test_muon_refuses_what_is_no_matrix_of_a_linear_map(part: nn.Module, kind: str) -> None:
    module = nn.ModuleDict({"blocks": nn.ModuleList([Block(nn.Linear(4, 4)), Block(part)])})
    with pytest.raises(ValueError, match=rf"blocks\.1\.self\.q\.weight is named like .* belongs to {kind}; allowed"):
        parameter_groups(module, use_muon=True)
    assert "blocks.1.self.q.weight" in parameter_groups(module, use_muon=False).plain


@pytest.mark.parametrize("name", PARTS)
def test_every_parameter_is_moved_by_one_rule(name: str) -> None:
    learner, _ = learner_of(optimizer={"name": name}, repa={"enabled": True})
    members = [each for names in learner.optimizer.members.values() for each in names]
    assert sorted(members) == sorted(each for each, _ in learner.modules.named_parameters())
    matrices = learner.optimizer.groups.muon
    assert bool(matrices) == (name in ("muon", "normuon")) == learner.config.optimizer.is_orthogonal
    assert list(learner.optimizer.members) == [part.name for part in PARTS[name] if part is not None]


def test_the_names_of_the_configuration_are_those_of_the_table() -> None:
    assert set(typing.get_args(OptimizerConfig.model_fields["name"].annotation)) == set(PARTS)


def test_a_person_reads_who_moves_what() -> None:
    learner, _ = learner_of(optimizer={"name": "normuon", "weight_decay": 0.25})
    head, *rows = [re.split(r"  +", line.rstrip()) for line in learner.optimizer.table().splitlines()]
    assert head == ["group", "optimizer", "tensors", "parameters", "weight decay", "lr x"]
    assert [row[:2] for row in rows] == [["decayed", "adamw"], ["plain", "adamw"], ["muon", "normuon"]]
    groups = learner.optimizer.groups
    assert [int(row[2]) for row in rows] == [len(groups.decayed), len(groups.plain), len(groups.muon)]
    numbers = [int(row[3].replace(",", "")) for row in rows]
    assert sum(numbers) == sum(param.numel() for param in learner.modules.parameters())
    assert [row[4] for row in rows] == ["0.25", "0", "0.25"]


# ---- in training -----------------------------------------------------------------------------------------------------


class TorchAlone:
    """torch's own optimizers over lists of parameters, without anything of ours."""

    def __init__(self, learner: Learner) -> None:
        config, groups = learner.config.optimizer, learner.optimizer.groups
        named = dict(learner.modules.named_parameters())
        decayed, plain, muon = (
            [named[name] for name in names] for names in (groups.decayed, groups.plain, groups.muon)
        )
        in_groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        betas = (config.beta1, config.beta2)
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(in_groups, betas=betas, fused=True)]
        if muon:
            decay, momentum = config.weight_decay, config.momentum
            options: dict[str, Any] = {"weight_decay": decay, "momentum": momentum, "adjust_lr_fn": "match_rms_adamw"}
            self.optimizers.append(torch.optim.Muon(muon, **options))

    def step(self, lr: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_adamw_and_muon_are_torchs_own_to_the_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"optimizer": {"name": name, "lr": 0.02, "weight_decay": 0.1}, "repa": {"enabled": True}}
    ours, our_step = learner_of(**changes)
    theirs, their_step = learner_of(**changes)
    monkeypatch.setattr(theirs.optimizer, "step", TorchAlone(theirs).step)
    for done in range(4):
        our_step(done)
        their_step(done)
        assert digest(ours) == digest(theirs)


def trained(**optimizer: Any) -> str:
    learner, step = learner_of(optimizer={"lr": 0.02, "weight_decay": 0.1, **optimizer})
    for done in range(3):
        step(done)
    return digest(learner)


def test_each_switch_changes_the_weights() -> None:
    variants: list[dict[str, Any]] = [{"name": name} for name in PARTS]
    variants += [{"name": "normuon", "normuon_beta2": 0.5}, {"name": "normuon", "momentum": 0.5}]
    variants += [{"name": "stable_adamw", "beta1": 0.5}, {"name": "stable_adamw", "beta2": 0.5}]
    found = [trained(**variant) for variant in variants]
    assert len(set(found)) == len(variants)


@pytest.mark.parametrize("name", PARTS)
def test_a_run_goes_on_bit_by_bit_where_it_was_saved(name: str) -> None:
    changes = {"optimizer": {"name": name, "lr": 0.02, "weight_decay": 0.1}, "repa": {"enabled": True}}
    whole, step = learner_of(**changes)
    saved = io.BytesIO()
    for done in range(6):
        if done == 3:
            torch.save([whole.modules.state_dict(), whole.optimizer.state_dict()], saved)
        step(done)
    other, step = learner_of(**changes)
    saved.seek(0)
    weights, state = torch.load(saved, weights_only=True)
    other.modules.load_state_dict(weights)
    other.optimizer.load_state_dict(state)
    assert rescue.fits_optimizer(other, state)
    for done in range(3, 6):
        step(done)
    assert digest(other) == digest(whole)


@pytest.mark.parametrize("name", PARTS)
def test_a_short_training_lowers_the_loss(name: str) -> None:
    _, step = learner_of(steps=30, optimizer={"name": name, "lr": 0.01}, data={"size": 8, "samples": 4, "held_out": 4})
    losses = [float(step(done).losses_L[0]) for done in range(30)]
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])


def test_state_of_another_shape_is_not_kept() -> None:
    learner, step = learner_of(optimizer={"name": "normuon"})
    step(0)
    state = copy.deepcopy(learner.optimizer.state_dict())
    state["normuon"]["state"][0]["row_second_moment"] = torch.zeros(3, 1)
    assert not rescue.fits_optimizer(learner, state)
    other, _ = learner_of(optimizer={"name": "stable_adamw"})
    assert not rescue.fits_optimizer(other, state)


class Waits(TorchDispatchMode):
    """Notes every operator that makes the host wait for the device: on a CPU they are called as well."""

    OPERATORS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "_to_copy", "copy_")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(operator).removeprefix("aten.").split(".")[0]
        is_cast = name == "_to_copy" and "device" not in (kwargs or {})
        if name in self.OPERATORS and not is_cast:
            self.found.append(str(operator))
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", PARTS)
def test_an_update_never_waits_for_the_device(name: str) -> None:
    learner, step = learner_of(optimizer={"name": name})
    step(0)
    waits = Waits()
    for _ in range(2):
        give_gradients(list(learner.modules.parameters()), 5)
        with waits:
            learner.optimizer.step(0.01)
    assert waits.found == []
    with waits:
        bool(next(learner.modules.parameters()).sum() > 0)
    assert waits.found, "the watch works"


# ---- configuration and size ------------------------------------------------------------------------------------------


def refused(optimizer: dict[str, Any]) -> Iterator[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        parse_config(tiny(optimizer=optimizer))
    for issue in caught.value.issues:
        yield issue.path, str(issue)


@pytest.mark.parametrize(
    ("optimizer", "path", "words"),
    [
        ({"momentum": 0.5}, "optimizer.momentum", ("0.5", "adamw does not use it", "0.95", "muon or normuon")),
        ({"name": "stable_adamw", "momentum": 0.5}, "optimizer.momentum", ("stable_adamw does not use it", "muon")),
        ({"name": "muon", "normuon_beta2": 0.9}, "optimizer.normuon_beta2", ("0.9", "muon does not", "normuon")),
        ({"name": "normuon", "normuon_beta2": 1.0}, "optimizer.normuon_beta2", ("1.0", "below 1")),
        ({"name": "normuon", "normuon_beta2": -0.1}, "optimizer.normuon_beta2", ("-0.1", "at least 0")),
        ({"name": "nor_muon"}, "optimizer.name", ("nor_muon", "did you mean 'normuon'")),
        ({"name": "muon", "polar_express": True}, "optimizer.polar_express", ("there is no key",)),
    ],
)
def test_a_bad_optimizer_is_refused_with_value_and_fix(
    optimizer: dict[str, Any], path: str, words: tuple[str, ...]
) -> None:
    ((found, text),) = refused(optimizer)
    assert found == path
    assert all(word in text for word in words), text


@pytest.mark.parametrize("name", PARTS)
def test_a_configuration_with_every_default_written_out_is_usable(name: str) -> None:
    whole = json.loads(json.dumps(tiny_config(optimizer={"name": name}).model_dump(mode="json")))
    assert whole["optimizer"]["momentum"] == 0.95
    assert parse_config(whole).optimizer.name == name


def test_the_clip_note_is_for_both_orthogonal_optimizers() -> None:
    def noted(config: TrainerConfig) -> bool:
        return any("Muon step" in note for note in rules.notes(config))

    assert [noted(tiny_config(optimizer={"name": name})) for name in PARTS] == [False, False, True, True]


@pytest.mark.parametrize("name", PARTS)
def test_the_counted_state_is_the_real_one(name: str) -> None:
    learner, _ = learner_of(optimizer={"name": name}, repa={"enabled": True})
    give_gradients(list(learner.modules.parameters()), 0)
    learner.optimizer.step(0.01)
    states = [state for part in learner.optimizer.state_dict().values() for state in part["state"].values()]
    real = sum(value.numel() for state in states for value in state.values() if value.dim())
    source = NoiseSource(learner.config, 1)
    assert size.optimizer_numbers(learner.config, source.streams) == real
