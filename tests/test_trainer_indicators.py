"""The optimizer's indicators against slow, plain references; and that nobody notices that somebody looks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import trainer.step
from tests.fakes.trainer_parts import NoiseSource, tiny, tiny_config
from tests.fakes.trainer_runs import training_on_noise
from trainer import checkpoint
from trainer.config import TrainerConfig
from trainer.control import StopRequest
from trainer.data.batches import Batches
from trainer.indicators.blocks import block_of
from trainer.indicators.reading import LEAST_AGREEMENT, Sums, halves_noise, moment_noise
from trainer.indicators.recorder import Measurement, is_due
from trainer.step import Learner

CPU = torch.device("cpu")
NAMES = ("block_00", "block_01", "block_02", "block_03", "embed", "head")
KINDS = ("rms_ratio", "second_moment", "second_moment_decay", "update_to_weight", "gradient_noise")
TREAD = {"enabled": True, "ratio": 0.5}
REPA = {"enabled": True, "stop": {"end": 1.0}}
MUON = {"name": "muon", "lr": 0.02, "weight_decay": 0.1, "clip": 0.5}
STABLE = {"name": "stable_adamw", "lr": 0.02, "weight_decay": 0.1, "clip": None}
NORMUON = {"name": "normuon", "lr": 0.02, "weight_decay": 0.1}
ADAMW = {"name": "adamw", "lr": 0.02, "weight_decay": 0.1, "clip": 0.5}
CASES = {
    "adamw": tiny(optimizer=ADAMW),
    "tread-adamw-halves": tiny(optimizer=ADAMW, tread=TREAD, accumulation=2, batch=2),
    "tread-muon-repa": tiny(optimizer=MUON, tread=TREAD, repa=REPA),
    "stable-adamw": tiny(optimizer=STABLE),
    "normuon": tiny(optimizer=NORMUON),
    "muon-uneven-halves": tiny(optimizer=MUON, accumulation=3, batch=2, repa=REPA),
}


def learner_of(config: TrainerConfig, seed: int = 1) -> tuple[Learner, Callable[[int], Any]]:
    """A learner on noise, and what makes it take the step after so many."""
    source = NoiseSource(config, seed)
    learner = Learner(config, source.streams, seed, CPU)
    batches = Batches(source, seed, config.samples_per_step)
    return learner, lambda step: learner.step(batches, step, StopRequest())


# ---- references ------------------------------------------------------------------------------------------------------


class Witness:
    """Keeps copies of everything around each update of a learner."""

    def __init__(self, learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
        self._learner = learner
        self.named = dict(learner.modules.named_parameters())
        self.sums: list[dict[str, Tensor]] = []  # gradients added so far, after each micro-batch
        backward, update = trainer.step._backward, learner.optimizer.step

        def watched_backward(*arguments: Any) -> Any:
            result = backward(*arguments)
            self.sums.append(self._gradients())
            return result

        def watched_update(lr: float) -> None:
            self.lr, self.gradients, self.before = lr, self._gradients(), self._now()
            update(lr)
            self.after = self._now()

        monkeypatch.setattr(trainer.step, "_backward", watched_backward)
        monkeypatch.setattr(learner.optimizer, "step", watched_update)

    def _gradients(self) -> dict[str, Tensor]:
        return {name: value.grad.double().clone() for name, value in self.named.items() if value.grad is not None}

    def _now(self) -> dict[str, dict[str, Any]]:
        """Weights and corrected moments by parameter."""
        found: dict[str, dict[str, Any]] = {}
        for name, value in self.named.items():
            found[name] = {"weight": value.detach().double().clone()}
            state = self._learner.optimizer.moments(value)
            if state is not None:
                count = float(state["step"])
                beta1, beta2 = self._learner.config.optimizer.beta1, self._learner.config.optimizer.beta2
                found[name]["m"] = state["exp_avg"].double() / (1 - beta1**count)
                found[name]["v"] = state["exp_avg_sq"].double() / (1 - beta2**count)
        return found

    def expected(self, block: str) -> dict[str, float]:
        """The indicators of one block, written down as their definitions say."""
        names = [name for name in self.named if block_of(name) == block]
        surprise = [
            self.gradients[name] ** 2 / (self.before[name]["v"] + 1e-16)
            for name in names
            if "v" in self.before[name] and name in self.gradients
        ]
        second = flat([self.after[name]["v"] for name in names if "v" in self.after[name]])
        first = flat([self.after[name]["m"] for name in names if "m" in self.after[name]])
        updates = [
            self.after[name]["weight"] - (1 - self.lr * self._decay(name)) * self.before[name]["weight"]
            for name in names
            if name in self.gradients
        ]
        weights = flat([self.after[name]["weight"] for name in names])
        return {
            "rms_ratio": math.sqrt(flat(surprise).mean()),
            "second_moment": float(second.mean()),
            "update_to_weight": float(flat(updates).norm() / weights.norm()),
            "gradient_noise": self._noise(names, second, first),
        }

    def _decay(self, name: str) -> float:
        groups = self._learner.optimizer.groups
        return self._learner.config.optimizer.weight_decay if name in (*groups.muon, *groups.decayed) else 0.0

    def _noise(self, names: list[str], second: Tensor, first: Tensor) -> float:
        accumulation, batch = self._learner.config.accumulation, self._learner.config.batch
        if accumulation == 1:
            return float((second.sum() - (first**2).sum()) / (first**2).sum())
        half = accumulation // 2
        at_half, whole = self.sums[-accumulation:][half - 1], self.sums[-1]
        empty = {name: torch.zeros_like(value) for name, value in whole.items()}
        one = flat([{**empty, **at_half}[name] for name in names if name in whole])
        all_of_it = flat([whole[name] for name in names if name in whole])
        images_1, images_2 = half * batch, (accumulation - half) * batch
        share = images_1 + images_2
        mean_1, mean_2 = one * share / images_1, (all_of_it - one) * share / images_2
        covariance = float((mean_1 - mean_2) @ (mean_1 - mean_2)) / (1 / images_1 + 1 / images_2)
        return covariance / max(float(mean_1 @ mean_2), LEAST_AGREEMENT * float(all_of_it @ all_of_it))


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize("block", CASES.values(), ids=CASES.keys())
def test_every_indicator_is_what_its_definition_says(block: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(**{**block, "indicators": {"every": 2}})
    learner, step = learner_of(config)
    witness = Witness(learner, monkeypatch)
    before: dict[str, float] = {}
    for done in range(8):
        reading = step(done).reading
        assert (reading is not None) == (done % 2 == 1)
        if reading is None:
            continue
        metrics = reading.metrics()
        expected = {name: witness.expected(name) for name in NAMES}
        now = {name: expected[name]["second_moment"] for name in NAMES}
        for name in NAMES:
            for kind, value in expected[name].items():
                assert metrics[f"opt/{name}/{kind}"] == pytest.approx(value, rel=1e-3), (name, kind, done)
            if before:
                decay = (now[name] / before[name]) ** 0.5
                assert metrics[f"opt/{name}/second_moment_decay"] == pytest.approx(decay, rel=1e-3)
        assert ("opt/head/second_moment_decay" in metrics) == bool(before)
        if config.tread.enabled:
            ratio = (now["block_01"] + now["block_02"]) / (now["block_00"] + now["block_03"])
            assert metrics["opt/second_moment_routed_to_dense"] == pytest.approx(ratio, rel=1e-3)
        before = now
    kinds = {name.rpartition("/")[2] for name in metrics} - {"second_moment_routed_to_dense"}
    assert kinds == set(KINDS)
    assert ("opt/second_moment_routed_to_dense" in metrics) == config.tread.enabled


def test_every_weight_of_the_model_is_in_one_block() -> None:
    learner, _ = learner_of(tiny_config(repa=REPA))
    blocks = {block.name: block for block in learner.recorder.blocks}
    assert tuple(blocks) == NAMES
    names = [member.name for block in blocks.values() for member in block.members]
    assert len(names) == len(set(names))
    assert set(names) == {name for name, _ in learner.modules.named_parameters() if name.startswith("model.")}
    assert {name.split(".")[1] for name in names if block_of(name) == "embed"} == {"patches", "time", "conditioning"}
    assert {name.split(".")[1] for name in names if block_of(name) == "head"} == {"modulation", "head", "smooth"}
    assert block_of("model.blocks.11.modulation.weight") == "block_11"
    assert block_of("repa.net.0.weight") is None


def test_routing_all_blocks_leaves_nothing_to_compare_with() -> None:
    config = tiny_config(tread={"enabled": True, "first": 0, "last": -1}, indicators={"every": 1})
    _, step = learner_of(config)
    step(0)
    assert "opt/second_moment_routed_to_dense" not in step(1).reading.metrics()


# ---- behaviour -------------------------------------------------------------------------------------------------------


def test_a_starved_block_forgets_at_the_speed_of_beta2(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(steps=120, tread={"enabled": True, "first": 2, "last": 2}, indicators={"every": 5})
    learner, step = learner_of(config)
    backward = trainer.step._backward

    def starving(*arguments: Any) -> Any:
        result = backward(*arguments)
        if starving.on:
            for parameter in learner.model.blocks[2].parameters():
                parameter.grad.zero_()
        return result

    starving.on = False
    monkeypatch.setattr(trainer.step, "_backward", starving)
    readings = []
    for done in range(80):
        starving.on = done >= 40
        reading = step(done).reading
        if reading is not None:
            readings.append(reading.metrics())
    decays = [found["opt/block_02/second_moment_decay"] for found in readings[-4:]]
    assert decays == pytest.approx([0.95] * 4, abs=0.01)
    assert min(found["opt/block_01/second_moment_decay"] for found in readings[-4:]) > 0.95 + 0.005
    ratios = [found["opt/second_moment_routed_to_dense"] for found in readings]
    assert ratios[-1] < 0.25 * ratios[7], "forty steps of 0.95 leave an eighth"
    assert readings[-1]["opt/block_02/rms_ratio"] == 0.0
    assert readings[-1]["opt/block_01/rms_ratio"] > 0.1


def test_what_has_no_divisor_is_left_out() -> None:
    _, step = learner_of(tiny_config(indicators={"every": 1}))
    first = step(0).reading.metrics()
    assert not [name for name in first if name.endswith(("rms_ratio", "second_moment_decay"))]
    # The head starts at 0, so at first nothing behind it has a gradient.
    assert first["opt/block_00/second_moment"] == 0.0
    assert "opt/block_00/gradient_noise" not in first
    assert "opt/head/gradient_noise" in first
    second = step(1).reading.metrics()
    assert "opt/block_00/second_moment_decay" not in second
    assert second["opt/head/second_moment_decay"] > 0
    assert all(math.isfinite(value) for value in second.values())


def test_gradients_that_are_not_finite_show() -> None:
    _, step = learner_of(tiny_config(optimizer={"lr": 1e30, "clip": None}, indicators={"every": 1}))
    found = [step(done).reading.metrics() for done in range(4)][-1]
    assert not math.isfinite(found["opt/head/second_moment"])
    assert not math.isfinite(found["opt/block_00/update_to_weight"])


# ---- noise -----------------------------------------------------------------------------------------------------------


def test_the_noise_of_halves_is_covariance_by_squared_mean() -> None:
    source = torch.Generator().manual_seed(0)
    mean, deviation, images = 0.3 * torch.randn(400, generator=source, dtype=torch.float64), 2.0, (6, 10)
    truth = 400 * deviation**2 / float(mean @ mean)
    covariance, found = [], []
    for _ in range(200):
        sums = [
            (n * mean + deviation * math.sqrt(n) * torch.randn(400, generator=source, dtype=torch.float64))
            / sum(images)
            for n in images
        ]
        whole = sums[0] + sums[1]
        squares = [float(part @ part) for part in (*sums, whole)]
        found.append(halves_noise(Sums(0, 0, 0, 0, 0, *squares, 0), *images))
        covariance.append(found[-1] * max(float(sums[0] @ sums[1]) * sum(images) ** 2 / 60, 0.01 * squares[2]))
    assert sum(covariance) / 200 == pytest.approx(400 * deviation**2, rel=0.02)
    assert sorted(found)[100] == pytest.approx(truth, rel=0.1)


def test_halves_that_disagree_are_very_noisy_and_equal_ones_not_at_all() -> None:
    opposite = halves_noise(Sums(0, 0, 0, 0, 0, 1.0, 1.0, 0.01, 0), 8, 8)
    assert opposite is not None
    assert math.isfinite(opposite)
    assert opposite > 1e4
    assert halves_noise(Sums(0, 0, 0, 0, 0, 1.0, 1.0, 4.0, 0), 8, 8) == pytest.approx(0.0)
    assert halves_noise(Sums(0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0), 8, 8) is None


def test_the_noise_of_moments_is_variance_by_squared_mean() -> None:
    assert moment_noise(Sums(0, 5.0, 2.0, 0, 0, 0, 0, 0, 0)) == 1.5
    assert moment_noise(Sums(0, 5.0, 0.0, 0, 0, 0, 0, 0, 0)) is None


# ---- when ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 60))
def test_they_come_with_the_first_line_at_or_after_each_multiple(every: int, log_every: int, steps: int) -> None:
    config = tiny_config(steps=steps, log_every=log_every, indicators={"every": every})
    lines = [step for step in range(1, steps + 1) if step % log_every == 0 or step == steps]
    wanted = {next(line for line in lines if line >= due) for due in range(every, steps + 1, every)}
    assert {step for step in range(1, steps + 1) if is_due(config, step)} == wanted


# ---- nobody notices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", CASES.values(), ids=CASES.keys())
def test_they_change_no_bit(block: dict[str, Any]) -> None:
    learners = []
    for enabled in (True, False):
        learner, step = learner_of(tiny_config(**{**block, "indicators": {"enabled": enabled, "every": 1}}))
        found = [step(done).reading is not None for done in range(5)]
        assert found == [enabled] * 5
        learners.append(learner)
    with_them, without = learners
    for name, value in without.modules.state_dict().items():
        assert torch.equal(value, with_them.modules.state_dict()[name]), name
    for one, other in zip(with_them.modules.parameters(), without.modules.parameters(), strict=True):
        states = [learner.optimizer.moments(each) for learner, each in ((with_them, one), (without, other))]
        assert (states[0] is None) == (states[1] is None)
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0] or ())
    for one, other in zip(with_them.ema.first.parameters(), without.ema.first.parameters(), strict=True):
        assert torch.equal(one, other)


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    OPERATORS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(operator) for name in self.OPERATORS):
            self.found.append(str(operator))
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("block", CASES.values(), ids=CASES.keys())
def test_measuring_never_waits_for_the_device(block: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits()

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with waits:
                return real(*arguments)

        return call

    for name in ("micro_batch_done", "gradients_done", "before_update", "finish"):
        monkeypatch.setattr(Measurement, name, watched(getattr(Measurement, name)))
    _, step = learner_of(tiny_config(**{**block, "indicators": {"every": 1}}))
    readings = [step(done).reading for done in range(3)]
    assert waits.found == []
    with waits:
        float(readings[-1].sums_9K[0, 0])
    assert waits.found, "the watch works"


# ---- in a run --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train on noise; the run directory."""
    start = training_on_noise(tmp_path, monkeypatch)
    return lambda *given, **options: start(*given, **options)[1]


def lines(run_dir: Path) -> dict[int, dict[str, Any]]:
    """Indicators of the train lines of all attempts, by step."""
    files = sorted(run_dir.glob("attempt-*/metrics.jsonl"))
    parsed = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    train_lines = [line for line in parsed if line["kind"] == "train"]
    return {line["step"]: {name: line[name] for name in line if name.startswith("opt/")} for line in train_lines}


@pytest.mark.parametrize("stop_after", [1, 4, 6, 7])
@pytest.mark.parametrize("log_every", [1, 3])
def test_a_resumed_run_writes_the_same_lines(run: Callable[..., Path], stop_after: int, log_every: int) -> None:
    block = tiny(accumulation=2, tread=TREAD, optimizer=MUON, log_every=log_every, steps=9, indicators={"every": 2})
    whole = run("whole", block)
    run("parts", block, stop_after=stop_after)
    parts = run("parts", block, resume=True)
    assert lines(whole) == lines(parts)
    assert [step for step, found in lines(whole).items() if found] == ([2, 4, 6, 8] if log_every == 1 else [3, 6, 9])
    pairs = [checkpoint.folder(run_dir, 9) / "model.safetensors" for run_dir in (whole, parts)]
    assert pairs[0].read_bytes() == pairs[1].read_bytes()


def test_they_can_be_switched_off_and_are_seldom_by_default(run: Callable[..., Path]) -> None:
    off = run("off", tiny(steps=12, indicators={"enabled": False, "every": 1}))
    default = run("default", tiny(steps=12))
    assert [step for step, found in lines(off).items() if found] == []
    assert [step for step, found in lines(default).items() if found] == [10]
    assert set(lines(default)[10]) == {
        f"opt/{name}/{kind}" for name in NAMES for kind in KINDS if kind != "second_moment_decay"
    }
