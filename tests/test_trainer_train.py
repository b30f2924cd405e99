"""Training as a whole: exact resume, requests to stop, what is kept, and exit codes."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.fakes.trainer_parts import TINY, NoiseSource, WeightSum, tiny, tiny_config
from tests.fakes.trainer_runs import training_on_noise
from trainer import checkpoint, train
from trainer.check import check
from trainer.control import StopRequest
from trainer.data.batches import Batches
from trainer.errors import ConfigError, UsageError
from trainer.step import Learner

ROOT = Path(__file__).parents[1]
EVERYTHING = tiny(
    accumulation=2,
    tread={"enabled": True, "dense_tail": 0.25},
    repa={"enabled": True, "stop": {"kind": "linear", "start": 0.2, "end": 0.7}},
    optimizer={"name": "muon", "lr": 0.01, "warmup_steps": 2, "weight_decay": 0.01},
    ema={"half_lives": [0.1, 0.4]},
)
SWITCHED = tiny(
    model={
        **TINY["model"],
        "bottleneck": 6,
        "adaln": {"kind": "shared", "rank": 2},
        "positions": "rope",
        "mlp": "swiglu",
        "norm": "rms",
        "maskdit": {"enabled": True, "decoder_depth": 1},
    },
    streams={"text": "pooled", "patches": "pooled", "pose": "pooled"},
    repa={"enabled": True},
    optimizer={"name": "muon", "lr": 0.01},
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Path]]:
    """Train on noise."""
    return training_on_noise(tmp_path, monkeypatch)


class StopAt(StopRequest):
    """Asks for a stop at the n-th time that anybody looks."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks

    def __bool__(self) -> bool:
        self._looks -= 1
        if self._looks <= 0:
            self.ask("a test")
        return super().__bool__()


def lines(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of one kind over all attempts."""
    files = sorted(run_dir.glob("attempt-*/metrics.jsonl"))
    parsed = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    return [line for line in parsed if line["kind"] == kind]


def events(run_dir: Path) -> list[tuple[int, str]]:
    return [(line["step"], line["event"]) for line in lines(run_dir, "event")]


def comparable(run_dir: Path) -> list[dict[str, Any]]:
    """All metric lines in order of step, without time, system and memory."""
    found = lines(run_dir, "train") + lines(run_dir, "val")
    kept = [
        {key: line[key] for key in line if key != "time" and not key.startswith(("sys/", "memory/"))} for line in found
    ]
    return sorted(kept, key=lambda line: (line["step"], line["kind"]))


def assert_same_checkpoint(one: Path, other: Path, step: int) -> None:
    """Weights, averages, optimizer and window are equal bit for bit."""
    left, right = (checkpoint.folder(run_dir, step) for run_dir in (one, other))
    assert sorted(path.name for path in left.iterdir()) == sorted(path.name for path in right.iterdir())
    for path in left.glob("*.safetensors"):
        assert path.read_bytes() == (right / path.name).read_bytes(), path.name
    states = [leaves(torch.load(folder / "optimizer.pt", weights_only=True)) for folder in (left, right)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        twin = states[1][name]
        assert torch.equal(value, twin) if isinstance(value, torch.Tensor) else value == twin, name


def leaves(tree: Any, name: str = "") -> dict[str, Any]:
    """Everything in nested containers, by its place."""
    if not isinstance(tree, (dict, list)):
        return {name: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {place: value for key, part in items for place, value in leaves(part, f"{name}/{key}").items()}


# ---- exact resume ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block",
    [tiny(), EVERYTHING, tiny(log_every=3), tiny(ema={"every": 3}), SWITCHED],
    ids=["plain", "everything", "log3", "ema3", "switched"],
)
def test_stopping_and_resuming_changes_no_bit(run: Callable[..., tuple[int, Path]], block: dict[str, Any]) -> None:
    code, whole = run("whole", block)
    assert code == 0
    assert run("parts", block, stop_after=4)[0] == 75
    code, parts = run("parts", block, resume=True)
    assert code == 0
    assert_same_checkpoint(whole, parts, 8)
    assert comparable(whole) == comparable(parts)


def test_a_run_begins_with_its_size(run: Callable[..., tuple[int, Path]]) -> None:
    block = tiny(model={**TINY["model"], "adaln": {"kind": "shared", "rank": 2}})
    _, run_dir = run("sized", block, stop_after=0)
    said, known = lines(run_dir, "event")[0], check("a", block)
    assert said["event"] == "started"
    assert (said["parameters"], said["flops_per_sample"]) == (known["parameters"], known["flops_per_sample"])
    assert f"shared adaLN saves {3 * (16 * 144 + 144) - 4 * 2 * 160:,} parameters" in said["notes"]


@pytest.mark.parametrize(("looks", "finished"), [(8, 2), (9, 2), (10, 2), (13, 3)])
def test_a_stop_in_the_middle_of_an_accumulation_changes_no_bit(
    run: Callable[..., tuple[int, Path]], looks: int, finished: int
) -> None:
    # One look before the first validation, then three a step: before it and before each of its two micro-batches.
    _, whole = run("whole", EVERYTHING)
    code, parts = run("parts", EVERYTHING, stop=StopAt(looks))
    assert code == 75
    assert checkpoint.list_steps(parts)[-1] == finished
    assert run("parts", EVERYTHING, resume=True)[0] == 0
    assert_same_checkpoint(whole, parts, 8)
    train_lines = [[line for line in comparable(run_dir) if line["kind"] == "train"] for run_dir in (whole, parts)]
    assert train_lines[0] == train_lines[1]


def test_many_attempts_are_as_good_as_one(run: Callable[..., tuple[int, Path]]) -> None:
    _, whole = run("whole", tiny())
    for step in range(1, 8):
        code, parts = run("parts", tiny(), stop_after=step, resume=step > 1)
        assert code == 75
    assert run("parts", tiny(), resume=True)[0] == 0
    assert_same_checkpoint(whole, parts, 8)
    assert (parts / "attempt-8").is_dir()


def test_a_resumed_attempt_says_where_it_starts_and_validates_what_is_missing(
    run: Callable[..., tuple[int, Path]],
) -> None:
    run("r", tiny(), stop_after=3)
    _, run_dir = run("r", tiny(), resume=True, attempt=5)
    own = [json.loads(line) for line in (run_dir / "attempt-5/metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line.get("event")) for line in own[:2]] == [(0, "started"), (3, "resumed")]
    assert own[1]["from_step"] == 3
    assert [line["step"] for line in own if line["kind"] == "val"] == [3, 4, 8]
    times = [line["sys/train_s"] for line in lines(run_dir, "train")]
    assert times == sorted(times), "training time is cumulative over attempts"


def test_going_back_to_an_older_checkpoint_repeats_the_run_and_loses_nothing(
    run: Callable[..., tuple[int, Path]],
) -> None:
    _, whole = run("whole", tiny())
    run("back", tiny(), stop_after=6)
    with pytest.raises(UsageError, match=r"no checkpoint of that step; allowed: 0, 4, 6"):
        run("back", tiny(), resume=True, from_step=5)
    with pytest.raises(UsageError, match="--resume"):
        run("back", tiny(), from_step=4)
    code, back = run("back", tiny(), resume=True, from_step=4, attempt=2)
    assert code == 0
    assert_same_checkpoint(whole, back, 8)
    assert (back / "checkpoints/before-attempt-2/step_000006/model.safetensors").exists()
    own = [json.loads(line) for line in (back / "attempt-2/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in own if line.get("event") == "resumed"] == [4]


def test_resume_without_a_checkpoint_starts_at_zero(run: Callable[..., tuple[int, Path]]) -> None:
    code, run_dir = run("r", tiny(), resume=True)
    assert code == 0
    assert events(run_dir)[:3] == [(0, "started"), (0, "resumed"), (0, "checkpoint")]


def test_a_run_that_is_done_stays_done(run: Callable[..., tuple[int, Path]]) -> None:
    _, run_dir = run("r", tiny())
    before = comparable(run_dir)
    assert run("r", tiny(), resume=True)[0] == 0
    assert comparable(run_dir) == before
    assert WeightSum.calls == []


# ---- steps and lines -------------------------------------------------------------------------------------------------


def test_the_order_of_a_run(run: Callable[..., tuple[int, Path]]) -> None:
    _, run_dir = run("r", tiny(log_every=2))
    assert WeightSum.calls == [("light", 0), ("light", 4), ("full", 8)]
    assert [line["step"] for line in lines(run_dir, "train")] == [2, 4, 6, 8]
    assert [line["step"] for line in lines(run_dir, "val")] == [0, 4, 8]
    assert events(run_dir) == [(0, "started"), (0, "checkpoint"), (4, "checkpoint"), (8, "checkpoint"), (8, "finished")]
    started = lines(run_dir, "event")[0]
    assert started["device"] == "cpu"
    assert started["gpu_uuids"] == started["gpus"] == []
    assert (started["python"], started["executable"]) == (platform.python_version(), sys.executable)
    assert started["packages"]["torch"] == importlib.metadata.version("torch")
    assert started["cores"] >= 1
    assert started["parameters"] == lines(run_dir, "event")[0]["parameters"] > 0
    assert "model.head.weight" in started["optimizer_groups"]["decayed"]
    line = lines(run_dir, "train")[0]
    assert {"train/loss", "train/flow_loss", "train/grad_norm", "train/velocity_rms", "train/lr"} <= set(line)
    assert {"sys/images_per_s", "sys/iter_per_s", "sys/active_tokens", "sys/data_wait_frac"} <= set(line)
    assert "train/repa_loss" not in line


def test_techniques_announce_their_end(run: Callable[..., tuple[int, Path]]) -> None:
    _, run_dir = run("r", EVERYTHING)
    assert [event for event in events(run_dir) if event[1].endswith("_off")] == [(6, "routing_off"), (6, "repa_off")]
    active = {line["step"]: line["sys/active_tokens"] for line in lines(run_dir, "train")}
    assert (active[6], active[7]) == (12.0, 16.0)  # two of four blocks see half of 16 tokens
    aligned = [line["step"] for line in lines(run_dir, "train") if "train/repa_loss" in line]
    assert aligned
    assert max(aligned) <= 6


def test_the_rate_is_the_one_used_for_the_step(run: Callable[..., tuple[int, Path]]) -> None:
    _, run_dir = run("r", tiny(optimizer={"lr": 0.01, "warmup_steps": 4, "final_lr_share": 0.5}))
    rates = [line["train/lr"] for line in lines(run_dir, "train")]
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert rates[-1] == pytest.approx(0.005)


def test_splitting_a_step_gives_the_same_training(run: Callable[..., tuple[int, Path]]) -> None:
    changes = {"tread": {"enabled": True}, "repa": {"enabled": True, "stop": {"end": 1.0}}}
    _, whole = run("whole", tiny(batch=8, **changes))
    _, split = run("split", tiny(batch=2, accumulation=4, **changes))
    for one, other in zip(lines(whole, "train"), lines(split, "train"), strict=True):
        for name in ("train/loss", "train/flow_loss", "train/repa_loss", "train/grad_norm", "train/velocity_rms"):
            assert one.get(name) == pytest.approx(other.get(name), rel=2e-3), name


def test_validation_and_logging_change_nothing_else(run: Callable[..., tuple[int, Path]]) -> None:
    _, often = run("often", tiny(validation={"every": 1, "samples": 4}, log_every=1))
    _, seldom = run("seldom", tiny(validation={"every": 8, "samples": 2}, log_every=8))
    names = [checkpoint.folder(run_dir, 8) / "model.safetensors" for run_dir in (often, seldom)]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_a_loss_that_is_not_finite_is_written_as_a_word_and_training_goes_on(
    run: Callable[..., tuple[int, Path]],
) -> None:
    keep = {"keep": {"last": 1, "best": {"metric": "val_raw/recon_rmse", "direction": "max"}}}
    block = tiny(optimizer={"lr": 1e30, "clip": None}, validation={"every": 2, "samples": 4}, checkpoint=keep)
    code, run_dir = run("r", block)
    assert code == 0
    last = lines(run_dir, "train")[-1]
    assert last["train/loss"] in ("nan", "inf", "-inf")
    assert all(not isinstance(value, float) or math.isfinite(value) for value in last.values())
    assert checkpoint.read_state(run_dir, 8)["finite"] is False
    best = lines(run_dir, "event")[-1]["best_step"]
    assert best is None or checkpoint.read_state(run_dir, best)["finite"] is True


def test_every_kind_of_alignment_trains(run: Callable[..., tuple[int, Path]]) -> None:
    _, run_dir = run(
        "r", tiny(repa={"enabled": True, "samples": "all", "stop": {"kind": "gradient_cosine", "end": 0.5}})
    )
    probed = [line["step"] for line in lines(run_dir, "train") if "train/repa_cosine" in line]
    assert probed == [1]
    assert (4, "repa_off") in events(run_dir)


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_last_best_and_milestones_are_kept_and_the_best_is_validated_in_full(
    run: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    worst_is_middle = {"val/recon_rmse": lambda step: abs(step - 6)}
    real = WeightSum._score

    def score(self: WeightSum, kind: str, step: int, weights: Any, more: dict[str, float]) -> Any:
        scored = real(self, kind, step, weights, more)
        scored.metrics.update({name: float(value(step)) for name, value in worst_is_middle.items()})
        return scored

    monkeypatch.setattr(WeightSum, "_score", score)
    keep = {"last": 2, "best": {"metric": "val/recon_rmse"}, "milestones": [2]}
    block = tiny(steps=16, validation={"every": 2, "samples": 4}, checkpoint={"keep": keep})
    assert run("r", block, stop_after=10)[0] == 75
    _, run_dir = run("r", block, resume=True)
    assert checkpoint.list_steps(run_dir) == [2, 6, 14, 16]
    assert WeightSum.calls[-2:] == [("full", 16), ("full", 6)]
    again = lines(run_dir, "val")[-1]
    assert (again["step"], set(again) - {"step", "time", "kind"}) == (6, {"val_native/recon_rmse"})
    assert lines(run_dir, "event")[-1]["best_step"] == 6


def test_a_stop_between_the_full_validations_leaves_the_second_to_the_next_attempt(
    run: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, real = StopRequest(), WeightSum.full

    def full_then_ask(self: WeightSum, *arguments: Any) -> Any:
        stop.ask("in the middle")
        return real(self, *arguments)

    keep = {"keep": {"best": {"metric": "val/recon_rmse", "direction": "min"}}}
    block = tiny(optimizer={"lr": 0.05}, validation={"every": 2, "samples": 4}, checkpoint=keep)
    with monkeypatch.context() as patch:
        patch.setattr(WeightSum, "full", full_then_ask)
        assert run("r", block, stop=stop)[0] == 75
    code, run_dir = run("r", block, resume=True)
    assert code == 0
    assert [kind for kind, _ in WeightSum.calls] == ["full"]
    assert WeightSum.calls[0][1] == lines(run_dir, "event")[-1]["best_step"] != 8


def test_a_stop_before_the_first_step_leaves_a_checkpoint(run: Callable[..., tuple[int, Path]]) -> None:
    stop = StopRequest()
    stop.ask("early")
    code, run_dir = run("r", tiny(), stop=stop)
    assert code == 75
    assert checkpoint.list_steps(run_dir) == [0]
    assert events(run_dir)[-1] == (0, "stopped")


# ---- control ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("attempt", "code"), [(3, 75), (2, 0)])
def test_control_stops_its_own_attempt_only(
    run: Callable[..., tuple[int, Path]], tmp_path: Path, attempt: int, code: int
) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r/control.json").write_text(json.dumps({"attempt": attempt, "seq": 4, "stop": "checkpoint"}))
    assert run("r", tiny(), attempt=3)[0] == code
    acknowledged = [line["seq"] for line in lines(tmp_path / "r", "event") if line["event"] == "control_ack"]
    assert acknowledged == ([4] if code == 75 else [])
    assert checkpoint.list_steps(tmp_path / "r")[-1] == (0 if code == 75 else 8)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_a_run_is_not_trained_over_or_resumed_as_another(run: Callable[..., tuple[int, Path]]) -> None:
    _, run_dir = run("r", tiny(), stop_after=2)
    with pytest.raises(UsageError, match="--resume"):
        run("r", tiny())
    with pytest.raises(UsageError, match=r"config\.yaml differs"):
        run("r", tiny(batch=2), resume=True)
    (run_dir / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="keys: batch"):
        run("r", tiny(batch=2), resume=True)
    assert checkpoint.list_steps(run_dir) == [0, 2]


def test_a_device_that_is_not_there_is_refused(
    run: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        run("r", tiny(device="cuda"))


# ---- learning --------------------------------------------------------------------------------------------------------


def test_a_gradient_reaches_every_trained_parameter_within_a_few_steps() -> None:
    config = tiny_config(batch=16, repa={"enabled": True, "stop": {"end": 1.0}}, optimizer={"lr": 0.01})
    learner = Learner(config, NoiseSource(config, 0).streams, 0, torch.device("cpu"))
    batches = Batches(NoiseSource(config, 0), 0, 16)
    before = {name: value.clone() for name, value in learner.modules.state_dict().items()}
    for step in range(6):
        learner.step(batches, step, StopRequest())
    still = [name for name, value in learner.modules.state_dict().items() if torch.equal(value, before[name])]
    assert still == []


def test_noise_can_be_learned_by_heart(run: Callable[..., tuple[int, Path]]) -> None:
    data = {"size": 8, "samples": 1, "held_out": 4}
    _, run_dir = run(
        "r",
        tiny(steps=60, data=data, optimizer={"lr": 0.01, "warmup_steps": 5}, validation={"every": 60, "samples": 4}),
    )
    losses = [line["train/loss"] for line in lines(run_dir, "train")]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_the_real_data_and_validation_resume_bit_for_bit_too(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    keep = {"best": {"metric": "val/recon_rmse"}}
    block = tiny(steps=4, validation={"every": 2, "samples": 3, "sampler_steps": 1}, checkpoint={"keep": keep})
    config.write_text(json.dumps({"seed": 7, "run": "r", "trainer": block}))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.train(config, whole, stop=StopRequest()) == 0
    assert train.train(config, parts, stop_after=2, stop=StopRequest()) == 75
    assert train.train(config, parts, resume=True, stop=StopRequest()) == 0
    assert_same_checkpoint(whole, parts, 4)
    assert comparable(whole) == comparable(parts)
    scores = [(run_dir / "validation/step_000004/scores.csv").read_bytes() for run_dir in (whole, parts)]
    assert scores[0] == scores[1]
    names = [set(line) for line in lines(whole, "val") if line["step"] == 4]
    assert {"val/recon_rmse", "val_raw/recon_rmse", "val_native/recon_rmse", "val/use_text", "val/loss"} <= names[0]


# ---- processes -------------------------------------------------------------------------------------------------------


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "trainer", *arguments]


def in_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_exit_codes_of_refusals(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("seed: 0\ntrainer: {steps: 3, modle: {}}")
    refused = in_process("train", str(config), "--run-dir", str(tmp_path / "r"))
    assert (refused.returncode, "did you mean 'model'?" in refused.stderr) == (78, True)
    config.write_text(f"seed: 0\ntrainer: {{steps: 3, data: {{source: folder, path: {tmp_path}/none}}}}")
    no_data = in_process("train", str(config), "--run-dir", str(tmp_path / "r"))
    assert (no_data.returncode, "none" in no_data.stderr) == (65, True)
    later = in_process("distil", "x")
    assert (later.returncode, "not in this version" in later.stderr) == (2, True)


def test_sigterm_in_a_real_process_leaves_a_checkpoint_and_resume_finishes(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    block = tiny(steps=100_000, accumulation=4, validation={"every": 100_000, "samples": 2, "sampler_steps": 1})
    config.write_text(json.dumps({"seed": 7, "trainer": block}))
    run_dir, options = tmp_path / "r", ["--run-dir", str(tmp_path / "r"), "--attempt", "1"]
    process = subprocess.Popen(command("train", str(config), *options), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    metrics = run_dir / "attempt-1/metrics.jsonl"
    deadline = time.monotonic() + 100
    while not (metrics.exists() and '"kind": "train"' in metrics.read_text()):
        assert time.monotonic() < deadline, "no training line within 60 s"
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=100) == 75
    process.communicate()
    steps = checkpoint.list_steps(run_dir)
    assert events(run_dir)[-1] == (steps[-1], "stopped")
    assert len(load_file(checkpoint.folder(run_dir, steps[-1]) / "model.safetensors")) > 50
    resumed = in_process(
        "train", str(run_dir / "config.yaml"), *options[:2], "--resume", "--stop-after", str(steps[-1] + 1)
    )
    assert resumed.returncode == 75, resumed.stderr
    assert checkpoint.list_steps(run_dir)[-1] == steps[-1] + 1
