"""Alignment end to end: its three ends, its probe, the teacher's grid and routing, and the spatial norm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.fakes.trainer_parts import NoiseSource, WeightSum, randomise, tiny, tiny_config
from trainer import checkpoint, randomness, session, train
from trainer.control import StopRequest
from trainer.data.batches import Batches
from trainer.data.procedural import ProceduralSource
from trainer.model.tread import gather_tokens
from trainer.objective import repa as repa_module
from trainer.objective import repa_schedule
from trainer.objective.auxiliary import MicroBatch
from trainer.objective.draws import StepDraws
from trainer.objective.repa import alignment_loss, resample_teacher, without_common
from trainer.rules import notes
from trainer.step import Learner, _cover

ON = {"enabled": True, "samples": "all"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train in this process on noise, with a checkpoint of every step and a validation that only adds up weights."""
    monkeypatch.setattr(train, "open_source", NoiseSource)
    monkeypatch.setattr(session, "Validation", WeightSum)

    def start(name: str, stop_after: int | None = None, resume: bool = False, **changes: Any) -> Path:
        block = {"checkpoint": {"keep": {"last": 9}}, "validation": {"every": 1, "samples": 4}, **changes}
        config = tmp_path / f"{name}.yaml"
        config.write_text(json.dumps({"seed": 7, "run": name, "trainer": tiny(**block)}))
        code = train.train(config, tmp_path / name, stop_after=stop_after, resume=resume, stop=StopRequest())
        assert code == (75 if stop_after else 0)
        return tmp_path / name

    return start


def lines(run_dir: Path) -> list[dict[str, Any]]:
    files = sorted(run_dir.glob("attempt-*/metrics.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def ends(run_dir: Path) -> list[int]:
    return [line["step"] for line in lines(run_dir) if line.get("event") == "repa_off"]


def steps_with(run_dir: Path, name: str) -> list[int]:
    return [line["step"] for line in lines(run_dir) if line["kind"] == "train" and name in line]


def stored(run_dir: Path, step: int, stem: str) -> bytes:
    return (checkpoint.folder(run_dir, step) / f"{stem}.safetensors").read_bytes()


# ---- ends ------------------------------------------------------------------------------------------------------------

STOPS = {
    "fixed": {"kind": "fixed", "end": 0.5},
    "linear": {"kind": "linear", "start": 0.25, "end": 0.5},
    "gradient_cosine": {"kind": "gradient_cosine", "end": 0.9},
}
OPTIMIZER = {"name": "muon", "lr": 0.01, "weight_decay": 0.1}


@pytest.mark.parametrize(("kind", "last"), [("fixed", 4), ("linear", 4), ("gradient_cosine", 3)])
def test_every_end_is_final_announced_and_frees_the_projector(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, kind: str, last: int
) -> None:
    if kind == "gradient_cosine":  # three looks, one a step, at gradients that point apart
        monkeypatch.setattr(repa_schedule, "PROBE_EVERY_STEPS", 1)
        monkeypatch.setattr(repa_module, "gradient_cosine", lambda *_: -0.5)
    block = {"repa": {**ON, "stop": STOPS[kind]}, "optimizer": OPTIMIZER}
    whole = run("whole", **block)
    assert ends(whole) == [last]
    assert steps_with(whole, "train/repa_loss") == list(range(1, last + 1))
    assert stored(whole, last - 1, "projector") != stored(whole, last, "projector")
    # Neither a gradient nor weight decay moves it any more.
    assert stored(whole, last, "projector") == stored(whole, 8, "projector")
    assert stored(whole, last, "model") != stored(whole, 8, "model")
    run("parts", stop_after=last - 1, **block)
    parts = run("parts", resume=True, **block)
    assert ends(parts) == [last]
    assert all(stored(whole, 8, stem) == stored(parts, 8, stem) for stem in ("model", "projector", "ema_0.05"))


def test_a_linear_end_weighs_less_and_less(run: Callable[..., Path]) -> None:
    run_dir = run("r", repa={**ON, "stop": {"kind": "linear", "start": 0.0, "end": 0.5}})
    found = [line for line in lines(run_dir) if line["kind"] == "train" and "train/repa_loss" in line]
    weights = [(line["train/loss"] - line["train/flow_loss"]) / line["train/repa_loss"] for line in found]
    assert weights == pytest.approx([0.5, 0.375, 0.25, 0.125], rel=1e-3)


# ---- the probe -------------------------------------------------------------------------------------------------------


def test_a_probe_measures_and_changes_no_bit(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repa_schedule, "PROBE_EVERY_STEPS", 2)
    block = {"accumulation": 2, "tread": {"enabled": True}}
    silent, probed = (
        run(name, repa={**ON, "probe": probe, "stop": {"end": 0.9}}, **block)
        for name, probe in (("silent", False), ("probed", True))
    )
    assert steps_with(silent, "train/repa_cosine") == []
    assert steps_with(probed, "train/repa_cosine") == [1, 3, 5, 7]
    cosines = [line["train/repa_cosine"] for line in lines(probed) if "train/repa_cosine" in line]
    assert all(-1 <= cosine <= 1 for cosine in cosines)
    assert len(set(cosines)) == 4
    for stem in ("model", "projector", "ema_0.05"):
        assert stored(silent, 8, stem) == stored(probed, 8, stem), stem


def test_a_probe_ends_nothing_that_another_rule_ends(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repa_schedule, "PROBE_EVERY_STEPS", 1)
    monkeypatch.setattr(repa_module, "gradient_cosine", lambda *_: -1.0)
    assert ends(run("r", repa={**ON, "probe": True, "stop": {"end": 0.75}})) == [6]


def test_a_dead_probe_is_noted() -> None:
    found = notes(tiny_config(repa={**ON, "probe": True, "stop": {"kind": "gradient_cosine"}}))
    assert any("repa.probe has no effect" in note for note in found)


# ---- grids and routing -----------------------------------------------------------------------------------------------


class Aligned(NamedTuple):
    """The first micro-batch of a learner, and the sum of its alignment losses."""

    learner: Learner
    micro: MicroBatch
    total: Tensor

    @property
    def hidden_BND(self) -> Tensor:
        assert self.micro.output.hidden_BND is not None
        return self.micro.output.hidden_BND

    @property
    def teacher_BPF(self) -> Tensor:
        assert self.micro.batch.conditions.patches_BPD is not None
        return self.micro.batch.conditions.patches_BPD.float()

    def by_hand(self, teacher_BNF: Tensor) -> Tensor:
        return alignment_loss(self.learner.modules["repa"](self.hidden_BND, (4, 4)), teacher_BNF).sum()


def aligned(after_block: int, **changes: Any) -> Aligned:
    """Portraits of 4 x 4 tokens and 2 x 2 teacher patches; blocks 1 and 2 of 4 are routed."""
    config = tiny_config(
        data={"size": 16, "samples": 8, "held_out": 4},
        model={"width": 16, "depth": 4, "heads": 2, "patch": 4},
        tread={"enabled": True, "first": 1, "last": 2},
        repa={**ON, "after_block": after_block, **changes},
    )
    source = ProceduralSource(config)
    learner = Learner(config, source.streams, 1, torch.device("cpu"))
    randomise(learner.modules)
    batch, draws = Batches(source, 1, 4).batch(0, range(4)), StepDraws(config, 1, 0)
    (loss,) = learner.auxiliaries
    micro = learner._forward(batch, draws.of(range(4), (16, 16)), [_cover(loss, 0, draws)])
    return Aligned(learner, micro, loss.loss(micro, torch.arange(4)))


@pytest.mark.parametrize(("block", "tokens"), [(0, 16), (1, 8), (2, 8), (3, 16)])
def test_a_block_before_among_or_behind_the_routed_ones_is_aligned_with_its_own_tokens(block: int, tokens: int) -> None:
    case = aligned(block)
    assert case.micro.batch.conditions.patch_grid == (2, 2)
    assert case.hidden_BND.shape[1] == tokens
    teacher_BNF = resample_teacher(case.teacher_BPF, (2, 2), (4, 4))
    if tokens == 8:
        assert case.micro.route is not None
        teacher_BNF = gather_tokens(teacher_BNF, case.micro.route.keep_BK)
    torch.testing.assert_close(case.total, case.by_hand(teacher_BNF))


@pytest.mark.parametrize("projector", ["mlp", "linear", "conv"])
def test_every_projector_learns_behind_the_routed_blocks(projector: str) -> None:
    case = aligned(3, projector=projector)
    case.total.backward()
    assert all(bool(parameter.grad.any()) for parameter in case.learner.modules["repa"].parameters())


# ---- spatial norm ----------------------------------------------------------------------------------------------------


def test_the_spatial_norm_leaves_what_differs_between_patches() -> None:
    patches = randomness.normal((2, 9, 5), 0, "noise", 0)
    shared = 7.0 * randomness.normal((2, 1, 5), 0, "noise", 1)
    found = without_common(patches * 3.0 + shared)
    torch.testing.assert_close(found, without_common(patches), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.mean(dim=1), torch.zeros(2, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.std(dim=1, correction=0), torch.ones(2, 5), rtol=1e-4, atol=0)


@pytest.mark.parametrize("count", [1, 4])
def test_features_without_any_difference_are_no_teacher_and_no_nan(count: int) -> None:
    alike = torch.full((1, count, 3), 2.0)
    projected = randomness.normal((1, count, 3), 0, "noise", 0).requires_grad_()
    loss = alignment_loss(projected, without_common(alike)).sum()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.0)
    assert not projected.grad.any()


def test_the_spatial_norm_changes_the_teacher_and_nothing_before_it() -> None:
    plain, normed = aligned(0), aligned(0, spatial_norm=True)
    assert torch.equal(plain.hidden_BND, normed.hidden_BND)
    assert not torch.allclose(plain.total, normed.total)
    teacher_BNF = resample_teacher(without_common(normed.teacher_BPF), (2, 2), (4, 4))
    torch.testing.assert_close(normed.total, normed.by_hand(teacher_BNF))


def test_the_projector_is_stored_as_before(run: Callable[..., Path]) -> None:
    """Checkpoints from before these switches can still be loaded."""
    run_dir = run("r", repa={**ON, "projector": "conv", "stop": {"end": 1.0}}, steps=1)
    assert set(load_file(checkpoint.folder(run_dir, 1) / "projector.safetensors")) == {"net.weight", "net.bias"}
