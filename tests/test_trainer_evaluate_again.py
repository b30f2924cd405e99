"""`evaluate` after a training gives what the training wrote, to the last digit, with everything switched on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.fakes.trainer_runs import SMALL, metrics_at, trained
from trainer.__main__ import main
from trainer.errors import DataError
from trainer.evaluate.command import evaluate
from trainer.pose import command

NATIVE = {"kind": "self_guidance", "scale": 2.0, "interval": [0.4, 1.0]}
NEW = (
    "dino_swap_lpips",
    "cfg_divergence_text_dino",
    "cfg_divergence_guidance",
    "mpjpe",
    "pa_mpjpe_face",
    "pose_missed",
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with contact sheets, limited guidance, two eval seeds and a pose detector that need not be good."""
    root = tmp_path_factory.mktemp("runs")
    (root / "fit.yaml").write_text(yaml.safe_dump({"seed": 0, "trainer": SMALL}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "TRAIN_PORTRAITS", 16)
        patch.setattr(command, "TEST_PORTRAITS", 4)
        patch.setattr("trainer.evaluate.pose.WITHHELD_ABOVE", 100.0)
        detector = root / "pose.safetensors"
        assert main(["fit-pose", str(root / "fit.yaml"), "--out", str(detector), "--steps", "3"]) == 0
        more = {"eval_seeds": 2, "grid": {"every": 2, "samples": 2}, "pose": {"detector": str(detector)}}
        validation = {**SMALL["validation"], **more}
        yield trained(root / "whole", steps=2, validation=validation, sampler={"native": NATIVE})


def files_of(run_dir: Path) -> dict[str, bytes]:
    folder = run_dir / "validation"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_number_and_every_byte_is_the_same(run_dir: Path, tmp_path: Path) -> None:
    written = metrics_at(run_dir, 2)
    assert {f"val/{name}" for name in NEW} <= set(written)
    again = Path(shutil.copytree(run_dir, tmp_path / "again"))
    shutil.rmtree(again / "validation" / "step_000002")
    found = evaluate(again, step=2)[2]
    own = {name: repr(value) for name, value in written.items() if not name.startswith(("val_probe/", "opt/"))}
    assert {name: repr(value) for name, value in found.items()} == own
    before, after = files_of(run_dir), files_of(again)
    assert list(before) == list(after)
    assert [name for name in before if before[name] != after[name]] == []
    assert {"step_000002/sheets/pose.png", "step_000002/scores.csv", "grids/step_000002.png"} <= set(after)


def test_meta_names_the_detector_and_what_it_is_worth(run_dir: Path) -> None:
    meta = json.loads((run_dir / "validation" / "step_000002" / "meta.json").read_text())
    assert set(meta["pose"]["levels"]) == {"mpjpe", "pa_mpjpe", "pa_mpjpe_body", "pa_mpjpe_face"}
    assert all(set(level) == {"ceiling", "floor", "withheld"} for level in meta["pose"]["levels"].values())
    assert set(meta["pose"]["levels"]) <= set(meta["calibration"])
    assert meta["samplers"]["native"]["interval"] == [0.4, 1.0]


def test_a_detector_that_is_gone_is_told_before_the_first_step(tmp_path: Path) -> None:
    validation = {**SMALL["validation"], "pose": {"detector": str(tmp_path / "gone.safetensors")}}
    with pytest.raises(DataError, match="fit-pose"):
        trained(tmp_path / "run", validation=validation)
    assert not list((tmp_path / "run" / "checkpoints").glob("step_*"))


def test_a_weak_detector_and_a_folder_of_captions_leave_metrics_out(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for index in range(8):
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"photograph number {index}")
    validation = {**SMALL["validation"], "grid": {"every": 2, "samples": 2}}
    data = {"source": "folder", "path": str(folder), "size": 16}
    captions = trained(tmp_path / "captions", steps=2, data=data, validation=validation)
    names = set(metrics_at(captions, 2))
    assert not [name for name in names if "dino" in name or "cfg_divergence" in name or "pose" in name]
    assert "val/text_lpips" in names
    assert (captions / "validation" / "grids" / "step_000002.png").exists()
    monkeypatch.setattr("trainer.evaluate.pose.WITHHELD_ABOVE", 1 / 3)
    again = Path(shutil.copytree(run_dir, tmp_path / "weak"))
    metrics = evaluate(again, step=2)[2]
    assert not [name for name in metrics if "mpjpe" in name or "pose_missed" in name], "three steps make no detector"
    levels = json.loads((again / "validation" / "step_000002" / "meta.json").read_text())["pose"]["levels"]
    assert {level["withheld"] for level in levels.values()} == {True}
