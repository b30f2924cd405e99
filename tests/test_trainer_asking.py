"""A run that learned from shards is asked for what it has never seen, by the encoders that made its shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fakes.asked_sets import LABEL, RESIDENT, WordPass, id_of, photograph, recipes, small_passes, small_shards
from tests.fakes.trainer_runs import trained
from trainer.__main__ import main
from trainer.asking import answer
from trainer.asking.answer import conditions_of
from trainer.asking.encoders import ModelPlaces, pass_of
from trainer.asking.question import Question
from trainer.asking.trained_run import trained_run
from trainer.data import open_source
from trainer.data.sample import collate
from trainer.errors import DataError
from trainer.prepare import table
from trainer.prepare.options import Options
from trainer.prepare.passes import Pass

SIDE = 64
WIDE = (52, 76)
"""Height and width of the bucket 1216x832 at SIDE."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("asking")


@pytest.fixture(scope="module")
def shards(root: Path) -> Path:
    return small_shards(root)


def train(run_dir: Path, shards: Path, **changes: Any) -> Path:
    """Two steps. No encoder may be opened meanwhile: none is in the table."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "PASSES", {})
        return trained(
            run_dir,
            **{
                "steps": 2,
                "batch": 2,
                "data": {"source": "shards", "path": str(shards), "size": SIDE, "workers": 0},
                "validation": {"every": 2, "samples": 1, "sampler_steps": 2},
                "checkpoint": {"keep": {"last": 1, "best": None}},
                "sampler": {"native": {"kind": "nested_cfg", "text": 2.0}},
                **changes,
            },
        )


@pytest.fixture(scope="module")
def run(root: Path, shards: Path) -> Path:
    return train(root / "runs" / "small", shards)


@pytest.fixture(autouse=True)
def _encoders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(table, "PASSES", small_passes())
    yield
    assert not RESIDENT, "an encoder was left open"


def draw(run: Path, out: Path, *options: str, prompt: str = "a cat in a spacesuit") -> np.ndarray:
    assert main(["sample", str(run), "--prompt", prompt, "--out", str(out), *options]) == 0
    with Image.open(out) as image:
        return np.asarray(image.convert("RGB"))


def refused(run: Path, capsys: pytest.CaptureFixture[str], *options: str, prompt: str = "a cat", code: int = 2) -> str:
    out = run.parent / "refused.png"
    assert main(["sample", str(run), "--prompt", prompt, "--out", str(out), *options]) == code
    assert not out.exists()
    return capsys.readouterr().err


def rewritten(run: Path, to: Path, **recipe_changes: Any) -> Path:
    """A copy of the run whose checkpoint remembers other recipes: {artefact: changes of its recipe, None: gone}."""
    shutil.copytree(run, to)
    [state] = to.glob("checkpoints/*/state.json")
    content = json.loads(state.read_text())
    for artefact, changes in recipe_changes.items():
        if changes is None:
            del content["encoding"]["recipes"][artefact]
        else:
            content["encoding"]["recipes"][artefact] |= changes
    state.write_text(json.dumps(content))
    return to


# ---- the same encoders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_what_is_asked_is_encoded_exactly_as_the_shards_were(run: Path, root: Path, name: str) -> None:
    asked_run = trained_run(run)
    path = photograph(root / "mine", name)
    stored = collate([open_source(asked_run.config).load(id_of(path))]).conditions
    [asked] = conditions_of(asked_run, [Question(f"a photograph\tof {name} ", path, str(path))])
    assert asked.conditions.streams == stored.streams == ("text", "cls", "patches", "pose")
    assert asked.conditions.patch_grid == stored.patch_grid
    for one in ("text_BTD", "text_mask_BT", "cls_BD", "patches_BPD", "pose_BJ3"):
        assert torch.equal(getattr(asked.conditions, one), getattr(stored, one)), one
    assert asked.size == ((SIDE, SIDE) if name == "astronaut" else WIDE)


def test_new_words_draw_another_image_and_the_encoder_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = draw(run, tmp_path / "a.png")
    told = capsys.readouterr().out
    assert "from text\n" in told
    assert f"note: t5 by small-t5, revision 1a2b: {LABEL}" in told
    assert first.shape == (SIDE, SIDE, 3)
    assert np.array_equal(draw(run, tmp_path / "b.png"), first)
    assert not np.array_equal(draw(run, tmp_path / "c.png", prompt="a dog"), first)
    assert not np.array_equal(draw(run, tmp_path / "d.png", "--seed", "1"), first)


def test_a_prompt_that_is_too_long_is_cut_and_that_is_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a cat " * 7
    whole = draw(run, tmp_path / "a.png", prompt=long)
    assert "note: the prompt is too long: its last 2 tokens are not used" in capsys.readouterr().out
    assert np.array_equal(draw(run, tmp_path / "b.png", prompt="a cat " * 6), whole)
    assert "too long" not in capsys.readouterr().out


def test_a_run_directory_is_all_that_is_needed(run: Path, shards: Path, tmp_path: Path) -> None:
    before = draw(run, tmp_path / "a.png", "--bucket", "1216x832")
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    shards.rename(tmp_path / "away")
    try:
        assert np.array_equal(draw(moved, tmp_path / "b.png", "--bucket", "1216x832"), before)
    finally:
        (tmp_path / "away").rename(shards)


def test_one_model_at_a_time_and_none_beside_the_transformer(
    run: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside: list[list[str]] = []
    load = answer.load_for_evaluation

    def loading(*arguments: Any) -> Any:
        beside.append(list(RESIDENT))
        return load(*arguments)

    monkeypatch.setattr(answer, "load_for_evaluation", loading)
    path = str(photograph(root / "mine", "astronaut"))
    draw(run, tmp_path / "a.png", "--reference", path, "--pose", path)
    assert beside == [[]]


# ---- references, poses, shapes ---------------------------------------------------------------------------------------


def test_the_image_has_the_shape_of_its_reference(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coffee = str(photograph(root / "mine", "coffee"))
    assert draw(run, tmp_path / "a.png", "--reference", coffee).shape == (*WIDE, 3)
    assert "from text, cls, patches\n" in capsys.readouterr().out
    assert draw(run, tmp_path / "b.png", "--reference", coffee, "--bucket", "1024x1024").shape == (SIDE, SIDE, 3)
    assert draw(run, tmp_path / "c.png", "--pose", coffee).shape == (*WIDE, 3)
    assert draw(run, tmp_path / "d.png", "--bucket", "1216x832").shape == (*WIDE, 3)
    tall = tmp_path / "tall.png"
    Image.open(coffee).rotate(90, expand=True).save(tall)
    assert draw(run, tmp_path / "e.png", "--reference", str(tall)).shape == (SIDE, SIDE, 3), "of those it learned from"


def test_a_pose_may_be_json(run: Path, root: Path, tmp_path: Path) -> None:
    joints = json.dumps(np.linspace(0.0, 1.0, 399).reshape(133, 3).tolist())
    given = tmp_path / "pose.json"
    given.write_text(joints)
    from_file = draw(run, tmp_path / "a.png", "--pose", str(given))
    assert np.array_equal(draw(run, tmp_path / "b.png", "--pose", joints), from_file)
    assert not np.array_equal(draw(run, tmp_path / "c.png"), from_file)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_bad_questions_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, text, plain = tmp_path / "small.png", tmp_path / "text.png", tmp_path / "plain.png"
    Image.new("RGB", (20, 20)).save(small)
    text.write_text("no image")
    Image.new("RGB", (300, 300), "red").save(plain)
    assert "--prompt is empty" in refused(run, capsys, prompt=" \n")
    assert f"--reference {small} cannot be used: it is too small" in refused(run, capsys, "--reference", str(small))
    assert f"--reference {text} cannot be used" in refused(run, capsys, "--reference", str(text))
    assert "/nowhere.png cannot be used" in refused(run, capsys, "--reference", "/nowhere.png")
    assert f"--pose {text} cannot be used" in refused(run, capsys, "--pose", str(text))
    assert f"--pose {plain}: there is no person in it" in refused(run, capsys, "--pose", str(plain))
    assert "--bucket 832x1216: this run was not trained on such images; allowed: 1024x1024, 1216x832" in refused(
        run, capsys, "--bucket", "832x1216"
    )
    assert "complete ones: 2" in refused(run, capsys, "--step", "1")


def test_another_encoder_is_refused_with_both_revisions(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "PASSES", small_passes(revision="9f"))
    told = refused(run, capsys, code=65)
    assert "t5 of this run was made by small-t5, revision 1a2b; here is small-t5, revision 9f" in told
    assert "--t5 FOLDER" in told
    monkeypatch.setattr(table, "PASSES", small_passes(preprocessing=2))
    assert "(version 1) than this version does it (version 2)" in refused(run, capsys, code=65)


def test_another_precision_is_avoided_or_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = trained_run(run).record
    assert record is not None
    half_on_gpu = {"t5": lambda options: WordPass(precision="float32" if options.device == "cpu" else "bfloat16")}
    monkeypatch.setattr(table, "PASSES", half_on_gpu)
    work, notes = pass_of(record, "t5", ModelPlaces(), "auto")
    assert work.recipe.options["precision"] == "float32"
    assert len(notes) == 1
    monkeypatch.setattr(table, "PASSES", small_passes(precision="bfloat16"))
    work, notes = pass_of(record, "t5", ModelPlaces(), "auto")
    assert notes[1] == "t5 of this run was computed in float32, what you ask is in bfloat16: features differ slightly"


def test_a_model_in_a_folder_must_be_named_and_a_stand_in_cannot_be(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = rewritten(run, tmp_path / "a", t5={"model": "my-t5", "revision": "5e" * 32})
    told = refused(folder, capsys)
    assert f"made by a model in a folder 'my-t5', revision {'5e' * 32}: name that folder with --t5 FOLDER" in told
    assert "here is small-t5, revision 1a2b: get the first one and name it with --t5 FOLDER\n" in refused(
        folder, capsys, "--t5", "somewhere", code=65
    )
    hub = rewritten(run, tmp_path / "b", t5={"model": "org/t5", "revision": "5e" * 20})
    assert "a commit of the hub: name its id there" in refused(hub, capsys, "--t5", "somewhere", code=65)
    tiny = rewritten(run, tmp_path / "c", t5={"model": "tiny-t5"})
    assert "leave --t5 FOLDER out" in refused(tiny, capsys, "--t5", "somewhere")


def test_a_model_that_is_not_here_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(options: Options) -> Pass:
        raise DataError(f"{options.t5} is not here and cannot be fetched")

    monkeypatch.setattr(table, "PASSES", {"t5": missing})
    told = refused(run, capsys, code=65)
    assert "small-t5 is not here and cannot be fetched\nThis run needs t5 by small-t5, revision 1a2b" in told
    assert "elsewhere is not here" in refused(run, capsys, "--t5", "elsewhere", code=65)


def test_a_run_without_encoders_needs_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = trained(tmp_path / "drawn", steps=1, validation={"every": 1, "samples": 1, "sampler_steps": 1})
    assert "uses no encoder: leave --t5" in refused(drawn, capsys, "--t5", "somewhere")
    assert "images of the data source procedural are square" in refused(drawn, capsys, "--bucket", "1024x1024")
    words = tmp_path / "words.txt"
    words.write_text("smiling, blue background")
    assert main(["evaluate", str(drawn), "--prompts", str(words), "--out", str(tmp_path / "out"), "--seeds", "1"]) == 0
    alone = draw(drawn, tmp_path / "a.png", "--sampler", "native", prompt="smiling, blue background")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "0001_seed0.png")), alone)


def test_recipes_that_are_not_understood_are_refused(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coffee = str(photograph(root / "mine", "coffee"))
    other = rewritten(
        run, tmp_path / "a", t5={"options": {"width": 9, "precision": "float32"}}, image={"preprocessing": 0}
    )
    assert "made with other options than it would be now: width was 9, is 8" in refused(other, capsys, code=65)
    assert "were cut in another way" in refused(other, capsys, "--reference", coffee, code=65)
    other = rewritten(run, tmp_path / "b", dinov3=None, t5={"preprocessing": None})
    assert "recipe of t5 in the shards of this run cannot be understood" in refused(other, capsys, code=65)
    other = rewritten(run, tmp_path / "c", dinov3=None)
    assert "say nothing of how dinov3 was made; they name: caption, image, pose, t5" in refused(
        other, capsys, "--reference", coffee, code=65
    )
    assert draw(other, tmp_path / "c.png").any(), "words need no image encoder"


def test_shards_that_say_nothing_of_their_encoders(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = Path(shutil.copytree(shards, tmp_path / "shards"))
    index = (shards / "index.json").read_bytes()
    (shards / "index.json").unlink()
    run = train(tmp_path / "runs" / "silent", shards)
    assert "the shards have no index.json" in refused(run, capsys)
    events = [json.loads(line) for line in (run / "attempt-1" / "metrics.jsonl").read_text().splitlines()]
    [started] = [event for event in events if event.get("event") == "started"]
    assert any("no index.json: sample will know no encoder" in note for note in started["notes"])
    (shards / "index.json").write_text("[")
    assert "index.json is no index of shards" in refused(run, capsys, code=78)
    (shards / "index.json").write_bytes(index)
    assert draw(run, tmp_path / "a.png").any(), "a set that was described later"
    shutil.rmtree(shards)
    assert "the checkpoint of step 2 does not know either" in refused(run, capsys)


# ---- many prompts ----------------------------------------------------------------------------------------------------


def test_prompts_of_a_file_are_drawn_as_sample_draws_them(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "words.txt"
    prompts.write_text("a cat\n\n  a dog  in the rain\n")
    command = ["evaluate", str(run), "--prompts", str(prompts), "--seeds", "2"]
    assert main(command) == 0
    told = capsys.readouterr().out
    [folder] = (run / "validation" / "step_000002" / "prompts").iterdir()
    assert str(folder) in told
    assert "4 images of 2 prompts, step 2, nested_cfg" in told
    assert f"note: t5 by small-t5, revision 1a2b: {LABEL}" in told
    index = json.loads((folder / "prompts.json").read_text())
    assert [(one["line"], one["prompt"]) for one in index["prompts"]] == [(1, "a cat"), (3, "a dog in the rain")]
    names = [name for one in index["prompts"] for name in one["files"]]
    assert names == ["0001_seed0.png", "0001_seed1.png", "0003_seed0.png", "0003_seed1.png"]
    drawn = [np.asarray(Image.open(folder / name)) for name in names]
    assert index["recipes"] == recipes(shards)
    alone = draw(run, tmp_path / "a.png", "--sampler", "native", "--seed", "1", prompt="a dog in the rain")
    assert np.array_equal(drawn[3], alone)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {*names, "prompts.json", "sheet.png"}
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(folder), **index}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_prompts_that_cannot_be_drawn(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "words.txt"

    def fails(*options: str) -> str:
        assert main(["evaluate", str(run), *options]) == 2
        return capsys.readouterr().err

    assert "cannot be read" in fails("--prompts", str(prompts))
    prompts.write_text("\n \n")
    assert "holds no prompt" in fails("--prompts", str(prompts))
    prompts.write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in fails("--prompts", str(prompts))
    prompts.write_text("a cat")
    assert "holds something already" in fails("--prompts", str(prompts), "--out", str(tmp_path))
    assert "--attempt could append" in fails("--prompts", str(prompts), "--attempt", "1")
    assert "--seeds, --t5 without --prompts" in fails("--seeds", "2", "--t5", "here")
