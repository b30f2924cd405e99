"""The autopsy of a real, small run: planted causes are named, a healthy run is left alone, bad input gets an answer."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reports.markdown import render
from tests.fakes.studies import quickstart
from tests.fakes.trainer_runs import trained
from trainer.__main__ import main
from trainer.autopsy.command import Wanted, autopsy
from trainer.checkpoint import folder
from trainer.evaluate.scores import COLUMNS

STEPS, EVERY, SAMPLES = 60, 20, 8
EMAS = ("ema_0.05", "ema_0.2")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(
        tmp_path_factory.mktemp("runs") / "small",
        steps=STEPS,
        batch=8,
        data={"size": 16, "samples": 64, "held_out": SAMPLES},
        optimizer={"lr": 0.004, "warmup_steps": 5},
        ema={"half_lives": [0.05, 0.2]},
        validation={"every": EVERY, "samples": SAMPLES, "sampler_steps": 2},
        sampler={"native": {"kind": "self_guidance", "scale": 1.5}},
        checkpoint={"keep": {"last": 9, "best": {"metric": "val/recon_rmse"}}},
    )


@pytest.fixture(scope="module")
def examined(healthy: Path) -> dict[str, Any]:
    """The last two checkpoints of the healthy run."""
    return autopsy(healthy, Wanted(best=40))


@pytest.fixture
def copied(healthy: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the healthy run, its configuration changed by replacing text."""

    def copy(*changes: tuple[str, str]) -> Path:
        run_dir = tmp_path / "run"
        shutil.copytree(healthy, run_dir, dirs_exist_ok=True)
        text = (run_dir / "config.yaml").read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (run_dir / "config.yaml").write_text(text)
        return run_dir

    return copy


def disturb(run_dir: Path, step: int, stems: tuple[str, ...], noise: float) -> None:
    """Add the same noise, as a share of each tensor's own spread, to the weights in some files of a checkpoint."""
    for stem in stems:
        path = folder(run_dir, step) / f"{stem}.safetensors"
        source = torch.Generator().manual_seed(3)
        tensors = load_file(path)
        for name in sorted(tensors):
            spread = noise * float(tensors[name].std(correction=0))
            tensors[name] += spread * torch.randn(tensors[name].shape, generator=source)
        save_file(tensors, path)


def spoil(run_dir: Path, step: int, stem: str) -> None:
    """Make one number of a file not a number."""
    path = folder(run_dir, step) / f"{stem}.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).flatten()[0] = math.nan
    save_file(tensors, path)


def share(document: dict[str, Any], cause: str) -> dict[str, Any]:
    return next(found for found in document["shares"] if found["cause"] == cause)


def cell(document: dict[str, Any], weights: str, drawn: str) -> dict[str, Any]:
    return next(one for one in document["cells"] if (one["weights"], one["pass"]) == (weights, drawn))


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "autopsy" / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ---- planted causes --------------------------------------------------------------------------------------------------


def test_a_healthy_run_is_not_accused(healthy: Path) -> None:
    document = autopsy(healthy)
    assert document["blamed"] == []
    assert "Not reproduced" in document["conclusion"]
    assert document["steps"]["stop"] == STEPS


def test_an_average_that_went_astray_is_named(copied: Callable[..., Path]) -> None:
    run_dir = copied()
    disturb(run_dir, STEPS, ("ema_0.05",), 1.0)
    document = autopsy(run_dir, Wanted(best=40))
    assert document["blamed"] == ["averaging"]
    assert "To blame: averaging" in document["conclusion"]
    assert "half-life 0.2 of the run, beside the one with 0.05, does not show it" in document["conclusion"]


def test_damaged_weights_are_named_and_their_averages_are_not(copied: Callable[..., Path]) -> None:
    run_dir = copied()
    disturb(run_dir, STEPS, ("model", *EMAS), 1.0)
    document = autopsy(run_dir, Wanted(best=40))
    assert document["blamed"] == ["weights"]
    assert "To blame: weights" in document["conclusion"]


def test_strong_guidance_is_named_and_a_weak_one_is_not(copied: Callable[..., Path]) -> None:
    """Fresh weights are untouched by guidance, because every block still does nothing; trained ones are not."""
    pair = Wanted(best=0, stop=EVERY)
    weak = autopsy(copied(), pair)
    strong = autopsy(copied(("scale: 1.5", "scale: 10.0")), pair)
    assert set(strong["blamed"]) - set(weak["blamed"]) == {"guidance"}
    assert strong["guidance"] == "self_guidance (scale 10)"
    assert share(strong, "weights") == share(weak, "weights")
    assert cell(strong, "ema", "guided")["best"] == pytest.approx(cell(strong, "ema", "dense")["best"])


def test_an_advantage_that_shrinks_is_no_harm(healthy: Path) -> None:
    """Raw weights catch up with their average while the rate decays: a share above the limit, and nothing to blame."""
    document = autopsy(healthy, Wanted(best=EVERY))
    averaging = share(document, "averaging")
    assert averaging["above_limit"]
    assert not averaging["blamed"]
    assert averaging["fall"]["low"] < document["threshold"]
    assert averaging["harm"]["low"] < document["threshold"]
    assert "an advantage which shrank" in document["conclusion"]


# ---- what is written -------------------------------------------------------------------------------------------------


def test_the_shares_add_up_and_cells_are_the_means_of_the_rows(copied: Callable[..., Path]) -> None:
    run_dir = copied()
    document = autopsy(run_dir, Wanted(best=40))
    written = rows(run_dir)
    summed = sum(share(document, cause)["mean"] for cause in ("weights", "averaging", "guidance"))
    assert summed == pytest.approx(cell(document, "ema", "guided")["delta"]["mean"], abs=1e-12)
    assert document["total"] == cell(document, "ema", "guided")["delta"]
    for one in document["cells"]:
        for name, step in (("best", 40), ("stop", STEPS)):
            values = [
                float(row["value"])
                for row in written
                if (row["weights"], row["pass"], int(row["step"])) == (one["weights"], one["pass"], step)
            ]
            assert len(values) == SAMPLES
            assert one[name] == pytest.approx(sum(values) / SAMPLES)


def test_the_dense_average_is_the_score_of_the_validation(healthy: Path) -> None:
    document = autopsy(healthy, Wanted(best=EVERY))
    scores = json.loads((healthy / "checkpoints" / "scores.json").read_text())
    for name, step in (("best", EVERY), ("stop", STEPS)):
        assert cell(document, "ema", "dense")[name] == pytest.approx(scores[str(step)]["val/recon_rmse"], rel=1e-5)
        meta = json.loads((healthy / "validation" / f"step_{step:06d}" / "meta.json").read_text())
        assert document["eval_set"] == meta["eval_set"]
    assert cell(document, "ema", "guided")["stop"] == pytest.approx(
        scores[str(STEPS)]["val_native/recon_rmse"], rel=1e-5
    )
    assert document["metric"] == "recon_rmse"
    assert document["metric_reason"] == "checkpoint.keep.best is val/recon_rmse"


def test_files_are_complete_and_the_same_again(copied: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = copied()
    assert main(["autopsy", str(run_dir), "--best", "40", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((run_dir / "autopsy" / "autopsy.json").read_text())
    assert {path.name for path in (run_dir / "autopsy").iterdir()} == {"autopsy.json", "scores.csv"}
    first = rows(run_dir)
    assert list(first[0]) == [*COLUMNS, "pass"]
    assert {(row["weights"], row["pass"]) for row in first} == {
        *((weights, drawn) for weights in ("raw", "ema", "ema_alt") for drawn in ("dense", "routed", "guided")),
        ("ema", "w=3"),
    }
    assert all(row["valid"] == "1" and row["run"] == "small" for row in first)
    assert main(["autopsy", str(run_dir), "--best", "40"]) == 0
    table = capsys.readouterr().out
    assert "blamed above" in table
    assert printed["conclusion"] in table
    assert rows(run_dir) == first


def test_the_sweep_starts_at_dense_and_uses_what_was_drawn(examined: dict[str, Any]) -> None:
    dense, weak, strong = examined["w_sweep"]
    assert [point["w"] for point in examined["w_sweep"]] == [1.0, 1.5, 3.0]
    assert dense["delta"] == cell(examined, "ema", "dense")["delta"]
    assert weak["delta"] == cell(examined, "ema", "guided")["delta"]
    assert strong["best"] != weak["best"]


def test_an_attempt_says_that_it_starts_and_ends(copied: Callable[..., Path]) -> None:
    run_dir = copied()
    assert main(["autopsy", str(run_dir), "--best", "40", "--attempt", "2", "--budget-s", "60"]) == 0
    lines = [json.loads(line) for line in (run_dir / "attempt-2" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["event"], line["step"]) for line in lines] == [
        ("event", "started", STEPS),
        ("event", "finished", STEPS),
    ]
    assert lines[0]["attempt"] == 2
    assert lines[0]["steps"] == [40, STEPS]


def test_the_report_shows_what_the_trainer_wrote(examined: dict[str, Any]) -> None:
    document = json.loads(json.dumps(examined))
    study = quickstart()
    files = render(replace(study, runs=(replace(study.runs[0], autopsy=document), *study.runs[1:])))
    assert "not what an autopsy writes" not in files["report.md"]
    assert f"steps 40 and {STEPS}, this checkpoint pair, these {SAMPLES} samples" in files["report.md"]
    assert files["data/autopsy.csv"].count("\n") == 1 + 9 + 3 + 4 + 1


# ---- runs that lack something ----------------------------------------------------------------------------------------


def test_without_routing_the_guided_pass_is_nested_guidance(copied: Callable[..., Path]) -> None:
    run_dir = copied(
        ("enabled: true", "enabled: false"), ("kind: self_guidance", "kind: nested_cfg"), ("scale: 1.5", "text: 2.0")
    )
    document = autopsy(run_dir, Wanted(best=40))
    assert cell(document, "raw", "routed")["why_not"] == "this run trains without routing"
    assert {found["cause"] for found in document["shares"]} == {"weights", "averaging", "guidance"}
    assert document["w_means"] == "nested_cfg"
    assert len(document["w_sweep"]) == 3


def test_without_any_guidance_the_sum_ends_at_the_dense_average(copied: Callable[..., Path]) -> None:
    run_dir = copied(
        ("enabled: true", "enabled: false"), ("kind: self_guidance", "kind: dense"), ("scale: 1.5", "scale: null")
    )
    document = autopsy(run_dir, Wanted(best=40))
    assert {found["cause"] for found in document["shares"]} == {"weights", "averaging"}
    assert document["total"] == cell(document, "ema", "dense")["delta"]
    assert document["w_sweep"] == []
    assert {one["what"] for one in document["not_available"]} == {"routed", "routing", "guided", "guidance", "sweep"}
    assert "Not examined" in document["conclusion"] or document["blamed"] == []


def test_one_stored_average_is_not_enough_for_another_one(copied: Callable[..., Path], capsys: Any) -> None:
    run_dir = copied()
    for state in run_dir.glob("checkpoints/step_*/state.json"):
        content = json.loads(state.read_text())
        content["config"]["ema"]["half_lives"] = [0.05]
        state.write_text(json.dumps(content))
        (state.parent / "ema_0.2.safetensors").unlink()
    assert main(["autopsy", str(run_dir), "--best", "40"]) == 0
    document = json.loads((run_dir / "autopsy" / "autopsy.json").read_text())
    assert cell(document, "ema_alt", "dense")["best"] is None
    assert "total variation" in cell(document, "ema_alt", "dense")["why_not"]
    assert document["averages"]["profile_distance"]["60"] > 0.15
    assert {found["cause"] for found in document["shares"]} == {"weights", "averaging", "guidance", "routing"}
    assert "rebuilt, weight profile" in capsys.readouterr().out


def test_weights_that_are_not_finite_are_stepped_over(copied: Callable[..., Path]) -> None:
    run_dir = copied()
    spoil(run_dir, STEPS, "ema_0.05")  # although state.json says that all is finite
    document = autopsy(run_dir, Wanted(best=EVERY))
    assert document["steps"] == {"best": EVERY, "stop": 40}
    assert f"step {STEPS} are not finite: step 40, the newest finite one, stands in" in document["notes"][0]


def test_with_nothing_finite_behind_the_best_step_there_is_an_answer(copied: Callable[..., Path]) -> None:
    run_dir = copied()
    spoil(run_dir, 40, "model")
    spoil(run_dir, STEPS, "model")
    document = autopsy(run_dir, Wanted(best=EVERY))
    assert document["cells"] == []
    assert document["blamed"] == []
    assert "no checkpoint with finite weights is kept" in document["conclusion"]
    assert document["not_available"][0]["what"] == "everything"
    assert main(["autopsy", str(run_dir), "--best", str(EVERY)]) == 0


def test_time_that_runs_out_leaves_whole_samples(copied: Callable[..., Path]) -> None:
    """A clock that moves a second at every look: two samples take one, and only one more fits into what is left."""
    ticks = iter(range(10_000))
    document = autopsy(copied(), Wanted(best=40, budget_s=5.0), now=lambda: float(next(ticks)))
    assert document["samples"] == 3
    assert document["samples_available"] == SAMPLES
    assert f"{document['samples']} of {SAMPLES} fitted into 5 s" in {one["why"] for one in document["not_available"]}
    assert all(one["delta"]["samples"] == document["samples"] for one in document["cells"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--best", "7"], "--best 7: no checkpoint of that step is kept; kept: 0, 20, 40, 60"),
        (["--stop", "99"], "--stop 99: no checkpoint of that step is kept"),
        (["--best", "60"], "--best 60 must come before the other checkpoint, step 60"),
        (["--best", "40", "--stop", "40"], "--best 40 must come before"),
        (["--stop", "0"], "an autopsy needs two checkpoints, one of them before step 0"),
    ],
)
def test_pairs_that_cannot_be_are_refused(
    healthy: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert main(["autopsy", str(healthy), *options]) == 2
    assert says in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["autopsy", str(tmp_path / "nothing")]) == 2
    assert "is no run directory" in capsys.readouterr().err
    for seconds in ("0", "-1", "nan", "soon"):
        with pytest.raises(SystemExit):
            main(["autopsy", str(tmp_path), f"--budget-s={seconds}"])
    assert "positive number of seconds" in capsys.readouterr().err
