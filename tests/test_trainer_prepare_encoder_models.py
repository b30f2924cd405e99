"""Models of text and images: those that cannot be used, their time in memory, and the stand-ins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes.encoder_cases import (
    CAPTIONS,
    TINY,
    captioned,
    copied_stand_ins,
    digest,
    folder_passes,
    own_cache,
    picture,
    refusal,
)
from trainer.cache import cache_folder
from trainer.data.buckets import BUCKETS
from trainer.errors import DataError
from trainer.prepare import dinov3, resident, t5
from trainer.prepare.dinov3 import dinov3_pass
from trainer.prepare.manifest import ImageEntry, Manifest
from trainer.prepare.options import Options
from trainer.prepare.passes import Inputs, Made
from trainer.prepare.recipe import Recipe
from trainer.prepare.records import Samples
from trainer.prepare.run import run_pass
from trainer.prepare.t5 import t5_pass
from trainer.prepare.tiny import building

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_cache(tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Copies of both stand-ins that a test may change, by the name of the option."""
    return copied_stand_ins(tmp_path)


# ---- models that cannot be used --------------------------------------------------------------------------------------


def test_a_model_of_another_kind(folders: dict[str, Path]) -> None:
    crossed = folder_passes({"t5": folders["dinov3"], "dinov3": folders["t5"]})
    assert "'dinov3_vit'; needed: 't5'" in refusal(crossed["t5"])
    assert "'t5'; needed: 'dinov3_vit'" in refusal(crossed["dinov3"])


@pytest.mark.parametrize(
    ("option", "change", "words"),
    [
        ("dinov3", {"patch_size": 14}, "patch_size 14; needed: 16"),
        ("dinov3", {"num_register_tokens": None}, "num_register_tokens None"),
        ("dinov3", {"model_type": "dinov2"}, "type 'dinov2'"),
        ("dinov3", {"hidden_size": "wide"}, "cannot be loaded"),
        ("dinov3", {"num_hidden_layers": 2}, "holds no weights 'model.layer.1."),
        ("t5", {"num_layers": 2}, "holds no weights 'encoder.block.1."),
        ("t5", {"d_model": 512}, "cannot be loaded"),
    ],
)
def test_a_configuration_that_does_not_fit(
    folders: dict[str, Path], option: str, change: dict[str, Any], words: str
) -> None:
    path = folders[option] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    said = refusal(folder_passes(folders)[option])
    assert words in said
    assert str(folders[option]) in said


@pytest.mark.parametrize(
    ("option", "name", "kept", "words"),
    [
        ("t5", "model.safetensors", 1000, "cannot be loaded"),
        ("dinov3", "model.safetensors", 0, "cannot be loaded"),
        ("t5", "tokenizer.json", 1000, "no JSON"),
        ("t5", "config.json", 20, "no JSON"),
        ("dinov3", "config.json", None, "holds no config.json"),
        ("dinov3", "preprocessor_config.json", None, "holds no preprocessor_config.json"),
        ("t5", "tokenizer.json", None, "holds no tokenizer.json"),
    ],
)
def test_a_torn_file(folders: dict[str, Path], option: str, name: str, kept: int | None, words: str) -> None:
    path = folders[option] / name
    content = path.read_bytes()
    path.unlink()
    if kept is not None:
        path.write_bytes(content[:kept])
    assert words in refusal(folder_passes(folders)[option])


@pytest.mark.parametrize(
    ("content", "words"), [("{}", "holds no tokenizer"), ('{"model": {"type": "Unigram"}}', "cannot be loaded")]
)
def test_a_tokenizer_that_is_none(folders: dict[str, Path], content: str, words: str) -> None:
    (folders["t5"] / "tokenizer.json").write_text(content)
    assert words in refusal(folder_passes(folders)["t5"])


def test_a_tokenizer_that_is_too_large(folders: dict[str, Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["t5"])
    tokenizer.add_tokens(["supercalifragilistic"])
    tokenizer.save_pretrained(folders["t5"])
    assert "do not belong together" in refusal(folder_passes(folders)["t5"])


def test_a_model_that_changes_between_look_up_and_use(folders: dict[str, Path]) -> None:
    work = folder_passes(folders)["dinov3"]
    assert work.recipe.model == "dinov3"
    path = folders["dinov3"] / "preprocessor_config.json"
    path.write_text(path.read_text().replace("0.485", "0.5"))
    assert "has changed while this ran" in refusal(work)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("make", [t5_pass, dinov3_pass])
def test_a_gpu_that_is_not_there(make: Any) -> None:
    assert "sees no CUDA device" in refusal(make(Options(tiny=True, device="cuda")))


# ---- models in memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "module"), [(t5_pass, t5), (dinov3_pass, dinov3)])
def test_a_model_is_gone_when_its_pass_ends(make: Any, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[Any]] = []

    def noted(*arguments: Any) -> Any:
        model = resident.load_model(*arguments)
        seen.append(weakref.ref(model))
        return model

    monkeypatch.setattr(module, "load_model", noted)
    with make(TINY).open() as encode:
        encode([Inputs("0", Path("x"), image_CHW=picture(), caption="A cat.")])
        assert seen[0]() is not None
    assert seen[0]() is None  # although encode is still there
    assert encode is not None


def test_a_full_gpu_says_what_to_do() -> None:
    def full(inputs: Sequence[Inputs]) -> Sequence[Made]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with resident.resident(lambda: full, torch.device("cpu")) as encode, pytest.raises(DataError, match="--batch 2 or"):
        encode(captioned("a", "b", "c", "d"))


# ---- stand-ins -------------------------------------------------------------------------------------------------------


def test_stand_ins_say_what_they_are() -> None:
    recipes = [make(TINY).recipe for make in (t5_pass, dinov3_pass)]
    assert [recipe.model for recipe in recipes] == ["tiny-t5", "tiny-dinov3"]
    assert all("random stand-in (seed 0)" in recipe.label for recipe in recipes)
    assert recipes[0].options == {"most_tokens": 512, "precision": "float32"}


def test_a_stand_in_that_is_built_again_makes_the_same_bytes(tmp_path: Path) -> None:
    expected = digest()
    torch.manual_seed(7)
    with own_cache(tmp_path):
        assert digest() == expected


@pytest.mark.long
def test_another_process_makes_the_same_bytes(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    code = "from tests.fakes.encoder_cases import digest; print(digest())"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == digest()


def test_two_processes_may_build_at_once() -> None:
    begun: list[Path] = []

    def build(folder: Path) -> None:
        begun.append(folder)
        if len(begun) == 1:
            building.stand_in("tiny-race", 1, t5.KIND, build)  # another process begins later and is ready first
        shutil.copytree(cache_folder() / "tiny-t5-1", folder, dirs_exist_ok=True)

    assert t5_pass(TINY).recipe.revision == building.stand_in("tiny-race", 1, t5.KIND, build).revision
    assert len(begun) == 2
    assert not [path for path in cache_folder().iterdir() if path.name.startswith(".")]


def test_building_leaves_torch_s_generator_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert t5_pass(TINY).recipe.revision
    assert torch.equal(torch.rand(3), expected)


def test_a_broken_or_closed_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    broken = tmp_path / "armature" / "tiny-t5-1"
    broken.mkdir(parents=True)
    assert f"stand-in in {broken} is broken, remove that folder" in refusal(t5_pass(TINY))
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert "cannot be written" in refusal(t5_pass(TINY))


# ---- a set -----------------------------------------------------------------------------------------------------------


def test_both_passes_over_a_set(tmp_path: Path) -> None:
    samples = Samples(tmp_path)
    entries = []
    for index, (bucket, caption) in enumerate(zip(BUCKETS, CAPTIONS, strict=False)):
        id = f"{index:016x}"
        image = picture(*bucket.scaled(256) or (), seed=index)
        samples.keep(id, "image", Recipe(), {}, Made({"image.npy": image}))
        samples.keep(id, "caption", Recipe(), {}, Made({"caption.txt": caption}))
        entries.append(ImageEntry(id, f"{index}.jpg", 1, 1, bucket.name, "0" * 16))
    manifest = Manifest(str(tmp_path), tuple(entries))
    for make in (t5_pass, dinov3_pass):
        outcome = run_pass(make(TINY), samples, manifest)
        assert (outcome.made, outcome.failed, outcome.waiting) == (3, [], [])
        assert run_pass(make(TINY), samples, manifest).done == 3
