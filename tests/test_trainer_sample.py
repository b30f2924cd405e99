"""The sample command: from words, a reference and a pose to an image file; and real photographs from start to end."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.cbook
import numpy as np
import pytest
import skimage.data
from PIL import Image

from tests.fakes.trainer_runs import metrics_at, trained
from trainer.__main__ import main
from trainer.data.anatomy import joints_of
from trainer.data.captions import caption
from trainer.data.portraits import portrait_of

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "logo")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="module")
def photograph_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on real photographs."""
    root = tmp_path_factory.mktemp("photographs")
    for name in PHOTOGRAPHS:
        Image.fromarray(getattr(skimage.data, name)()).save(root / f"{name}.png")
        (root / f"{name}.txt").write_text(f"a photograph of {name}")
    hopper = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    Image.open(hopper).save(root / "grace_hopper.jpg")
    data = {"source": "folder", "path": str(root), "size": 16}
    return trained(tmp_path_factory.mktemp("runs") / "photographs", data=data)


def draw(run: Path, out: Path, *options: str, prompt: str = caption(portrait_of("p000001"))) -> bytes:
    assert main(["sample", str(run), "--prompt", prompt, "--out", str(out), *options]) == 0
    with Image.open(out) as image:
        assert image.size == (16, 16)
        return np.asarray(image.convert("RGB")).tobytes()


def refused(run: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    arguments = ["--prompt", "a face", "--out", str(run.parent / "refused.png")]
    assert main(["sample", str(run), *arguments, *options]) == 2
    assert not (run.parent / "refused.png").exists()
    return capsys.readouterr().err


def test_the_same_command_draws_the_same_image(run_dir: Path, tmp_path: Path) -> None:
    first = draw(run_dir, tmp_path / "new" / "a.png")
    assert draw(run_dir, tmp_path / "b.png") == first
    assert draw(run_dir, tmp_path / "c.png", "--seed", "1") != first
    assert draw(run_dir, tmp_path / "d.png", "--weights", "raw") != first
    assert draw(run_dir, tmp_path / "e.png", "--sampler", "native") != first
    assert draw(run_dir, tmp_path / "f.png", prompt="smiling") != first


def test_reference_and_pose_are_used(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = sorted((run_dir / "validation" / "step_000006" / "images" / "reference").iterdir())[0]
    pose = tmp_path / "pose.json"
    pose.write_text(json.dumps(joints_of(portrait_of("p000001"), 16, 16).tolist()))
    plain = draw(run_dir, tmp_path / "a.png")
    assert "from text\n" in capsys.readouterr().out
    with_reference = draw(run_dir, tmp_path / "b.png", "--reference", str(reference))
    assert "from text, cls, patches\n" in capsys.readouterr().out
    with_all = draw(run_dir, tmp_path / "c.png", "--reference", str(reference), "--pose", str(pose))
    assert "never saw" not in capsys.readouterr().out
    assert len({plain, with_reference, with_all}) == 3
    assert draw(run_dir, tmp_path / "d.png", "--pose", pose.read_text()) != plain
    assert "never saw this combination" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--step", "5"], "complete ones"),
        (["--pose", "[[0, 0, 1]]"], "shape (1, 3); needed: 133"),
        (["--pose", "[1, {}]"], "not a JSON list"),
        (["--pose", "/nowhere/pose.json"], "cannot be read"),
        (["--reference", "/nowhere/image.png"], "cannot be read"),
        (["--out", "image.nonsense"], "unknown image format"),
    ],
)
def test_what_cannot_be_used_is_refused(
    run_dir: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert words in refused(run_dir, capsys, *options)


def test_a_photograph_is_no_reference_for_procedural_features(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(skimage.data.astronaut()).save(tmp_path / "astronaut.png")
    assert "from attributes, not from pixels" in refused(
        run_dir, capsys, "--reference", str(tmp_path / "astronaut.png")
    )


def test_real_photographs_train_validate_and_sample(photograph_run: Path, tmp_path: Path) -> None:
    metrics = metrics_at(photograph_run, 6)
    assert metrics["val/recon_rmse"] < 1.0
    assert metrics["val/text_rmse"] == pytest.approx(metrics["val/text_rmse"])
    assert [name for name in metrics if "use_" in name] == ["val/use_text"]
    assert not [name for name in metrics if "manip" in name]
    meta = json.loads((photograph_run / "validation" / "step_000006" / "meta.json").read_text())
    assert meta["held_out"] == 2
    assert any("without a caption" in label for label in meta["labels"])
    draw(photograph_run, tmp_path / "a.webp", prompt="a photograph of a cat")


@pytest.mark.parametrize("option", [["--reference", "image.png"], ["--pose", "[]"]])
def test_a_folder_run_names_the_streams_it_lacks(
    photograph_run: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    message = refused(photograph_run, capsys, *option)
    assert f"{option[0]} needs the" in message
    assert "folder has captions only; usable: --prompt" in message
