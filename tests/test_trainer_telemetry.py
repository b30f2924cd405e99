"""What a process writes about itself, and how it is told to stop."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.fakes.trainer_parts import tiny_config
from trainer.control import Control, StopRequest, Wish
from trainer.meter import Meter
from trainer.scores import Scores
from trainer.step import StepResult
from trainer.telemetry import Telemetry


def lines(attempt_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (attempt_dir / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_json_with_words_for_what_is_not_finite(tmp_path: Path) -> None:
    with Telemetry(tmp_path) as telemetry:
        telemetry.metrics("train", 3, {"train/loss": math.nan, "a": math.inf, "b": -math.inf, "c": 0.5})
        telemetry.metrics("val", 3, {})
        telemetry.event(3, "checkpoint", finite=False)
    metrics, event = lines(tmp_path)
    assert metrics.pop("time") > 1.6e9
    assert metrics == {"step": 3, "kind": "train", "train/loss": "nan", "a": "inf", "b": "-inf", "c": 0.5}
    assert (event["kind"], event["event"], event["finite"]) == ("event", "checkpoint", False)


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    with Telemetry(tmp_path) as telemetry:
        for step in range(3):
            telemetry.metrics("val", step, {"val/loss": step / 2})
        telemetry.sync()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(scalar.step, scalar.value) for scalar in board.Scalars("val/loss")] == [(0, 0.0), (1, 0.5), (2, 1.0)]


def test_a_line_that_was_cut_off_does_not_swallow_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "ki')
    with Telemetry(tmp_path) as telemetry:
        telemetry.event(2, "resumed")
    written = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert written[:2] == ['{"step": 1}', '{"step": 2, "ki']
    assert json.loads(written[2])["event"] == "resumed"


# ---- control ---------------------------------------------------------------------------------------------------------


def wish(run_dir: Path, **content: Any) -> None:
    (run_dir / "new").write_text(json.dumps(content))
    (run_dir / "new").replace(run_dir / "control.json")


def test_a_wish_is_seen_once_per_replacement(tmp_path: Path) -> None:
    control = Control(tmp_path, attempt=2)
    assert control.poll() is None
    wish(tmp_path, attempt=2, seq=1, probe_every_steps=None, stop=None)
    assert control.poll() == Wish(seq=1, stop=False)
    assert control.poll() is None
    wish(tmp_path, attempt=2, seq=2, probe_every_steps=100, stop="checkpoint")
    assert control.poll() == Wish(seq=2, stop=True, probe_every_steps=100)


@pytest.mark.parametrize(
    "content", [{"attempt": 1, "seq": 5, "stop": "checkpoint"}, {"seq": 5, "stop": "checkpoint"}, {}]
)
def test_wishes_for_others_are_ignored(tmp_path: Path, content: dict[str, Any]) -> None:
    wish(tmp_path, **content)
    assert Control(tmp_path, attempt=2).poll() is None


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_a_broken_file_wishes_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "control.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    control = Control(tmp_path, attempt=1)
    assert control.poll() is None
    wish(tmp_path, attempt=1, seq=9, stop="checkpoint")
    assert control.poll() == Wish(seq=9, stop=True)


def test_signals_only_set_a_flag() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stop = StopRequest()
    try:
        stop.listen()
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- sums over steps -------------------------------------------------------------------------------------------------


LOSSES = ("loss", "flow_loss", "repa_loss", "velocity_square", "flow_loss_t0.1", "flow_loss_t0.9")


def result(loss: float, aligned: int = 0, early: int = 0, **changes: Any) -> StepResult:
    """One step of four samples, `early` of them at small t."""
    repa = loss / 4 if aligned else 0.0
    losses_L = torch.tensor([loss, loss / 2, repa, 4.0, 0.5 * early, 3.0 * (4 - early)])
    counts = (1, 1, aligned, 1, early, 4 - early)
    fields: dict[str, Any] = {"lr": 0.1, "weights": {"repa": 0.5}, "extra": {}, "reading": None, **changes}
    return StepResult(losses_L, counts, torch.tensor(7.0), active_tokens=16.0, data_s=0.1, **fields)


def test_losses_are_means_over_the_window() -> None:
    meter = Meter(tiny_config(), torch.device("cpu"), LOSSES)
    meter.add(result(1.0), 0.5)
    meter.add(result(3.0, aligned=1, early=2, extra={"train/repa_cosine": 0.25}), 0.5)
    line = meter.line()
    assert line["train/loss"] == 2.0
    assert line["train/flow_loss"] == 1.0
    assert line["train/repa_loss"] == 0.75, "only steps with aligned samples count"
    assert line["train/velocity_rms"] == 2.0
    assert (line["train/flow_loss_t0.1"], line["train/flow_loss_t0.9"]) == (0.5, 3.0), "means over samples, not steps"
    assert line["train/repa_cosine"] == 0.25
    assert line["sys/iter_per_s"] == pytest.approx(2.0)
    assert line["sys/images_per_s"] == pytest.approx(8.0)
    assert line["sys/data_wait_frac"] == pytest.approx(0.2)
    assert (line["sys/train_s"], line["sys/eval_s"]) == (1.0, 0.0)
    assert line["memory/rss_gib"] > 0.01


def test_a_window_without_alignment_has_no_alignment_loss() -> None:
    meter = Meter(tiny_config(), torch.device("cpu"), LOSSES)
    meter.add(result(3.0, aligned=1), 1.0)
    meter.line()
    meter.add(result(1.0), 1.0)
    line = meter.line()
    assert "train/repa_loss" not in line
    assert "train/flow_loss_t0.1" not in line
    assert line["train/loss"] == 1.0
    assert line["sys/train_s"] == 2.0


def test_an_open_window_survives_a_restart() -> None:
    whole, before, after = (Meter(tiny_config(), torch.device("cpu"), LOSSES) for _ in range(3))
    for meter in (whole, before):
        meter.add(result(1.0, aligned=1), 1.0)
    after.load_state_dict(before.state_dict())
    for meter in (whole, after):
        meter.add(result(0.3), 1.0)
    expected, got = whole.line(), after.line()
    assert {name: got[name] for name in got if name.startswith("train/")} == {
        name: expected[name] for name in expected if name.startswith("train/")
    }


# ---- scores ----------------------------------------------------------------------------------------------------------


def scores(tmp_path: Path, **best: Any) -> Scores:
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    keep = {"best": {"metric": "val/recon_rmse", **best}}
    return Scores(tmp_path, tiny_config(steps=100, validation={"every": 5, "samples": 4}, checkpoint={"keep": keep}))


def fill(table: Scores, values: dict[int, float]) -> None:
    for step, value in values.items():
        table.add(step, {"val/recon_rmse": value})


def test_the_best_step(tmp_path: Path) -> None:
    table = scores(tmp_path)
    # 5 is too early, 12 is no regular step, 20 and 30 tie, 40 is not finite, 50 has no checkpoint.
    fill(table, {5: 0.1, 12: 0.1, 20: 0.5, 30: 0.5, 40: math.nan, 45: -math.inf, 50: 0.2, 60: 0.9})
    assert table.best([5, 12, 20, 30, 40, 45, 60, 70]) == 20
    assert table.best([]) is None
    assert table.best([5, 40]) is None


def test_larger_may_be_better(tmp_path: Path) -> None:
    table = scores(tmp_path, direction="max")
    fill(table, {20: 0.5, 30: 0.9, 40: 0.9})
    assert table.best([20, 30, 40]) == 30


def test_scores_survive_a_restart_up_to_its_step(tmp_path: Path) -> None:
    fill(scores(tmp_path), {20: 0.5, 30: math.inf, 40: 0.1})
    table = scores(tmp_path)
    table.restore(until=30)
    assert table.best([20, 30, 40]) == 20
    assert (30 in table, 40 in table) == (True, False)
    assert table.unknown(30, {"val/recon_rmse": 0.0, "val/use_text": 0.1}) == {"val/use_text": 0.1}


def test_nothing_is_best_unless_asked_for(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    table = Scores(tmp_path, tiny_config())
    fill(table, {4: 0.5})
    assert table.best([4]) is None
