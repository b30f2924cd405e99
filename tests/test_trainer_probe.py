"""Probes: when they happen, what they write, what they leave alone, and the indicators that rest on their images."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes.trainer_parts import NoiseSource, WeightSum, randomise, tiny, tiny_config
from trainer import checkpoint, session, train
from trainer.control import Control, StopRequest
from trainer.data import open_source
from trainer.data.batches import Batches
from trainer.document import Document
from trainer.evaluate.perceptual import lpips_on
from trainer.evaluate.probe import Probe
from trainer.evaluate.protocols import EvalSet, eval_sets
from trainer.evaluate.reconstruction import loss_scores, perceptual, rmse
from trainer.evaluate.scores import COLUMNS
from trainer.model.nanodit import build
from trainer.objective.flow import corrupt
from trainer.step import Learner

METRICS = {f"val_probe/{raw}{name}" for raw in ("", "raw_") for name in ("recon_rmse", "recon_lpips", "loss")}
TREAD = {"enabled": True, "ratio": 0.5}
CPU = torch.device("cpu")


class ProbedNoise(NoiseSource):
    """Pure noise with three images to probe."""

    probe_images = 3


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Path]]:
    """Train in this process on noise; `control` is what control.json holds from the beginning."""
    monkeypatch.setattr(train, "open_source", ProbedNoise)
    monkeypatch.setattr(session, "Validation", WeightSum)

    def start(name: str, block: dict[str, Any], control: Any = None, **options: Any) -> tuple[int, Path]:
        config = tmp_path / f"{name}.yaml"
        config.write_text(json.dumps({"seed": 7, "run": name, "trainer": block}))
        (tmp_path / name).mkdir(exist_ok=True)
        if control is not None:
            wish = {"attempt": options.get("attempt", 1), "seq": 1, "stop": None, **control}
            (tmp_path / name / "control.json").write_text(json.dumps(wish))
        return train.train(config, tmp_path / name, stop=StopRequest(), **options), tmp_path / name

    return start


def lines(run_dir: Path, attempt: int = 1, kind: str = "val") -> list[dict[str, Any]]:
    text = (run_dir / f"attempt-{attempt}" / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]


def probed(run_dir: Path, attempt: int = 1) -> dict[int, dict[str, float]]:
    """Probe metrics by step; a step must not have them twice."""
    found: dict[int, dict[str, float]] = {}
    for line in lines(run_dir, attempt):
        own = {name: value for name, value in line.items() if name.startswith(("val_probe/", "opt/"))}
        if own:
            assert line["step"] not in found
            found[line["step"]] = own
    return found


def rows(run_dir: Path, step: int) -> list[dict[str, str]]:
    with (run_dir / f"probes/step_{step:06d}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def acknowledged(run_dir: Path, attempt: int = 1) -> list[tuple[int, list[str]]]:
    return [
        (line["seq"], line["ignored"]) for line in lines(run_dir, attempt, "event") if line["event"] == "control_ack"
    ]


# ---- when ------------------------------------------------------------------------------------------------------------


def test_regular_validations_always_probe(run: Callable[..., tuple[int, Path]]) -> None:
    _, run_dir = run("r", tiny())
    assert list(probed(run_dir)) == [0, 4, 8]
    assert all(set(metrics) >= METRICS for metrics in probed(run_dir).values())
    assert lines(run_dir, kind="event")[0]["probe_images"] == 3


def test_a_wish_adds_probes_at_multiples_and_nothing_else(run: Callable[..., tuple[int, Path]]) -> None:
    _, run_dir = run("r", tiny(), control={"probe_every_steps": 3})
    assert list(probed(run_dir)) == [0, 3, 4, 6, 8]
    assert acknowledged(run_dir) == [(1, [])]
    assert WeightSum.calls == [("light", 0), ("light", 4), ("full", 8)]
    between = next(line for line in lines(run_dir) if line["step"] == 3)
    assert not [name for name in between if name.startswith(("val/", "val_raw/", "val_native/"))]
    assert not (run_dir / "validation/step_000003").exists()
    assert checkpoint.list_steps(run_dir) == [4, 8]
    assert {int(step) for step in json.loads((run_dir / "checkpoints/scores.json").read_text())} == {0, 4, 8}
    assert sorted(path.name for path in (run_dir / "probes").iterdir()) == [
        f"step_{step:06d}.csv" for step in (0, 3, 4, 6, 8)
    ]
    seconds = {line["step"]: line["sys/eval_s"] for line in lines(run_dir, kind="train")}
    assert seconds[2] == seconds[3] < seconds[4], "the probe of step 3 is evaluation time"


def test_a_probe_never_chooses_the_best(run: Callable[..., tuple[int, Path]]) -> None:
    keep = {"keep": {"last": 1, "best": {"metric": "val_probe/recon_rmse"}}}
    _, run_dir = run("r", tiny(checkpoint=keep), control={"probe_every_steps": 1})
    assert lines(run_dir, kind="event")[-1]["best_step"] in (4, 8)
    assert list(probed(run_dir)) == list(range(9))


def test_the_wish_can_be_changed_and_dropped_on_the_way(
    run: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = {0: 2, 4: 5, 11: None}
    real = Control.poll

    def poll(self: Control) -> Any:
        step = poll.looks
        poll.looks += 1
        if step in wishes:
            wish = {"attempt": 1, "seq": step + 1, "stop": None, "probe_every_steps": wishes[step]}
            unfinished = self._path.with_suffix(".new")
            unfinished.write_text(json.dumps(wish))
            unfinished.replace(self._path)
        return real(self)

    poll.looks = 0
    monkeypatch.setattr(Control, "poll", poll)
    _, run_dir = run("r", tiny(steps=16, validation={"every": 16, "samples": 4}))
    assert list(probed(run_dir)) == [0, 2, 4, 5, 10, 16]
    assert acknowledged(run_dir) == [(1, []), (5, []), (12, [])]


@pytest.mark.parametrize("wish", [0, -5, "x", "2", 2.0, True, [2]])
def test_an_unusable_cadence_is_ignored_and_said(run: Callable[..., tuple[int, Path]], wish: Any) -> None:
    _, run_dir = run("r", tiny(steps=4), control={"probe_every_steps": wish})
    assert list(probed(run_dir)) == [0, 4]
    assert acknowledged(run_dir) == [(1, ["probe_every_steps"])]


def test_an_unusable_cadence_does_not_hide_a_stop(run: Callable[..., tuple[int, Path]]) -> None:
    code, run_dir = run("r", tiny(steps=4), control={"probe_every_steps": -1, "stop": "checkpoint"})
    assert code == 75
    assert acknowledged(run_dir) == [(1, ["probe_every_steps"])]


@pytest.mark.parametrize("wish", [{}, {"probe_every_steps": None}])
def test_no_wish_is_no_probe(run: Callable[..., tuple[int, Path]], wish: dict[str, Any]) -> None:
    _, run_dir = run("r", tiny(steps=4), control=wish)
    assert list(probed(run_dir)) == [0, 4]
    assert acknowledged(run_dir) == [(1, [])]


def test_without_probe_images_a_wish_is_ignored_and_said(
    run: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "open_source", NoiseSource)
    _, run_dir = run("r", tiny(steps=4), control={"probe_every_steps": 2})
    assert probed(run_dir) == {}
    assert acknowledged(run_dir) == [(1, ["probe_every_steps"])]
    assert not (run_dir / "probes").exists()


# ---- what changes nothing --------------------------------------------------------------------------------------------


def test_probes_change_no_bit_of_the_training(run: Callable[..., tuple[int, Path]]) -> None:
    block = tiny(tread=TREAD, repa={"enabled": True}, accumulation=2, ema={"half_lives": [0.1, 0.4]})
    _, plain = run("plain", block)
    _, often = run("often", block, control={"probe_every_steps": 1})
    for path in checkpoint.folder(plain, 8).glob("*.safetensors"):
        assert path.read_bytes() == (checkpoint.folder(often, 8) / path.name).read_bytes(), path.name
    for one, other in zip(lines(plain, kind="train"), lines(often, kind="train"), strict=True):
        assert {name: one[name] for name in one if name.startswith(("train/", "opt/"))} == {
            name: other[name] for name in other if name.startswith(("train/", "opt/"))
        }
    shared = probed(plain)
    assert {step: probed(often)[step] for step in shared} == shared


def test_a_resumed_attempt_probes_again_with_the_same_result(run: Callable[..., tuple[int, Path]]) -> None:
    _, whole = run("whole", tiny(), control={"probe_every_steps": 1})
    assert run("parts", tiny(), control={"probe_every_steps": 1}, stop_after=6)[0] == 75
    first = probed(whole.parent / "parts")
    stored = (whole.parent / "parts/probes/step_000006.csv").read_bytes()
    code, parts = run("parts", tiny(), {"probe_every_steps": 1}, attempt=2, resume=True, from_step=4)
    assert code == 0
    assert list(first) == [0, 1, 2, 3, 4, 5, 6]
    assert list(probed(parts, 2)) == [5, 6, 7, 8], "step 4 has its validation and its probe"
    assert {**first, **probed(parts, 2)} == probed(whole)
    assert probed(parts, 2)[6] == first[6]
    assert (parts / "probes/step_000006.csv").read_bytes() == stored


def test_a_stop_at_a_probed_step_leaves_its_validation_to_the_next_attempt(
    run: Callable[..., tuple[int, Path]],
) -> None:
    run("r", tiny(), control={"probe_every_steps": 3}, stop_after=3)
    _, run_dir = run("r", tiny(), attempt=2, resume=True)
    assert [line["step"] for line in lines(run_dir, 2) if "val/recon_rmse" in line] == [3, 4, 8]
    assert probed(run_dir, 2)[3] == probed(run_dir, 1)[3]


def test_a_stop_that_came_during_the_step_is_not_kept_waiting_by_a_probe(
    run: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Learner.step

    def interrupted(self: Learner, batches: Batches, done: int, stop: StopRequest) -> Any:
        result = step(self, batches, done, stop)
        if done == 2:
            stop.ask("just now")
        return result

    monkeypatch.setattr(Learner, "step", interrupted)
    code, run_dir = run("r", tiny(), control={"probe_every_steps": 1})
    assert code == 75
    assert list(probed(run_dir)) == [0, 1, 2]
    assert checkpoint.list_steps(run_dir)[-1] == 3


# ---- what is written -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned() -> Learner:
    """A little training with routing, so that averages and routed predictions differ."""
    config = tiny_config(steps=20, tread=TREAD, optimizer={"lr": 0.01})
    source = ProbedNoise(config, 0)
    learner = Learner(config, source.streams, 5, CPU)
    for step in range(12):
        learner.step(Batches(source, 5, 4), step, StopRequest())
    return learner


def probe_of(learner: Learner, run_dir: Path) -> tuple[Probe, EvalSet]:
    source = ProbedNoise(learner.config, 0)
    [inputs] = eval_sets(learner.config, source, CPU, source.probe_ids)
    return Probe(Document(learner.config, 5, "arm-s5"), source, CPU, run_dir), inputs


def weights_of(learner: Learner) -> dict[str, Any]:
    return {"raw": learner.model, "ema": learner.ema.first}


def test_metrics_are_those_of_a_light_validation_on_other_images(learned: Learner, tmp_path: Path) -> None:
    probe, inputs = probe_of(learned, tmp_path)
    metrics = probe.run(550, weights_of(learned))
    for name, raw in (("ema", ""), ("raw", "raw_")):
        images_BCHW = inputs.generate(weights_of(learned)[name], inputs.conditions)
        distance_B = perceptual(images_BCHW, inputs.x_BCHW, lpips_on("cpu"))
        assert metrics[f"val_probe/{raw}recon_rmse"] == pytest.approx(float(rmse(images_BCHW, inputs.x_BCHW).mean()))
        assert metrics[f"val_probe/{raw}recon_lpips"] == pytest.approx(float(distance_B.mean()))
        inputs.first_sixth = 2  # the first half of three images, rounded up
        losses = [
            score.value for score in loss_scores(inputs, weights_of(learned)[name], name) if score.metric == "loss"
        ]
        assert metrics[f"val_probe/{raw}loss"] == pytest.approx(statistics.fmean(losses), rel=1e-5)


def test_scores_per_sample_have_the_columns_of_a_validation(learned: Learner, tmp_path: Path) -> None:
    probe, _ = probe_of(learned, tmp_path)
    metrics = probe.run(550, weights_of(learned))
    found = rows(tmp_path, 550)
    assert tuple(found[0]) == COLUMNS
    assert {(row["run"], row["step"], row["sampler"], row["eval_seed"], row["valid"]) for row in found} == {
        ("arm-s5", "550", "common", "0", "1")
    }
    for name in METRICS:
        weights = "raw" if "/raw_" in name else "ema"
        metric = name.partition("/")[2].removeprefix("raw_")
        values = {
            row["sample_id"]: float(row["value"])
            for row in found
            if (row["weights"], row["metric"]) == (weights, metric)
        }
        assert list(values) == [f"probe-{index}" for index in range(2 if metric == "loss" else 3)]
        assert statistics.fmean(values.values()) == pytest.approx(metrics[name])
    assert [path.name for path in (tmp_path / "probes").iterdir()] == ["step_000550.csv"]


def test_weights_that_are_not_finite_are_said_and_not_hidden(learned: Learner, tmp_path: Path) -> None:
    probe, _ = probe_of(learned, tmp_path)
    broken = build(learned.config.model, ProbedNoise(learned.config, 0).streams, 5)
    with torch.no_grad():
        broken.head.weight.fill_(math.nan)
    metrics = probe.run(7, {"raw": broken, "ema": learned.ema.first})
    assert all(math.isnan(metrics[f"val_probe/raw_{name}"]) for name in ("recon_rmse", "recon_lpips", "loss"))
    assert all(math.isnan(metrics[f"opt/{name}"]) for name in ("ema_lag", "ema_loss_gap", "dense_routed_gap"))
    assert math.isfinite(metrics["val_probe/recon_rmse"])
    broken_rows = [row for row in rows(tmp_path, 7) if row["weights"] == "raw"]
    assert {(row["value"], row["valid"], row["reason"]) for row in broken_rows} == {("", "0", "not finite")}


def test_a_probe_leaves_models_and_generators_as_they_are(learned: Learner, tmp_path: Path) -> None:
    probe, _ = probe_of(learned, tmp_path)
    state, mode = torch.get_rng_state(), learned.model.training
    before = {name: value.clone() for name, value in learned.model.state_dict().items()}
    probe.run(1, weights_of(learned))
    assert torch.equal(torch.get_rng_state(), state)
    assert learned.model.training == mode
    assert all(parameter.grad is None for parameter in learned.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in learned.model.state_dict().items())


def test_probe_images_of_real_sources_are_their_own() -> None:
    config = tiny_config(data={"size": 16, "samples": 40, "held_out": 10})
    source = open_source(config)
    probe = Probe(Document(config, 0, "r"), source, CPU, Path("unused"))
    assert len(probe.ids) == 8
    assert not {*probe.ids} & {*source.train_ids, *source.held_out_ids}


# ---- I5 and I6 -------------------------------------------------------------------------------------------------------


def test_the_gap_between_dense_and_routed_is_that_of_the_definition(learned: Learner, tmp_path: Path) -> None:
    probe, inputs = probe_of(learned, tmp_path)
    metrics = probe.run(1, weights_of(learned))
    first = torch.arange(2)
    gaps, losses = [], []
    for t in (0.1, 0.3, 0.5, 0.7, 0.9):
        z_BCHW = corrupt(inputs.x_BCHW[first], inputs.noise(0)[first], torch.full((2,), t))
        conditions, t_B = inputs.conditions.select(first), torch.full((2,), t)
        with torch.no_grad():
            dense = learned.model(z_BCHW, t_B, conditions).x_BCHW
            routed = learned.model(z_BCHW, t_B, conditions, route=inputs.route(0).select(first)).x_BCHW
        gaps.append(float((dense - routed).norm() / dense.norm()))
        errors = [float((x - inputs.x_BCHW[first]).square().mean()) / t**2 for x in (dense, routed)]
        losses.append(errors[0] - errors[1])
        assert metrics[f"opt/dense_routed_gap/t{t}"] == pytest.approx(gaps[-1], rel=1e-4)
    assert metrics["opt/dense_routed_gap"] == pytest.approx(statistics.fmean(gaps), rel=1e-4)
    assert metrics["opt/dense_routed_loss_gap"] == pytest.approx(statistics.fmean(losses), rel=1e-3)
    assert min(gaps) > 0


def test_without_routing_there_is_no_gap(tmp_path: Path) -> None:
    config = tiny_config()
    source = ProbedNoise(config, 0)
    model = build(config.model, source.streams, 0)
    randomise(model)
    metrics = Probe(Document(config, 0, "r"), source, CPU, tmp_path).run(0, {"raw": model, "ema": model})
    assert {name for name in metrics if name.startswith("opt/")} == {"opt/ema_lag", "opt/ema_loss_gap"}
    assert (metrics["opt/ema_lag"], metrics["opt/ema_loss_gap"]) == (0.0, 0.0)


def test_the_lag_is_measured_from_the_initial_weights_of_this_seed(learned: Learner, tmp_path: Path) -> None:
    probe, _ = probe_of(learned, tmp_path)
    metrics = probe.run(1, weights_of(learned))
    start = build(learned.config.model, ProbedNoise(learned.config, 0).streams, 5)

    def flat(module: torch.nn.Module) -> torch.Tensor:
        return torch.cat([parameter.detach().double().flatten() for parameter in module.parameters()])

    raw, ema = flat(learned.model), flat(learned.ema.first)
    assert metrics["opt/ema_lag"] == pytest.approx(float((ema - raw).norm() / (raw - flat(start)).norm()), rel=1e-5)
    ratio = metrics["val_probe/loss"] / metrics["val_probe/raw_loss"]
    assert metrics["opt/ema_loss_gap"] == pytest.approx(ratio - 1)
    assert 0 < metrics["opt/ema_lag"] < 1


def test_before_the_first_step_there_is_nothing_to_divide_by(tmp_path: Path) -> None:
    config = tiny_config(tread=TREAD)
    source = ProbedNoise(config, 0)
    model = build(config.model, source.streams, 3)
    metrics = Probe(Document(config, 3, "r"), source, CPU, tmp_path).run(0, {"raw": model, "ema": model})
    found = {name: value for name, value in metrics.items() if name.startswith("opt/")}
    assert found == {"opt/dense_routed_loss_gap": 0.0, "opt/ema_loss_gap": 0.0}
