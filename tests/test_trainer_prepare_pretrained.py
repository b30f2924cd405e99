"""Where the files of a model are: in a folder, in the hub's cache, on the hub; and what is said where they are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.model_hub import COMMIT, ModelHub, model_hub
from trainer.errors import DataError, UsageError
from trainer.prepare import pretrained
from trainer.prepare.pretrained import Kind, content_hash, locate

pytest.importorskip("huggingface_hub")

KIND = Kind("--net", "dreamer", files=("tokens.json",), extra_files=("more.json",))
ID = "someone/dreamer-large"


def model(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "dreamer", **config}))
    (folder / "tokens.json").write_text("[]")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def refusal(named: object, kind: Kind = KIND) -> str:
    with pytest.raises(DataError) as caught:
        locate(str(named), kind)
    return str(caught.value)


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    first, second = locate(str(model(tmp_path / "a")), KIND), locate(str(model(tmp_path / "b")), KIND)
    assert (first.name, second.name) == ("a", "b")
    assert first.revision == second.revision
    assert first.config["model_type"] == "dreamer"
    (tmp_path / "b" / "README.md").write_text("says nothing about features")
    assert locate(str(tmp_path / "b"), KIND).revision == first.revision


@pytest.mark.parametrize("name", ["config.json", "tokens.json", "more.json", "model.safetensors"])
def test_a_changed_file_is_another_revision(tmp_path: Path, name: str) -> None:
    folder = model(tmp_path / "a")
    before = locate(str(folder), KIND).revision
    (folder / name).write_text(json.dumps({"model_type": "dreamer", "changed": True}))
    assert locate(str(folder), KIND).revision != before


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model(tmp_path / "a")
    before = content_hash(folder, KIND)

    def no_more_reading(*_: object, **__: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(Path, "open", no_more_reading)
    assert content_hash(folder, KIND) == before


def test_weights_in_parts(tmp_path: Path) -> None:
    folder = model(tmp_path / "a")
    (folder / "model.safetensors").unlink()
    parts = {"x": "model-1-of-2.safetensors", "y": "model-2-of-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    (folder / parts["x"]).write_bytes(b"one")
    assert "holds no model-2-of-2.safetensors" in refusal(folder)
    (folder / parts["y"]).write_bytes(b"two")
    before = locate(str(folder), KIND).revision
    (folder / parts["y"]).write_bytes(b"TWO!")
    assert locate(str(folder), KIND).revision != before
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "names no files" in refusal(folder)


def test_what_a_folder_lacks_is_named(tmp_path: Path) -> None:
    said = refusal(tmp_path)
    assert "holds no config.json and no tokens.json and no model.safetensors" in said
    assert "--net FOLDER" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "no JSON"), (b"[]", "no JSON object"), (b'{"model_type": "sleeper"}', "type 'sleeper'; needed: 'dreamer'")],
)
def test_a_configuration_that_is_none(tmp_path: Path, content: bytes, words: str) -> None:
    (model(tmp_path) / "config.json").write_bytes(content)
    assert words in refusal(tmp_path)


@pytest.mark.parametrize("named", ["/nowhere/at/all", "./nowhere", "a/b/c", "~/nowhere", "two words", "a--b"])
def test_what_is_neither_folder_nor_id(named: str) -> None:
    said = refusal(named)
    assert named in said
    assert "hf download" in said
    assert "--net FOLDER" in said


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'armature\[prepare\]'"):
        locate(str(model(tmp_path)), KIND)


# ---- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    from huggingface_hub import constants

    files = model(tmp_path / "at the hub")
    (files / "pytorch_model.bin").write_bytes(b"the same in another format")
    (files / "more.json").write_text("{}")
    with model_hub({ID: files}) as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.address + template[template.index("/{repo_id}") :]
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield found


def test_a_model_is_fetched_once_and_known_by_its_commit(hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    source = locate(ID, KIND)
    assert (source.name, source.revision) == (ID, COMMIT)
    assert sorted(hub.fetched) == ["config.json", "model.safetensors", "more.json", "tokens.json"]
    hub.models.clear()  # from here on the cache is all there is
    assert locate(ID, KIND) == source
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate(ID, KIND) == source


def test_a_cache_that_is_not_whole_is_completed(hub: ModelHub) -> None:
    whole = locate(ID, KIND)
    (whole.folder / "model.safetensors").unlink()
    hub.fetched.clear()
    assert locate(ID, KIND) == whole
    assert (whole.folder / "model.safetensors").read_bytes() == b"weights"
    assert "config.json" not in hub.fetched


def test_a_cache_that_is_not_whole_and_no_hub(hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    (locate(ID, KIND).folder / "model.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = refusal(ID)
    assert "HF_HUB_OFFLINE" in said
    assert f'hf download {ID} --include "*.json" --include "model*.safetensors" --local-dir FOLDER' in said
    assert "--net FOLDER" in said


def test_a_model_that_the_hub_does_not_have(hub: ModelHub) -> None:
    said = refusal("someone/else")
    assert "the hub has no such model" in said
    assert "--net FOLDER" in said


def test_a_model_behind_a_licence(hub: ModelHub) -> None:
    hub.gated.add(ID)
    said = refusal(ID)
    assert f"licence must be accepted at https://huggingface.co/{ID}" in said
    assert "hf auth login" in said


def test_a_model_without_safetensors(hub: ModelHub) -> None:
    (hub.models[ID] / "model.safetensors").unlink()
    assert "holds no model.safetensors" in refusal(ID)


def test_a_hub_that_nobody_answers_for(hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refusal(ID)


def test_the_variable_that_forbids_the_network(tmp_path: Path) -> None:
    code = (
        "from trainer.errors import DataError\n"
        "from trainer.prepare.pretrained import Kind, locate\n"
        "try: locate('someone/absent', Kind('--net', 'dreamer', ('tokens.json',)))\n"
        "except DataError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": "http://0.0.0.1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "HF_HUB_OFFLINE is set" in done.stdout
    assert str(tmp_path) in done.stdout
    assert "--net FOLDER" in done.stdout
