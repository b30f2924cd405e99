"""The keypoint detector: that it learns, that the same call gives the same file, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from trainer.__main__ import main
from trainer.data import open_source
from trainer.document import parse_config
from trainer.errors import DataError
from trainer.pose import command
from trainer.pose.detector import KIND, Detector, KeypointDetector, load_detector
from trainer.pose.error import counted, mpjpe
from trainer.pose.fit import _augmented, fit, portraits


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(command, "TRAIN_PORTRAITS", 24)
    monkeypatch.setattr(command, "TEST_PORTRAITS", 6)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"seed": 0, "trainer": {"steps": 1, "data": {"size": 16}}}))
    return path


def test_it_finds_joints_it_was_not_shown_and_says_when_there_are_none() -> None:
    net = fit(portraits(0, 128, 16), 150, 0, lambda step, loss: None)
    unseen = portraits(5000, 48, 16)
    found, asked = Detector(net, "")(unseen.x_BCHW).numpy(), unseen.joints_BJ3.numpy()
    own, others = (
        np.mean([mpjpe(one, other, 16, 16) for one, other in zip(each, asked, strict=True)])
        for each in (found, found[::-1])
    )
    assert own < 0.45 * others, "a few seconds of fitting at 16 pixels"
    noise = Detector(net, "")(torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(-1, 1))
    chosen = counted(asked[0])
    assert found[:, chosen, 2].mean() > 0.7
    assert noise[:, chosen, 2].mean() < 0.3


def test_its_portraits_are_nobody_elses() -> None:
    config = parse_config({"steps": 1, "data": {"samples": 50}})
    source = open_source(config)
    ids = {*source.train_ids, *source.held_out_ids, *source.probe_ids}
    assert not any(id.startswith("pose") for id in ids)
    assert not torch.equal(portraits(0, 1, 16).x_BCHW, portraits(1, 1, 16).x_BCHW)


def test_the_same_call_writes_the_same_bytes(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = [tmp_path / "new" / f"{name}.safetensors" for name in "abc"]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for path, seed in zip(out, "001", strict=True):
        assert main(["fit-pose", str(config), "--out", str(path), "--steps", "2", "--seed", seed]) == 0
    assert torch.equal(torch.get_rng_state(), before), "no other draw is touched"
    assert out[0].read_bytes() == out[1].read_bytes() != out[2].read_bytes()
    assert load_detector(out[0], "cpu").hash == load_detector(out[1], "cpu").hash != load_detector(out[2], "cpu").hash
    assert "with the joints of another one" in capsys.readouterr().out
    assert sorted(path.name for path in out[0].parent.iterdir()) == [path.name for path in out]


@pytest.mark.parametrize("size", [8, 16, 40, 96])
def test_images_of_any_size_give_133_joints(size: int) -> None:
    net = KeypointDetector(min(size, 64))
    found = Detector(net, "")(torch.rand(2, 3, size, size))
    assert found.shape == (2, 133, 3)
    assert bool(((found[..., 2] >= 0) & (found[..., 2] <= 1)).all())


def test_an_image_that_is_not_finite_has_no_joints() -> None:
    images = torch.zeros(3, 3, 16, 16)
    images[1, 0, 0, 0] = math.inf
    found = Detector(KeypointDetector(16), "")(images)
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()


def test_a_moved_portrait_keeps_its_joints_on_its_features() -> None:
    train = portraits(0, 4, 32)
    draws = torch.rand(32, 6 + 16, generator=torch.Generator().manual_seed(1))
    images, joints, shows = _augmented(train, draws, torch.zeros(32, 3, 32, 32))
    assert shows.float().mean() == pytest.approx(0.8, abs=0.05)
    assert not joints[..., 2].isnan().any()
    still = torch.arange(32) % 2 == 0
    chosen = (draws[:, 0] * 4).long()
    assert torch.equal(joints[still], train.joints_BJ3[chosen][still])
    moved = (~still & shows).nonzero()[0].item()
    # Brightness under the nose moves along with the nose: the same colour before and after.
    before, after = (
        image[:, int((y + 1) * 16), int((x + 1) * 16)]
        for image, (x, y) in (
            (train.x_BCHW[chosen[moved]], train.joints_BJ3[chosen[moved], 0, :2].tolist()),
            (images[moved], joints[moved, 0, :2].tolist()),
        )
    )
    torch.testing.assert_close(before, after, atol=0.35, rtol=0)


def test_what_is_no_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read.*fit-pose"):
        load_detector(tmp_path / "missing.safetensors", "cpu")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(DataError, match="cannot be read"):
        load_detector(tmp_path / "text.safetensors", "cpu")
    save_file({"weight": nn.Linear(2, 2).weight.detach()}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=f"is no {KIND}"):
        load_detector(tmp_path / "other.safetensors", "cpu")


@pytest.mark.parametrize(
    ("trainer", "options", "words"),
    [
        ({"data": {"source": "folder", "path": "x"}}, [], "allowed: procedural"),
        ({}, ["--steps", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    config: Path, capsys: pytest.CaptureFixture[str], trainer: dict, options: list[str], words: str
) -> None:
    config.write_text(yaml.safe_dump({"seed": 0, "trainer": {"steps": 1, **trainer}}))
    out = config.parent / "refused.safetensors"
    assert main(["fit-pose", str(config), "--out", str(out), *options]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()
