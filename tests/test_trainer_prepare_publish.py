"""Publishing a set to a hub that is strict about its protocol: dry runs, uploads, interruptions, refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.utils._http
import pytest
import yaml

from tests.fakes.hub import TOKEN, FakeHub, Repository, fake_hub
from tests.fakes.packed_set import packed_set, write_index
from trainer.data import open_source
from trainer.data.remote import local_copy as copies
from trainer.data.remote.look_up import _looked_up
from trainer.data.set_index import read_index
from trainer.document import parse_config
from trainer.errors import DataError, UsageError
from trainer.prepare.publication import LICENCE_NOTE, files_of
from trainer.prepare.publish import PUBLISHED, main, publish

NAME = "me/faces"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the library's own call of httpx2


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("packed")
    packed_set(data / "shards")
    (data / "card.md").write_text("# Data card\n")
    (data / "card.png").write_bytes(b"\x89PNG of a card")
    return data


@pytest.fixture
def data(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "data"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with fake_hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.base)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda _: None)
        yield found
        assert found.complaints == []


def send(data: Path, **options: bool) -> object:
    index, files = files_of(data)
    return publish(data, NAME, index, files, **options)


def shard_hashes(data: Path) -> list[str]:
    return sorted(shard.sha256 for shard in read_index(data / "shards").shards)


def test_a_dry_run_names_everything_and_touches_no_network(
    data: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(data), "--to", f"hub:{NAME}"]) == 0
    said = capsys.readouterr().out
    for words in ("to upload: 8 files", "shard-000000.tar", "README.md", "private", LICENCE_NOTE, "add --yes"):
        assert words in said
    assert hub.calls == []
    assert not (data / PUBLISHED).exists()
    assert main([str(data), "--to", f"hub:{NAME}", "--json", "--public"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["visibility"], answer["done"], len(answer["upload"])) == ("public", False, 8)


def test_what_is_published_is_what_others_train_on(
    data: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(data), "--to", f"hub:{NAME}", "--yes", "--license", "cc-by-4.0"]) == 0
    repository = hub.repositories[NAME]
    assert repository.is_private
    assert len(repository.commits) == 2, "one commit, so that nobody sees half of a set"
    assert sorted(repository.files) == sorted(file.path for file in files_of(data)[1])
    readme = repository.files["README.md"][0].decode()
    header = yaml.safe_load(readme.split("---\n")[1])
    assert header == {
        "license": "cc-by-4.0",
        "tags": ["webdataset", "armature"],
        "size_categories": ["n<1K"],
        "viewer": False,
    }
    assert readme.endswith("# Data card\n")
    assert TOKEN not in "".join(capsys.readouterr())
    monkeypatch.setattr(copies, "SPARE_BYTES", 0)
    _looked_up.cache_clear()
    model = {"width": 16, "depth": 2, "heads": 2, "patch": 4}
    block = {"steps": 1, "model": model, "data": {"source": "shards", "size": 64, "path": f"hub:{NAME}"}}
    config = parse_config(block)
    assert config.data.index == read_index(data / "shards").digest
    there = open_source(config)
    local = {**block, "data": {**block["data"], "path": str(data / "shards")}}
    assert there.train_ids == open_source(parse_config(local)).train_ids


def test_a_second_time_nothing_goes_up(data: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    send(data)
    sent, commits = hub.uploads(), list(hub.repositories[NAME].commits)
    hub.calls.clear()
    assert main([str(data), "--to", f"hub:{NAME}", "--yes"]) == 0
    assert hub.uploads() == []
    assert hub.repositories[NAME].commits == commits
    assert set(shard_hashes(data)) < set(sent)
    capsys.readouterr()
    hub.calls.clear()
    main([str(data), "--to", f"hub:{NAME}"])
    assert "to upload: 0 files" in capsys.readouterr().out
    assert hub.calls == []


def test_an_upload_that_was_interrupted_goes_on(data: Path, hub: FakeHub) -> None:
    last = shard_hashes(data)[-1]
    planted = {("PUT", f"/{kind}/{last}"): [403] for kind in ("part", "object")}
    hub.failures.update(planted)
    with pytest.raises(DataError, match="status 403"):
        send(data)
    assert not hub.repositories[NAME].files, "nothing has a name before everything is there"
    before = set(hub.objects)
    assert before
    hub.failures.clear()
    hub.calls.clear()
    send(data)
    assert not before & set(hub.uploads())
    assert set(shard_hashes(data)) <= set(hub.objects)


def test_a_changed_set_replaces_the_old_one_at_once(data: Path, hub: FakeHub) -> None:
    send(data)
    hub.repositories[NAME].files["notes.txt"] = (b"of the owner", False)
    shutil.rmtree(data / "shards" / "bucket_304x208")
    write_index(data / "shards")
    hub.calls.clear()
    send(data)
    assert hub.uploads() == []
    paths = set(hub.repositories[NAME].files)
    assert paths == {*(file.path for file in files_of(data)[1]), "notes.txt"}
    assert len(hub.repositories[NAME].commits) == 3


@pytest.mark.parametrize("is_public", [True, False])
def test_photographs_never_go_where_others_see_them_unasked(data: Path, hub: FakeHub, is_public: bool) -> None:
    hub.repositories[NAME] = Repository(is_private=is_public)
    with pytest.raises(DataError, match=r"say --(public|private).*nothing was uploaded"):
        send(data, is_public=is_public)
    assert hub.uploads() == []


def test_a_shard_that_changed_since_it_was_packed_stays_here(data: Path, hub: FakeHub) -> None:
    shard = data / "shards" / read_index(data / "shards").shards[0].path
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="has changed since it was packed"):
        send(data)
    assert not hub.repositories[NAME].files
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match="the index says"):
        send(data)
    shard.unlink()
    with pytest.raises(DataError, match="is missing: pack the set again"):
        send(data)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "does not accept the token: set HF_TOKEN"),
        (403, "may not write there.*of me"),
        (404, "is the name right"),
        (429, "wait some minutes"),
        (502, "a problem of its own.*again later"),
        (418, "the hub refuses"),
    ],
)
@pytest.mark.parametrize("place", [("GET", "/api/datasets/"), ("POST", "/api/datasets/me/faces/commit")])
def test_refusals_say_what_to_do(data: Path, hub: FakeHub, place: tuple[str, str], status: int, words: str) -> None:
    hub.failures[place] = [status] * 9
    with pytest.raises(DataError, match=rf"hub:me/faces: .*{words}.*status {status}") as caught:
        send(data)
    assert TOKEN not in str(caught.value)


def test_a_passing_fault_of_the_storage_is_tried_again(data: Path, hub: FakeHub) -> None:
    hub.failures["PUT", "/"] = [500, 503]
    send(data)
    assert set(shard_hashes(data)) <= set(hub.objects)


def test_somebody_else_who_commits_meanwhile_is_not_overwritten(data: Path, hub: FakeHub) -> None:
    hub.failures["POST", "/api/datasets/me/faces/commit"] = [412]
    with pytest.raises(DataError, match="somebody else has changed it meanwhile"):
        send(data)


def test_without_a_network_it_says_so(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9 cannot be reached; what is up stays up"):
        send(data)


def test_without_a_token_it_says_where_one_comes_from(
    data: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(DataError, match="set HF_TOKEN, or log in"):
        send(data)
    assert hub.calls == []


@pytest.mark.parametrize("to", ["me/faces", "hub:faces", "hub:me/faces@main", "https://example.org/x"])
def test_other_targets_are_refused(data: Path, to: str) -> None:
    with pytest.raises(UsageError, match="hub:OWNER/NAME"):
        main([str(data), "--to", to])


def test_a_set_without_a_card_or_shards_is_refused(data: Path, tmp_path: Path) -> None:
    (data / "card.md").unlink()
    with pytest.raises(DataError, match=r"card\.md cannot be read"):
        files_of(data)
    with pytest.raises(DataError, match=r"index\.json is not there"):
        files_of(tmp_path)


def test_the_command_uploads_in_a_process_of_its_own(data: Path, hub: FakeHub) -> None:
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "trainer", "publish", str(data), "--to", f"hub:{NAME}", "--yes", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"]
    assert "index.json" in hub.repositories[NAME].files
    assert TOKEN not in done.stdout + done.stderr
