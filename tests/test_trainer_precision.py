"""Number formats: fp32 weights whatever is computed in, losses that are scaled and skipped, and what FP8 converts."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fakes.trainer_parts import SHAPES, NoiseSource, WeightSum, tiny, tiny_config
from tests.fakes.trainer_runs import metrics_at, trained
from trainer import checkpoint, rules, session, size, train
from trainer.config import Fp8Config, TrainerConfig
from trainer.control import StopRequest
from trainer.data.batches import Batches
from trainer.data.shapes import stream_shapes
from trainer.document import parse_config
from trainer.errors import EXIT_CONFIG, ConfigError
from trainer.evaluate.command import evaluate
from trainer.model.nanodit import build
from trainer.precision.fp8 import PaddedRows, missing_hardware, plan_of
from trainer.precision.plan import Layer, block_layers, lines, plan
from trainer.step import Learner, StepResult

CPU = torch.device("cpu")
WIDE = {"width": 32, "depth": 4, "heads": 2, "patch": 2}
BF16, FP16 = {"compute": "bf16"}, {"compute": "fp16"}
EMULATED = {"compute": "bf16", "fp8": {"enabled": True, "filter": "all", "emulate": True}}
HAS_TORCHAO = importlib.util.find_spec("torchao") is not None
needs_torchao = pytest.mark.skipif(not HAS_TORCHAO, reason="torchao, which FP8 products come from, is not installed")


class Trial:
    """A learner on noise that makes one step after the other."""

    def __init__(self, **changes: Any) -> None:
        self.config = tiny_config(**{"model": WIDE, **changes})
        source = NoiseSource(self.config, 0)
        self.learner = Learner(self.config, source.streams, 7, CPU)
        self._batches = Batches(source, 7, self.config.samples_per_step)
        self.steps = 0

    def step(self) -> StepResult:
        """One more optimizer step."""
        result = self.learner.step(self._batches, self.steps, StopRequest())
        assert result is not None
        self.steps += 1
        return result

    def losses(self, steps: int = 3) -> list[float]:
        """The loss of so many more steps."""
        return [float(self.step().losses_L[0]) for _ in range(steps)]

    @property
    def weights(self) -> Tensor:
        """All weights in one row, copied."""
        return torch.cat([parameter.detach().flatten() for parameter in self.learner.modules.parameters()])


REPA = {"enabled": True, "samples": "all", "stop": {"end": 1.0}}


# ---- autocast --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "expected"), [({}, None), (BF16, torch.bfloat16), (FP16, torch.float16)])
def test_blocks_and_projector_compute_in_the_format_and_everything_else_in_fp32(
    precision: dict[str, Any], expected: torch.dtype | None
) -> None:
    trial = Trial(precision=precision, repa=REPA, model={**WIDE, "positions": "rope"})
    seen: dict[str, torch.dtype] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, given, output: seen.update({name: output.dtype})

    model, projector = trial.learner.model, trial.learner.modules["repa"]
    watched = {
        "out": model.blocks[0].self.out,
        "text": model.conditioning.embed["text"].project,
        "head": model.head,
        "block": model.blocks[1],
    }
    for name, module in {**watched, "smooth": model.smooth, "repa": projector, "inner": projector.net[0]}.items():
        module.register_forward_hook(note(name))
    trial.step()
    low = expected or torch.float32
    assert seen == {
        "out": low,
        "text": low,
        "inner": low,
        **dict.fromkeys(("head", "smooth", "repa", "block"), torch.float32),
    }
    modules = (trial.learner.modules, *trial.learner.ema.models.values())
    assert {parameter.dtype for module in modules for parameter in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", [BF16, FP16])
@pytest.mark.parametrize("prediction", ["x", "asymflow"])
def test_half_precision_is_near_fp32_and_not_the_same(precision: dict[str, Any], prediction: str) -> None:
    changes = {"objective": {"prediction": prediction}, "tread": {"enabled": True}, "repa": REPA}
    config = tiny_config(**changes)
    basis_FR = torch.linalg.qr(torch.randn(config.patch_features, 8, generator=torch.Generator().manual_seed(0)))[0]
    given = basis_FR if prediction == "asymflow" else None
    losses = []
    for chosen in ({}, precision):
        trial = Trial(precision=chosen, **changes)
        trial.learner = Learner(trial.config, NoiseSource(trial.config, 0).streams, 7, CPU, given)
        losses.append(trial.losses())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


def test_a_default_run_calls_the_model_itself_and_scales_nothing() -> None:
    trial = Trial()
    assert trial.learner.network is trial.learner.model
    result = trial.step()
    assert result.extra == {}
    assert trial.learner.scaling.state_dict() == {}


# ---- loss scaling ----------------------------------------------------------------------------------------------------


def test_a_step_that_overflows_is_skipped_and_the_next_one_is_not() -> None:
    trial = Trial(precision=FP16)
    first = trial.step()
    assert first.extra == {"train/skipped_steps": 0.0, "train/loss_scale": 65536.0}
    before, moments = trial.weights, trial.learner.optimizer.moments(trial.learner.model.head.weight)
    hook = trial.learner.model.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    skipped = trial.step()
    hook.remove()
    assert skipped.grad_norm is None
    assert skipped.reading is None
    assert skipped.extra == {"train/skipped_steps": 1.0, "train/loss_scale": 32768.0}
    assert torch.equal(trial.weights, before)
    assert moments is not None
    assert float(moments["step"]) == 1.0
    again = trial.step()
    assert again.grad_norm is not None
    assert again.extra["train/skipped_steps"] == 1.0
    assert not torch.equal(trial.weights, before)
    assert trial.learner.is_finite()


def test_an_average_counts_a_skipped_step_as_one_in_which_the_weights_stood_still() -> None:
    trial = Trial(precision=FP16)
    hook = trial.learner.model.head.weight.register_hook(lambda gradient: gradient * float("nan"))
    trial.step()
    hook.remove()
    start = trial.learner.model.head.weight.detach().clone()
    trial.step()
    d = 0.5 ** (1 / (0.05 * trial.config.steps))
    moved = trial.learner.model.head.weight.detach()
    expected = start + (1 - d) / (1 - d**2) * (moved - start)
    torch.testing.assert_close(trial.learner.ema.first.head.weight, expected)


def test_norms_and_indicators_are_those_of_gradients_without_the_scale() -> None:
    results = []
    for precision in ({}, FP16):
        trial = Trial(precision=precision, accumulation=2, indicators={"every": 1}, optimizer={"clip": 0.5})
        trial.step()
        results.append(trial.step())
    plain, scaled = (result.reading.metrics() for result in results)
    assert float(results[1].grad_norm) == pytest.approx(float(results[0].grad_norm), rel=0.01)
    assert plain.keys() == scaled.keys()
    for name, value in plain.items():
        assert scaled[name] == pytest.approx(value, rel=0.1, abs=1e-6), name


def test_small_gradients_survive_fp16_only_because_the_loss_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    def deepest_gradient(scale: float) -> float:
        trial = Trial(precision=FP16)
        given = {**trial.learner.scaling.state_dict(), "scale": scale, "skipped_steps": 0}
        trial.learner.scaling.load_state_dict(given)
        trial.losses(2)  # the gates open
        real, found = trial.learner.objective.loss, []
        monkeypatch.setattr(trial.learner.objective, "loss", lambda *given: real(*given) * 1e-6)
        trial.learner.model.blocks[0].mlp.fc1.weight.register_hook(lambda gradient: found.append(gradient.norm()))
        trial.step()
        return float(found[0]) / scale

    assert deepest_gradient(1.0) < 0.5 * deepest_gradient(2.0**16)


# ---- FP8: the plan ---------------------------------------------------------------------------------------------------


def test_the_plan_of_a_small_model_literally() -> None:
    model = {"width": 16, "depth": 2, "heads": 2, "patch": 2}
    config = tiny_config(repa={"enabled": True}, model=model)
    learner = Learner(config, SHAPES, 0, CPU)
    attention = [f"2 x model.blocks.*.{part}.{leaf} (16, 16): fp8" for part in ("self", "cross") for leaf in "qkv"]
    attention.insert(3, "2 x model.blocks.*.self.out (16, 16): fp8")
    assert lines(plan_of(learner.modules, Fp8Config(filter="all"))) == [
        "1 x model.patches (16, 12): embedding",
        "1 x model.time.fc1 (16, 256): embedding",
        "1 x model.time.fc2 (16, 16): embedding",
        "1 x model.conditioning.embed.text.project (16, 6): embedding",
        "1 x model.conditioning.embed.cls.project (16, 7): embedding",
        "1 x model.conditioning.embed.patches.project (16, 8): embedding",
        "1 x model.conditioning.embed.pose.fc1 (16, 3): embedding",
        "1 x model.conditioning.embed.pose.fc2 (16, 16): embedding",
        "2 x model.blocks.*.modulation (144, 16): modulation: one row per sample",
        *attention,
        "2 x model.blocks.*.cross.out (16, 16): fp8",
        "2 x model.blocks.*.mlp.fc1 (64, 16): fp8",
        "2 x model.blocks.*.mlp.fc2 (16, 64): fp8",
        "1 x model.modulation (32, 16): modulation: one row per sample",
        "1 x model.head (12, 16): head: its output is the image",
        "1 x repa.net.0 (64, 16): auxiliary loss",
        "1 x repa.net.2 (64, 64): auxiliary loss",
        "1 x repa.net.4 (8, 64): auxiliary loss",
    ]


@pytest.mark.parametrize(
    ("width", "recipe", "converted"),
    [
        (768, "tensorwise", ["mlp.fc1"]),
        (768, "rowwise", []),
        (1152, "tensorwise", ["self.q", "self.k", "self.v", "self.out"] * 2 + ["mlp.fc1", "mlp.fc2"]),
        (2048, "rowwise", ["mlp.fc1"]),
    ],
)
def test_shapes_that_gain_by_fp8(width: int, recipe: str, converted: list[str]) -> None:
    config = TrainerConfig.model_validate({"steps": 1, "model": {"width": width, "depth": 1, "heads": 4}})
    entries = plan(block_layers(config), Fp8Config(recipe=recipe))
    found = [entry.name.removeprefix("blocks.0.").replace("cross", "self") for entry in entries if entry.converts]
    assert found == converted


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_the_layers_of_a_block_are_those_of_the_model(mlp: str) -> None:
    config = tiny_config(model={**WIDE, "mlp": mlp})
    model = build(config.model, SHAPES, 0)
    shapes = {name: tuple(part.weight.shape) for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    assert {layer.name: (layer.rows, layer.columns) for layer in block_layers(config)} == {
        name: shape for name, shape in shapes.items() if name.startswith("blocks.0.") and "modulation" not in name
    }


def test_a_side_that_is_no_multiple_of_16_stays_and_says_so() -> None:
    (entry,) = plan([Layer("blocks.0.mlp.fc1", 72, 32)], Fp8Config(filter="all"))
    assert (entry.converts, entry.reason) == (False, "72 is no multiple of 16")


# ---- FP8: what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "path", "words"),
    [
        ({"precision": {"fp8": {"enabled": True, "filter": "all"}}}, "precision.fp8.enabled", "computed in bf16"),
        ({"precision": {"compute": "bf16", "fp8": {"enabled": True}}}, "precision.fp8.filter", "no matrix"),
        ({"compile": {"backend": "aot_eager", "mode": "max-autotune"}}, "compile.mode", "belongs to inductor"),
        ({"precision": {"compute": "fp64"}}, "precision.compute", "fp64"),
    ],
)
def test_what_cannot_work_is_refused_with_a_way_out(block: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(tiny(model=WIDE, **block))
    (issue,) = caught.value.issues
    assert issue.path == path
    assert words in issue.message
    assert issue.allowed


def test_a_machine_without_fp8_is_refused_before_a_run_begins(tmp_path: Path) -> None:
    block = tiny(model=WIDE, device="cpu", precision={**EMULATED, "fp8": {"enabled": True, "filter": "all"}})
    config = tmp_path / "r.yaml"
    config.write_text(json.dumps({"seed": 7, "trainer": block}))
    with pytest.raises(ConfigError, match=r"no FP8 matrix units.*emulate: true.*enabled: false") as caught:
        train.train(config, tmp_path / "r", stop=StopRequest())
    assert caught.value.exit_code == EXIT_CONFIG
    assert not (tmp_path / "r").exists()


def test_a_gpu_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old GPU")
    assert missing_hardware(torch.device("cuda")) == "an old GPU has compute capability 8.6, and FP8 needs 8.9"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert missing_hardware(torch.device("cuda")) is None


def test_remarks_name_what_is_dead_and_what_is_converted() -> None:
    dead = tiny_config(
        precision={"fp8": {"recipe": "rowwise"}}, compile={"dynamic": True}, activation_checkpointing={"every": 3}
    )
    assert sum("no effect" in note for note in rules.notes(dead)) == 3
    notes = rules.notes(tiny_config(model=WIDE, precision=EMULATED))
    assert any("converts of every block: self.q (32, 32)" in note for note in notes)


# ---- FP8: what it computes -------------------------------------------------------------------------------------------


def test_rows_are_filled_up_to_sixteen_and_cut_off_again() -> None:
    class Sees(nn.Linear):
        rows = 0

        def forward(self, x: Tensor) -> Tensor:
            self.rows = len(x.flatten(0, -2))
            return super().forward(x)

    layer = Sees(4, 3)
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = PaddedRows(layer)(x)
    assert layer.rows == 16
    y.square().sum().backward()
    padded = layer.weight.grad.clone()
    layer.zero_grad()
    plain = layer(x)
    plain.square().sum().backward()
    torch.testing.assert_close(y, plain)
    torch.testing.assert_close(padded, layer.weight.grad)


@needs_torchao
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_emulated_fp8_is_near_bf16_and_changes_no_name(recipe: str) -> None:
    plain = Trial(precision=BF16, tread={"enabled": True})
    eight = Trial(precision={**EMULATED, "fp8": {**EMULATED["fp8"], "recipe": recipe}}, tread={"enabled": True})
    assert list(eight.learner.model.state_dict()) == list(plain.learner.model.state_dict())
    own = {id(parameter) for parameter in eight.learner.model.parameters()}
    assert own == {id(parameter) for parameter in eight.learner.network.parameters()}
    assert torch.equal(eight.weights, plain.weights)
    losses = [trial.losses() for trial in (plain, eight)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert {parameter.dtype for parameter in eight.learner.modules.parameters()} == {torch.float32}
    kinds = {type(module).__name__ for module in eight.learner.network.modules()}
    assert "Float8Linear" in kinds
    averages = {type(module).__name__ for module in eight.learner.ema.first.modules()}
    assert "Float8Linear" not in averages


@needs_torchao
def test_fp8_of_nothing_is_nothing() -> None:
    trial = Trial(precision=EMULATED)
    with torch.no_grad():
        for name, parameter in trial.learner.model.named_parameters():
            if name.endswith(("fc2.weight", "out.weight")):
                parameter.zero_()
    trial.losses(2)
    assert trial.learner.is_finite()


# ---- checkpoints and evaluation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [BF16, FP16, pytest.param(EMULATED, marks=needs_torchao)])
def test_stopping_and_resuming_changes_no_bit(
    precision: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "open_source", NoiseSource)
    monkeypatch.setattr(session, "Validation", WeightSum)
    block = tiny(steps=3, model={**WIDE, "depth": 3}, precision=precision, log_every=2)
    config = tmp_path / "r.yaml"
    config.write_text(json.dumps({"seed": 7, "run": "r", "trainer": block}))
    assert train.train(config, tmp_path / "whole", stop=StopRequest()) == 0
    assert train.train(config, tmp_path / "parts", stop=StopRequest(), stop_after=1) == 75
    assert train.train(config, tmp_path / "parts", stop=StopRequest(), resume=True) == 0
    folders = [checkpoint.folder(tmp_path / name, 3) for name in ("whole", "parts")]
    for path in folders[0].glob("*.safetensors"):
        assert path.read_bytes() == (folders[1] / path.name).read_bytes()
    states = [torch.load(folder / "optimizer.pt", weights_only=True)["scaling"] for folder in folders]
    assert states[0] == states[1]
    assert bool(states[0]) == (precision == FP16)
    started = json.loads((tmp_path / "whole/attempt-1/metrics.jsonl").read_text().splitlines()[0])
    assert started["compute"] == precision["compute"]
    assert bool(started["fp8_plan"]) == (precision == EMULATED)


def test_a_checkpoint_from_before_there_was_a_scale_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "open_source", NoiseSource)
    monkeypatch.setattr(session, "Validation", WeightSum)
    config = tmp_path / "r.yaml"
    config.write_text(json.dumps({"seed": 7, "run": "r", "trainer": tiny(steps=2)}))
    train.train(config, tmp_path / "r", stop=StopRequest(), stop_after=1)
    folder = checkpoint.folder(tmp_path / "r", 1)
    stored = torch.load(folder / "optimizer.pt", weights_only=True)
    del stored["scaling"]
    torch.save(stored, folder / "optimizer.pt")
    state = json.loads((folder / "state.json").read_text())
    for key in ("precision", "compile", "activation_checkpointing"):
        del state["config"][key]
    (folder / "state.json").write_text(json.dumps(state))
    assert train.train(config, tmp_path / "r", stop=StopRequest(), resume=True) == 0


def test_evaluation_computes_as_validation_did_in_training(tmp_path: Path) -> None:
    precision = EMULATED if HAS_TORCHAO else BF16  # validation of both is in bf16
    few = {"every": 2, "samples": 3, "sampler_steps": 1}
    data = {"size": 16, "samples": 8, "held_out": 3}
    run_dir = trained(tmp_path / "r", steps=2, precision=precision, validation=few, data=data, sampler={}, tread={})
    assert json.loads((run_dir / "validation/step_000002/meta.json").read_text())["compute"] == "bf16"
    told = metrics_at(run_dir, 2)
    again = evaluate(run_dir, step=2)[2]
    assert again
    assert {name: told[name] for name in again} == again


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_the_estimate_of_memory_follows_format_and_checkpointing() -> None:
    def mib(**changes: Any) -> float:
        config = tiny_config(batch=64, model=WIDE, **changes)
        return size.memory_mib(config, stream_shapes(config))

    full, half = {"kind": "full"}, {"kind": "every_k"}
    assert mib() > mib(precision=BF16) > mib(precision=BF16, activation_checkpointing=full)
    assert mib() > mib(activation_checkpointing=half) > mib(activation_checkpointing=full)
