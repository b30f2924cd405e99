"""How far a prepared set is: counts of every artefact, shards that are out of date, and what to do next."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from tests.fakes.prepared import RECIPES, Prepared, prepare
from trainer.__main__ import main
from trainer.prepare import status as showing
from trainer.prepare.manifest import Manifest, Part, write_manifest
from trainer.prepare.pack import pack
from trainer.prepare.passes import Failed
from trainer.prepare.recipe import Recipe
from trainer.prepare.recipes import note_recipes
from trainer.prepare.status import status_of


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return prepare(tmp_path / "data")


def test_every_artefact_is_counted_by_its_state(prepared: Prepared) -> None:
    first, second, third, *_ = prepared.ids
    prepared.samples.drop(first, "pose")
    inputs = prepared.samples.digests(second, ("image",))
    assert inputs is not None
    prepared.samples.keep(second, "pose", RECIPES["pose"], inputs, Failed("nobody"))
    (prepared.samples.folder(third) / "pose.record.json").write_text("{")
    prepared.make(third, "caption", caption__txt="other words")
    note_recipes(prepared.data, {"seg": Recipe(model="another")})
    status = status_of(prepared.data)
    assert list(status.passes) == ["image", "caption", "t5", "dinov3", "pose", "seg"]
    assert status.passes["image"] == {"done": 10, "missing": 0, "stale": 0, "failed": 0}
    assert status.passes["pose"] == {"done": 7, "missing": 1, "stale": 1, "failed": 1}
    assert status.passes["t5"] == {"done": 9, "missing": 0, "stale": 1, "failed": 0}
    assert status.passes["seg"] == {"done": 0, "missing": 0, "stale": 10, "failed": 0}
    assert status.next == (
        f"python -m trainer prepare /photographs --out {prepared.data}, with the options it was made with: "
        "t5, pose, seg are not all there"
    )


def test_shards_are_missing_then_packed_then_out_of_date(prepared: Prepared) -> None:
    before = status_of(prepared.data)
    assert (before.samples_packed, before.shards, before.shards_bytes) == (0, 0, 0)
    assert before.out_of_date == "nothing is packed yet"
    assert before.next.startswith(f"python -m trainer prepare /photographs --out {prepared.data} --passes pack")

    pack(prepared.data, prepared.manifest, seed=5)
    packed = status_of(prepared.data)
    assert (packed.samples_packed, packed.shards, packed.out_of_date) == (10, 2, "")
    assert packed.next == f"train with data.source: shards and data.path: {prepared.data / 'shards'}"
    tars = sum(path.stat().st_size for path in prepared.data.glob("shards/*/*.tar"))
    files = sum(path.stat().st_size for path in prepared.data.glob("samples/*/*/*"))
    assert tars < packed.shards_bytes < tars + 10_000
    assert packed.samples_bytes == files

    prepared.make(prepared.ids[0], "caption", caption__txt="other words")
    prepared.make(prepared.ids[0], "t5")
    assert status_of(prepared.data).out_of_date == "1 of 2 shards have to be written"

    pack(prepared.data, prepared.manifest, seed=5)
    fewer = Manifest("/photographs", tuple(one for one in prepared.manifest.images if one.bucket == "1024x1024"))
    write_manifest(prepared.data, fewer, Part())
    assert status_of(prepared.data).out_of_date == "the index is not that of the artefacts that are there"
    (prepared.data / "shards" / "index.json").write_text('{"format": 1, "unfinished": true}')
    assert "is being packed, or that was interrupted" in status_of(prepared.data).out_of_date


def test_a_reader_gets_plain_columns_and_a_program_gets_json(
    prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(prepared.data, prepared.manifest, seed=0)
    assert main(["status", str(prepared.data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "/photographs: 10 images, 0 rejected, 0 copies"
    assert lines[1].split() == ["pass", "done", "missing", "stale", "failed", "total", "note"]
    assert lines[4].split(maxsplit=6) == ["t5", "10", "0", "0", "0", "10", RECIPES["t5"].label]
    assert lines[8] == "shards: 10 samples in 2, up to date"
    assert main(["status", str(prepared.data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passes"]["pose"]["done"] == 10


def test_a_terminal_gets_a_table(prepared: Prepared) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    showing.tell(status_of(prepared.data), console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[1].startswith("┏━")
    assert [number.strip() for number in lines[4].split("│")[1:-1]][:3] == ["image", "10", "0"]


def test_no_set_is_no_empty_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path / "nothing")]) == 2
    assert main(["status", str(tmp_path)]) == 65
    assert "prepare it first" in capsys.readouterr().err
