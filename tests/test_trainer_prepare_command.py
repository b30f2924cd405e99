"""The command line of `prepare`: what is refused before anything starts, and what a person is told at the end."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.__main__ import main
from trainer.prepare.command import _what_to_do
from trainer.prepare.manifest import read_manifest
from trainer.prepare.run import Outcome

TINY = ("--encoders", "tiny", "--side", "256")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        pixels_HWC = np.full((256, 256, 3), 60 * number, dtype=np.uint8)
        pixels_HWC[: 40 * (number + 1), :128] = 255
        Image.fromarray(pixels_HWC).save(folder / f"p{number}.png")
        (folder / f"p{number}.txt").write_text(f"a picture with the number {number}")
    return folder


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--passes", ""), "names no pass; allowed: caption, t5"),
        (("--passes", "caption, nonsense"), "there is no 'nonsense'; allowed: caption, t5"),
        (("--seg-model", "parts.onnx", "--t5", "mine"), "so --t5, --seg-model would not be used"),
        (("--side", "100"), "multiples of 256"),
        (("--shard", "3/2"), "1 <= N <= M"),
        (("--batch", "x"), "'x' is no whole number from 1 on"),
        (("--max-rejected-share", "x"), "'x' is no share in [0, 1]"),
    ],
)
def test_what_cannot_be_meant_starts_nothing(
    photos: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...], told: str
) -> None:
    try:
        code = main(["prepare", str(photos), "--out", str(photos.parent / "data"), *TINY, *given])
    except SystemExit as end:  # argparse
        code = int(str(end.code))
    assert (code, told in capsys.readouterr().err) == (2, True)
    assert not (photos.parent / "data").exists()


def test_photographs_behind_a_closed_folder(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refused)
    assert main(["prepare", str(photos), "--out", "data", *TINY, "--passes", "caption"]) == 2
    assert f"{photos} cannot be looked at: Permission denied" in capsys.readouterr().err


def test_what_waits_is_told_what_it_waits_for() -> None:
    advice = partial(_what_to_do, needs=("caption",))
    assert advice(Outcome("t5", waiting=["a"])) == "1 of them need caption first: leave out --passes, or name it there"
    assert advice(Outcome("t5", failed=[("a", "")])) == "give the same command again to try them once more"
    assert advice(Outcome("t5", failed=[("a", "")], waiting=["b"])).endswith("; " + advice(Outcome("t5", failed=[])))


def test_parts_are_put_together_by_a_run_without_them(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = photos.parent / "data"
    common = ("prepare", str(photos), "--out", str(data), *TINY, "--passes")
    assert main([*common, "caption", "--shard", "1/2"]) == 0
    assert main(["status", str(data)]) == 65
    assert main([*common, "caption,pack", "--shard", "2/2"]) == 0
    assert "part 2 of 2 is done" in capsys.readouterr().out
    assert main(["status", str(data)]) == 0
    assert main([*common, "pack"]) == 0
    assert "pack: 3 samples" in capsys.readouterr().out
    assert sorted(path.name for path in data.glob("manifest*")) == ["manifest.json"]
    assert main([*common, "caption", "--shard", "1/3"]) == 0  # begun, and not done: the whole set counts
    assert main(["verify", str(data)]) == 0


def test_a_manifest_of_another_version_is_no_dead_end(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = photos.parent / "data"
    command = ["prepare", str(photos), "--out", str(data), *TINY, "--passes", "caption,pack"]
    assert main(command) == 0
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    for name, content in (("manifest.json", '{"format": 7}'), ("recipes.json", "{}")):
        (data / name).write_text(content)
        assert main(["status", str(data)]) == 65
        assert f"{name}" in (told := capsys.readouterr().err)
        assert "remove it and prepare again" in told
        (data / name).unlink()
        assert main(command) == 0
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


def test_a_copy_without_a_caption_takes_away_no_caption(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = photos.parent / "data"
    (photos / "again").mkdir()
    shutil.copy(photos / "p1.png", photos / "again" / "p1.png")
    assert main(["prepare", str(photos), "--out", str(data), *TINY, "--passes", "caption"]) == 0
    manifest = read_manifest(data)
    assert manifest is not None
    assert manifest.copies == (("again/p1.png", "p1.png"),)
    assert [entry.path for entry in manifest.images] == ["p0.png", "p1.png", "p2.png"]
    (photos / "p0.png").unlink()
    assert main(["prepare", str(photos), "--out", str(data), *TINY, "--passes", "caption"]) == 0
    assert "1 of the last run are no longer in the set" in capsys.readouterr().out


def test_an_interrupt_while_models_are_looked_for_is_no_traceback(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.prepare import command

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "chosen_passes", interrupted)
    assert main(["prepare", str(photos), "--out", str(photos.parent / "data"), *TINY]) == 75
    monkeypatch.setattr(sys.modules["trainer.prepare.status"], "status_of", interrupted)
    assert main(["status", str(photos)]) == 130
    assert capsys.readouterr().err.splitlines()[1:] == ["trainer status: interrupted"]
