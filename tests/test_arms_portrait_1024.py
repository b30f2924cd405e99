"""The published study at 1024 px: its arms are what they claim, every size is right, and every arm trains."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from runner.commands.check import sizes
from runner.spec import ResolvedArm, read_study_arms
from runner.spec.factors import factors
from runner.spec.lint import blocking, lint
from tests.fakes.small_arms import config_of, fingerprint, full_size, small_arms, small_portraits, steps_of

FOLDER = Path(__file__).parents[1] / "arms/portrait_1024"
PATHS = sorted(FOLDER.glob("*.yaml"))
CONTRASTS = {
    "B": ("A", "TREAD"),
    "C": ("B", "optimizer"),
    "D": ("C", "REPA"),
    "E": ("D", "weights by part"),
    "G": ("D", "objective"),
    "H": ("D", "shared adaLN"),
    "I": ("D", "FP8"),
}


@pytest.fixture(scope="module")
def arms() -> dict[str, ResolvedArm]:
    return {arm.arm: arm for arm in read_study_arms(PATHS)}


def test_the_study_is_sized_as_published(arms: dict[str, ResolvedArm]) -> None:
    assert "".join(sorted(arms)) == "ABCDEGHI"
    for arm in arms.values():
        config = config_of(arm)
        assert (config.steps, config.samples_per_step, config.data.source, config.data.size) == (
            *(5000, 256),
            *("shards", 1024),
        )
        model, optimizer = config.model, config.optimizer
        assert (model.width, model.depth, model.heads, model.patch) == (768, 18, 12, 16)
        assert (optimizer.lr, optimizer.weight_decay, optimizer.warmup_steps) == (3e-4, 0.03, 500)
        assert (config.objective.shift, config.ema.half_lives) == (3.0, (0.05, 0.20))
        assert (config.validation.every, config.validation.sampler_steps) == (500, 35)
        assert (config.precision.compute, config.compile.enabled) == ("bf16", True)
        assert config.activation_checkpointing.kind == "full"
        assert config.checkpoint.keep.best is not None
        assert config.checkpoint.keep.best.metric == "val/recon_rmse"
        assert not config.reference_parity
    d = config_of(arms["D"])
    assert (d.tread_blocks, d.tread.ratio, d.tread.keep_multiple, d.kept_tokens) == ((1, 16), 0.5, 128, 2048)
    assert (d.repa_block, d.repa.weight, d.repa.stop.kind, d.repa.stop.start, d.repa_end) == (
        *(7, 0.5),
        *("linear", 0.10, 0.25),
    )


def test_every_arm_differs_from_its_baseline_in_what_it_says(arms: dict[str, ResolvedArm]) -> None:
    assert {name: arm.baseline for name, arm in arms.items() if arm.baseline} == {
        name: base for name, (base, _) in CONTRASTS.items()
    }
    for name, (base, factor) in CONTRASTS.items():
        assert factors(arms[base], arms[name]) == (factor,), name
    remarks = lint(list(arms.values()))
    assert blocking(remarks) == ()
    assert [remark.rule for remark in remarks] == ["F12"]


def test_the_plan_tells_how_long_a_gpu_would_take_and_that_this_is_no_measurement(
    arms: dict[str, ResolvedArm],
) -> None:
    a, b = (", ".join(sizes(arms[name])) for name in "AB")
    said = "h of training if it ran at 40% of an H100's bf16 (assumed, not measured)"
    assert a == f"271,786,836 parameters, about 11662 MiB, 10.3 TFLOP per sample, 9.3 {said}"
    assert f"5.4 TFLOP per sample, 4.9 {said}" in b
    on_cpu = dataclasses.replace(arms["A"], resources=dataclasses.replace(arms["A"].resources, gpus=0))
    assert ", ".join(sizes(on_cpu)).endswith("TFLOP per sample")


def test_every_arm_is_drawn_with_its_own_guidance(arms: dict[str, ResolvedArm]) -> None:
    kinds = {name: config_of(arm).sampler.native.kind for name, arm in arms.items()}
    assert kinds == {"A": "nested_cfg", **dict.fromkeys("BCDEGHI", "self_guidance")}


def test_sizes_by_arithmetic_are_those_of_the_modules(arms: dict[str, ResolvedArm]) -> None:
    for name, arm in arms.items():
        assert arm.check is not None
        built, counted = full_size(config_of(arm))
        assert built == counted == arm.check.parameters, name
    model = {name: full_size(config_of(arm))[0] for name, arm in arms.items()}
    assert model["A"] == 272_573_268 - 768 * 1024
    assert model["D"] - model["H"] == 89_254_656


def test_every_arm_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_DATA_PORTRAITS", str(small_portraits(tmp_path / "portraits")))
    routing = {"trainer.tread.keep_multiple": 8}
    small = small_arms(PATHS[:1]) | small_arms(PATHS[1:-1], **routing)
    small |= small_arms(PATHS[-1:], **routing, **{"trainer.precision.fp8.emulate": "true"})
    assert sorted(small) == sorted(["A", *CONTRASTS])
    trained: dict[str, str] = {}
    for name, arm in small.items():
        learner, results = steps_of(config_of(arm), tmp_path / name)
        assert len(results) == 2
        assert all(torch.isfinite(result.losses_L).all() for result in results)
        trained[name] = fingerprint(learner)
    assert len(set(trained.values())) == len(trained), "a switch did nothing"
