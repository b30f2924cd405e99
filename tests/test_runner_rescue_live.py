"""A learning rate that explodes, with real processes from end to end: stopped, rescued with another rate, finished."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.lab import Lab

STEPS = 240
TOLD = "2 runs: 1 aborted, 1 finished."
DEADLINE_S = 150.0  # three processes that import torch, on a machine that may be busy
HOT: dict[str, Any] = {
    "study": "lab",
    "arm": "hot",
    "seeds": [0],
    "primary": {"metric": "val/recon_rmse", "direction": "min"},
    "policy": {
        # The others look only: what they would ask for would slow both runs down.
        "detectors": {"explosion": "rescue", "regress": "shadow", "oscillating": "shadow", "starvation": "shadow"},
        "autopsy_s": 0,
        "rescue": {"from": "best", "changes": {"trainer.optimizer.lr": 0.001}, "max": 1},
    },
    "resources": {"gpus": 0},
    "trainer": {
        "steps": STEPS,
        "batch": 2,
        "device": "cpu",
        "data": {"source": "procedural", "size": 16, "samples": 16, "held_out": 4},
        "model": {"width": 16, "depth": 3, "heads": 2, "patch": 4},
        # The rate climbs for nearly the whole run: healthy for some thirty steps, far too hot afterwards.
        "optimizer": {"name": "adamw", "lr": 0.484, "warmup_steps": 230, "clip": None},
        "validation": {"every": 40, "samples": 2, "sampler_steps": 1},
    },
}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path)
    yield found
    found.clean_up()


def lines(folder: Path, attempt: int = 1) -> list[dict[str, Any]]:
    text = (folder / f"attempt-{attempt}" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.long
def test_an_explosion_is_stopped_and_goes_on_with_another_rate(lab: Lab) -> None:
    path = lab.folder / "hot.yaml"
    path.write_text(json.dumps(HOT))
    lab.run("launch", path, "--detach")
    report = lab.home / "lab" / "report" / "report.md"
    lab.until(lambda: report.exists() and TOLD in report.read_text(), "the report of both", DEADLINE_S)
    (study,) = json.loads(lab.run("status", "--json").stdout)["studies"]
    parent, child = study["runs"]
    assert (parent["arm"], parent["state"], parent["parent"]) == ("hot", "aborted(explosion)", None)
    assert (child["arm"], child["state"], child["parent"]) == ("hot-rescue1", "finished", parent["run"])
    assert parent["step"] < STEPS == child["step"]
    began = _began_where_the_parent_was_best(lab, parent, child)
    _rows_and_words_name_both(lab, parent, child, began)


def _began_where_the_parent_was_best(lab: Lab, parent: dict[str, Any], child: dict[str, Any]) -> int:
    first, second = (lab.home / run["run_dir"] for run in (parent, child))
    own = lines(second)
    (event,) = [line for line in own if line.get("event") == "rescued"]
    began = event["from_step"]
    assert (event["from_run"], event["optimizer"], event["step"]) == (first.name, "kept", began)
    assert began == parent["primary"]["best_step"]
    taken, given = (folder / "checkpoints" / f"step_{began:06d}" / "model.safetensors" for folder in (second, first))
    assert not taken.exists() or taken.read_bytes() == given.read_bytes(), "pruned, or the same weights"
    assert [line["step"] for line in own if line["kind"] == "train"] == list(range(began + 1, STEPS + 1))
    scored = {run: _value(lines(folder), began) for run, folder in (("parent", first), ("child", second))}
    assert scored["parent"] == scored["child"], "the same weights, samples and noise"
    rates = [line["train/lr"] for line in own if line["kind"] == "train"]
    assert max(rates) == pytest.approx(0.001)
    return int(began)


def _value(own: list[dict[str, Any]], step: int) -> float:
    return float(next(line["val/recon_rmse"] for line in own if line["kind"] == "val" and line["step"] == step))


def _rows_and_words_name_both(lab: Lab, parent: dict[str, Any], child: dict[str, Any], began: int) -> None:
    report = lab.home / "lab" / "report"
    text = (report / "report.md").read_text().replace("\\", "")
    goes_on = f"goes on from step {began} of hot-s0 ({parent['run']}) with trainer.optimizer.lr = 0.001"
    assert f"hot-rescue1-s0 ({child['run']}) {goes_on}" in text
    assert f"goes on as hot-rescue1-s0 ({child['run']}) from step {began}" in text
    assert "no independent evidence" in text
    with (report / "data" / "runs.csv").open(newline="") as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert (rows["hot"]["parent"], rows["hot-rescue1"]["parent"]) == ("", parent["run"])
    assert rows["hot-rescue1"]["parent_step"] == str(began)
