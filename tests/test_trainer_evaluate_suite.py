"""The validation of a real, small run: files, names, cadence, and the same numbers when evaluated again."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.fakes.trainer_runs import metrics_at, trained
from trainer.__main__ import main
from trainer.checkpoint import list_steps, load_for_evaluation
from trainer.data import open_source
from trainer.document import load_document
from trainer.evaluate.command import evaluate
from trainer.evaluate.scores import PREFIXES, Variant
from trainer.evaluate.suite import Validation

LIGHT = {
    *(f"val/{task}_{kind}" for task in ("recon", "text") for kind in ("rmse", "lpips")),
    *(f"val_raw/recon_{kind}" for kind in ("rmse", "lpips")),
    *(f"{prefix}/loss{t}" for prefix in ("val", "val_raw") for t in ("", "_t0.1", "_t0.3", "_t0.5", "_t0.7", "_t0.9")),
}
FULL = LIGHT | {
    *(f"{prefix}/recon_{kind}" for prefix in ("val_native", "val_raw_native") for kind in ("rmse", "lpips")),
    *(f"val/use_{stream}" for stream in ("text", "cls", "patches", "pose")),
    *(f"val/text_manip_{name}" for name in ("delta", "floor", "spread", "hit")),
    *(f"val/dino_swap_{name}" for name in ("lpips", "ceiling", "spread", "toward")),
    *(f"val/cfg_divergence_{name}" for name in ("text_dino", "text_both", "dino_both", "guidance")),
}

FULL_IMAGES = {
    "reference": 6,
    "ema_common": 6,
    "ema_native": 6,
    "raw_common": 2,
    "text_only": 2,
    "text_edit": 2,
    "dino_swap": 2,
    "dino_only": 2,
    "text_and_dino": 2,
}

PROBE = {
    *(f"val_probe/{raw}{name}" for raw in ("", "raw_") for name in ("recon_rmse", "recon_lpips", "loss")),
    "opt/ema_loss_gap",
    "opt/dense_routed_loss_gap",
}
MOVED = {  # where nothing has been predicted or moved yet these have no divisor
    "opt/ema_lag",
    *(f"opt/dense_routed_gap{t}" for t in ("", "/t0.1", "/t0.3", "/t0.5", "/t0.7", "/t0.9")),
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "small")


def folder(run_dir: Path, step: int) -> Path:
    return run_dir / "validation" / f"step_{step:06d}"


def meta(run_dir: Path, step: int) -> dict[str, Any]:
    return json.loads((folder(run_dir, step) / "meta.json").read_text())


def rows(run_dir: Path, step: int) -> list[dict[str, str]]:
    with (folder(run_dir, step) / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def score_name(row: dict[str, str]) -> str:
    return f"{PREFIXES[Variant(row['weights'], row['sampler'])]}/{row['metric']}"


def validation(run_dir: Path, target: Path) -> Validation:
    document = load_document(run_dir / "config.yaml")
    return Validation(document.config, open_source(document.config), "cpu", document.run, target)


def models(run_dir: Path, step: int) -> dict[str, Any]:
    return {name: load_for_evaluation(run_dir, step, name, "cpu")[0] for name in ("raw", "ema")}


# ---- what is written -------------------------------------------------------------------------------------------------


def test_light_steps_and_the_full_end_have_their_metrics(run_dir: Path) -> None:
    kinds = {step: meta(run_dir, step)["kind"] for step in (0, 2, 4, 6)}
    assert kinds[0] == "light"
    assert kinds[6] == "full"
    for step, kind in kinds.items():
        probe = PROBE | (MOVED if step else set())
        assert set(metrics_at(run_dir, step)) == (FULL if kind == "full" else LIGHT) | probe
        assert all(math.isfinite(value) for value in metrics_at(run_dir, step).values())


def test_metrics_are_the_means_of_the_rows(run_dir: Path) -> None:
    gathered: dict[str, list[float]] = {}
    for row in rows(run_dir, 6):
        assert (row["run"], row["step"], row["valid"]) == ("small", "6", "1")
        gathered.setdefault(score_name(row), []).append(float(row["value"]))
    metrics = metrics_at(run_dir, 6)
    assert set(gathered) == set(metrics) - PROBE - MOVED
    for name, values in gathered.items():
        assert metrics[name] == pytest.approx(sum(values) / len(values))
        all_samples = name.startswith(("val/recon", "val_native", "val/use"))
        assert len(values) == (6 if all_samples else 1 if "/loss" in name else 2), name


def test_images_of_light_and_full_steps(run_dir: Path) -> None:
    document = load_document(run_dir / "config.yaml")
    held_out = open_source(document.config).held_out_ids
    light = {
        path.name: sorted(file.stem for file in path.iterdir()) for path in (folder(run_dir, 0) / "images").iterdir()
    }
    assert light == {"ema_common": sorted(held_out)}
    full = {path.name: len(list(path.iterdir())) for path in (folder(run_dir, 6) / "images").iterdir()}
    assert full == FULL_IMAGES
    with Image.open(folder(run_dir, 6) / "images" / "reference" / f"{held_out[0]}.png") as image:
        assert image.size == (16, 16)
        assert image.info["caption"] == open_source(document.config).load(held_out[0]).caption


def test_meta_says_what_the_scores_rest_on(run_dir: Path) -> None:
    found = meta(run_dir, 6)
    assert (found["step"], found["complete"]) == (6, True)
    assert (found["held_out"], found["first_third"], found["train_ids_overlap"]) == (6, 2, 0)
    assert found["lpips"]["net"] == "alex"
    assert found["samplers"]["native"]["scales"] == {"scale": 2.0}
    assert found["samplers"]["common"] == {"kind": "dense", "euler_steps": 2, "shift": 1.0}
    assert any("nothing about DINO" in label for label in found["labels"])
    assert meta(run_dir, 0)["samplers"] == found["samplers"]
    assert meta(run_dir, 0)["eval_set"] == found["eval_set"]
    floors = found["calibration"]["recon_rmse"]
    assert (
        floors["identical"] == 0 < floors["jittered"] < floors["blurred"] < floors["other_portrait"] < floors["noise"]
    )


def test_a_full_validation_says_how_its_scores_spread_and_what_they_mean(run_dir: Path) -> None:
    found = meta(run_dir, 6)
    assert "distributions" not in meta(run_dir, 0)
    assert set(found["distributions"]) == set(metrics_at(run_dir, 6)) - PROBE - MOVED
    for name, spread in found["distributions"].items():
        assert spread["p05"] <= spread["p50"] <= spread["p95"]
        values = [float(row["value"]) for row in rows(run_dir, 6) if score_name(row) == name]
        assert (spread["valid"], spread["invalid"]) == (len(values), 0)
        assert min(values) <= spread["p50"] <= max(values)
    assert set(found["calibration"]) == {
        *("recon_rmse", "recon_lpips", "text_rmse", "text_lpips"),
        *(f"text_manip_{name}" for name in ("delta", "floor", "spread")),
        *(f"dino_swap_{name}" for name in ("lpips", "ceiling", "spread")),
        *(f"cfg_divergence_{name}" for name in ("text_dino", "text_both", "dino_both", "guidance")),
    }
    assert set(meta(run_dir, 0)["calibration"]) == {"recon_rmse", "recon_lpips"}


def test_the_evaluation_set_is_shared_by_arms_and_seeds_but_not_by_protocols(tmp_path: Path, run_dir: Path) -> None:
    def eval_set_of(name: str, **changes: Any) -> str:
        other = tmp_path / name
        other.mkdir()
        text = (run_dir / "config.yaml").read_text().replace("seed: 1", "seed: 9")
        for old, new in changes.values():
            assert old in text
            text = text.replace(old, new)
        (other / "config.yaml").write_text(text)
        validation(other, other).light(2, models(run_dir, list_steps(run_dir)[-1]))
        return meta(other, 2)["eval_set"]

    own = meta(run_dir, 6)["eval_set"]
    assert eval_set_of("seed", lr=("lr: 0.01", "lr: 0.5")) == own
    assert eval_set_of("steps", sampler=("sampler_steps: 2", "sampler_steps: 3")) != own
    assert eval_set_of("samples", samples=("samples: 6", "samples: 5")) != own


# ---- what changes nothing --------------------------------------------------------------------------------------------


def test_light_is_a_subset_of_full_and_leaves_the_models_as_they_are(run_dir: Path, tmp_path: Path) -> None:
    step = list_steps(run_dir)[-1]
    weights = models(run_dir, step)
    weights["raw"].train().requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in weights["raw"].state_dict().items()}
    state = torch.get_rng_state()
    suite = validation(run_dir, tmp_path)
    light = suite.light(step, weights).metrics
    full = suite.full(step, weights, load_document(run_dir / "config.yaml").config.sampler.native).metrics
    assert {name: full[name] for name in light} == light
    assert torch.equal(torch.get_rng_state(), state)
    assert weights["raw"].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights["raw"].state_dict().items())


def test_a_dense_native_sampler_scores_as_the_common_one(run_dir: Path, tmp_path: Path) -> None:
    step = list_steps(run_dir)[-1]
    dense = load_document(run_dir / "config.yaml").config.sampler.native.model_copy(update={"kind": "dense"})
    metrics = validation(run_dir, tmp_path).full(step, models(run_dir, step), dense).metrics
    assert metrics["val_native/recon_rmse"] == metrics["val/recon_rmse"]
    assert metrics["val_raw_native/recon_lpips"] == metrics["val_raw/recon_lpips"]


def test_a_model_that_has_exploded_is_scored_as_invalid(run_dir: Path, tmp_path: Path) -> None:
    step = list_steps(run_dir)[-1]
    weights = models(run_dir, step)
    with torch.no_grad():
        weights["ema"].head.weight.fill_(math.nan)
    native = load_document(run_dir / "config.yaml").config.sampler.native
    metrics = validation(run_dir, tmp_path).full(step, weights, native).metrics
    assert math.isnan(metrics["val/recon_rmse"])
    assert math.isnan(metrics["val/text_manip_hit"])
    assert math.isfinite(metrics["val_raw/recon_rmse"])
    broken = [row for row in rows(tmp_path, step) if row["valid"] == "0"]
    assert {(row["weights"], row["value"], row["reason"]) for row in broken} == {("ema", "", "not finite")}
    assert {score_name(row) for row in broken} == {name for name in FULL if not name.startswith("val_raw")}
    assert meta(tmp_path, step)["complete"] is True


# ---- evaluate --------------------------------------------------------------------------------------------------------


def test_standalone_evaluation_gives_the_same_numbers(run_dir: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(run_dir, tmp_path / "again"))
    results = evaluate(again)
    assert 6 in results
    for step, metrics in results.items():
        trained = {name: value for name, value in metrics_at(run_dir, step).items() if name not in PROBE | MOVED}
        assert metrics == trained
        assert (folder(again, step) / "scores.csv").read_bytes() == (folder(run_dir, step) / "scores.csv").read_bytes()


def test_an_attempt_adds_only_what_is_not_known_yet(run_dir: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(run_dir, tmp_path / "again"))
    log = again / "attempt-1" / "metrics.jsonl"
    kept = [
        line for line in log.read_text().splitlines() if json.loads(line)["kind"] != "val" or "use_text" not in line
    ]
    log.write_text(
        "\n".join(kept) + '\n{"step": 6, "kind": "val", "val/recon_rmse": 0.1, "val/loss": 0.2}\n{"step": 6, "ki'
    )
    assert main(["evaluate", str(again), "--step", "6", "--attempt", "2"]) == 0
    assert set(metrics_at(again, 6, attempt=2)) == FULL - {"val/recon_rmse", "val/loss"}
    events = [json.loads(line) for line in (again / "attempt-2" / "metrics.jsonl").read_text().splitlines()]
    assert (events[0]["event"], events[0]["gpu_uuids"], events[-1]["event"]) == ("started", [], "finished")
    assert main(["evaluate", str(again), "--step", "6", "--attempt", "3"]) == 0
    assert metrics_at(again, 6, attempt=3) == {}


def test_json_and_table_show_the_chosen_protocol(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run_dir), "--step", "6", "--weights", "raw", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {name.split("/")[0] for name in document["steps"]["6"]} == {"val_raw", "val_raw_native"}
    assert main(["evaluate", str(run_dir), "--step", "6", "--weights", "ema", "--sampler", "native"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["metric", "step", "6"]
    assert [line.split()[0] for line in lines[1:]] == ["val_native/recon_rmse", "val_native/recon_lpips"]


@pytest.mark.parametrize("arguments", [["--step", "5"], ["--step", "5", "--attempt", "7"]])
def test_an_unknown_step_is_refused_with_those_that_exist(
    run_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["evaluate", str(run_dir), *arguments]) == 2
    assert "complete ones: " in capsys.readouterr().err
    assert not (run_dir / "attempt-7").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "no run directory" in capsys.readouterr().err
