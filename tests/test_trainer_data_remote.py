"""Sets of shards that are elsewhere, over a real server: what is fetched, continued, refused, and never asked twice."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.fakes.file_server import FileServer, serving
from tests.fakes.packed_set import LABEL, packed_set, write_index
from trainer import checkpoint
from trainer.check import check
from trainer.data import open_source
from trainer.data.named_set import shards_of
from trainer.data.remote import download as downloads
from trainer.data.remote import local_copy as copies
from trainer.data.remote.address import Address, is_address, parse_address
from trainer.data.remote.download import download, part_of
from trainer.data.remote.faults import NotReachable
from trainer.data.remote.http import get
from trainer.data.remote.look_up import _looked_up, look_up
from trainer.data.set_index import read_index
from trainer.data.set_record import set_record
from trainer.document import Document, parse_config
from trainer.errors import ConfigError, DataError

MODEL = {"width": 16, "depth": 2, "heads": 2, "patch": 4}
TOKEN = "hf_never-to-be-seen-1234567890"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_set(tmp_path_factory.mktemp("original") / "shards")


@pytest.fixture
def server(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(copies, "SPARE_BYTES", 0)
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    for name in ("HF_TOKEN", "HF_ENDPOINT", "ARMATURE_ALLOW_HTTP"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(original, tmp_path / "served" / "shards")
    with serving(tmp_path / "served") as found:
        _looked_up.cache_clear()
        yield found
    _looked_up.cache_clear()


def block(path: str, size: int = 64, **data: Any) -> dict[str, Any]:
    data = {"source": "shards", "path": path, "size": size, "workers": 0, **data}
    return {"steps": 4, "batch": 4, "model": MODEL, "data": data, "validation": {"samples": 2}}


def address(server: FileServer) -> str:
    return f"{server.base}/shards"


def opened(server: FileServer, **data: Any) -> Any:
    """The set as a new process would open it."""
    _looked_up.cache_clear()
    return open_source(parse_config(block(address(server), **data)))


def copy_of(server: FileServer) -> Path:
    """The folder of the copy."""
    return look_up(address(server)).folder


def tars(asked: list[str]) -> list[str]:
    return [path for path in asked if path.endswith(".tar")]


# ---- fetching --------------------------------------------------------------------------------------------------------


def test_a_set_elsewhere_gives_the_very_samples_of_the_folder_and_is_fetched_once(
    server: FileServer, original: Path
) -> None:
    here, there = open_source(parse_config(block(str(original)))), opened(server)
    assert here.train_ids == there.train_ids
    assert here.held_out_ids == there.held_out_ids
    assert (here.load(here.train_ids[0]).pixels_HWC == there.load(here.train_ids[0]).pixels_HWC).all()
    fetched = tars(server.paths())
    assert sorted(fetched) == sorted(f"shards/{shard.path}" for shard in read_index(original).shards)
    opened(server)
    assert tars(server.paths()) == fetched
    assert not list(copy_of(server).rglob("*.part"))


def test_a_download_that_breaks_off_is_continued_where_it_was(server: FileServer, original: Path) -> None:
    shard = read_index(original).shards[0]
    server.cut[f"shards/{shard.path}"] = [1000, 2000]
    opened(server)
    assert server.ranges(f"shards/{shard.path}") == ["", "bytes=1000-", "bytes=3000-"]


def test_what_came_of_a_server_that_is_gone_is_kept_for_the_next_start(server: FileServer, original: Path) -> None:
    shard = read_index(original).shards[1]
    path = f"shards/{shard.path}"
    server.cut[path] = [1000, *[0] * downloads.TRIES]
    with pytest.raises(DataError, match=rf"1,000 of {shard.size_bytes:,} bytes of {shard.path} are kept.*start again"):
        opened(server)
    assert part_of(copy_of(server) / shard.path).stat().st_size == 1000
    server.asked.clear()
    opened(server)
    assert server.ranges(path) == ["bytes=1000-"]


def test_a_server_without_ranges_begins_anew(server: FileServer, original: Path) -> None:
    shard = read_index(original).shards[0]
    server.has_ranges = False
    server.cut[f"shards/{shard.path}"] = [1000]
    opened(server)
    assert server.ranges(f"shards/{shard.path}") == ["", "bytes=1000-"]
    assert hashlib.sha256((copy_of(server) / shard.path).read_bytes()).hexdigest() == shard.sha256


def test_wrong_bytes_are_named_and_removed(server: FileServer, original: Path) -> None:
    shard = read_index(original).shards[0]
    server.spoil.add(f"shards/{shard.path}")
    with pytest.raises(DataError, match=rf"{shard.path} came with another content.*removed"):
        opened(server)
    target = copy_of(server) / shard.path
    assert not target.exists()
    assert not part_of(target).exists()
    server.spoil.clear()
    opened(server)


def test_a_part_that_was_spoiled_on_disk_is_fetched_anew(server: FileServer, original: Path) -> None:
    shard = read_index(original).shards[0]
    part = part_of(copy_of(server) / shard.path)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 500)
    opened(server)
    assert server.ranges(f"shards/{shard.path}") == ["bytes=500-", ""]


def test_a_shard_that_was_changed_here_is_fetched_again_and_a_touched_one_is_not(
    server: FileServer, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened(server)
    first, second = (copy_of(server) / shard.path for shard in read_index(original).shards[:2])
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    second.touch()
    server.asked.clear()
    opened(server)
    assert tars(server.paths()) == [f"shards/{first.relative_to(copy_of(server)).as_posix()}"]
    assert first.read_bytes() == content
    assert f"{first} is not what the index says" in capsys.readouterr().err


def test_a_longer_answer_than_the_index_says_is_not_kept(server: FileServer, original: Path) -> None:
    shard = read_index(original).shards[0]
    with (server.root / "shards" / shard.path).open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=f"{shard.path} has more than"):
        opened(server)


def test_a_missing_shard_is_named(server: FileServer, original: Path) -> None:
    shard = read_index(original).shards[-1]
    (server.root / "shards" / shard.path).unlink()
    with pytest.raises(DataError, match=rf"{shard.path} is not there \(status 404\)"):
        opened(server)


def test_nothing_is_fetched_onto_a_disk_without_room(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "SPARE_BYTES", 2**80)
    with pytest.raises(DataError, match=r"are needed in .* are free.*nothing was fetched"):
        opened(server)
    assert not tars(server.paths())


def test_a_full_disk_is_told_and_keeps_what_came(server: FileServer, original: Path, tmp_path: Path) -> None:
    shard = read_index(original).shards[0]

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def source(*, start: int) -> Any:
        return get(parse_address(address(server)), shard.path, start=start)

    target = tmp_path / "x.tar"
    with pytest.raises(DataError, match=r"the disk is full.*XDG_CACHE_HOME"):
        download(source, shard, target, full, Event())
    assert part_of(target).exists()
    assert not target.exists()


def test_a_second_process_waits_for_the_first(server: FileServer, tmp_path: Path) -> None:
    code = (
        "import sys; from trainer.data.remote import local_copy as c, look_up as l; c.SPARE_BYTES = 0;"
        "print(c.local_copy(l.look_up(sys.argv[1])))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, address(server)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {process.communicate(timeout=60)[0] for process in both}
    assert len(said) == 1
    assert all(process.returncode == 0 for process in both)
    assert len(tars(server.paths())) == len(set(tars(server.paths())))


# ---- identity --------------------------------------------------------------------------------------------------------


def test_a_configuration_holds_the_index_that_was_there(server: FileServer, original: Path) -> None:
    answer = check("x", block(address(server)))
    digest = hashlib.sha256((original / "index.json").read_bytes()).hexdigest()
    assert answer["ok"]
    assert answer["config"]["data"]["index"] == digest
    assert not tars(server.paths())
    assert any("will be fetched" in note for note in answer["notes"])
    assert any(LABEL in note for note in answer["notes"])


def test_a_changed_set_is_noticed_by_whoever_goes_on(server: FileServer, original: Path) -> None:
    before = parse_config(block(address(server)))
    streams = opened(server).streams
    state = checkpoint.describe(Document(before, 0, "r"), streams)
    wanted = before.data.index
    shutil.rmtree(server.root / "shards" / "bucket_304x208")
    write_index(server.root / "shards")
    _looked_up.cache_clear()
    after = parse_config(block(address(server)))
    assert after.data.index != wanted
    with pytest.raises(ConfigError, match=r"keys: data\.index"):
        checkpoint.require_same_run(state, Document(after, 0, "r"))
    server.asked.clear()
    same = opened(server, index=wanted)  # the copy of the old set is whole, so nobody is asked
    assert server.paths() == []
    assert len(same.train_ids) > len(open_source(after).train_ids)


def test_another_set_than_wanted_is_refused(server: FileServer, original: Path) -> None:
    with pytest.raises(ConfigError, match=r"not the set that this run was made for.*data\.index wants 000000000000"):
        opened(server, index="0" * 64)
    with pytest.raises(ConfigError, match="not the set that this run was made for"):
        parse_config(block(str(original), index="0" * 64))
    digest = read_index(original).digest
    assert parse_config(block(str(original), index=digest)).data.index == digest


def test_a_pinned_whole_copy_needs_no_network_at_all(server: FileServer) -> None:
    digest = parse_config(block(address(server))).data.index
    opened(server)
    server.asked.clear()
    opened(server, index=digest)
    assert server.paths() == []


def test_without_a_network_the_last_known_set_is_used_and_said(server: FileServer, tmp_path: Path) -> None:
    opened(server)
    digest = look_up(address(server)).index.digest
    server.answers["shards/index.json"] = 503
    _looked_up.cache_clear()
    answer = check("x", block(address(server)))
    assert answer["ok"]
    assert answer["config"]["data"]["index"] == digest
    assert any("could not be asked" in note and "status 503" in note for note in answer["notes"])
    assert opened(server).train_ids


def test_a_check_of_a_set_that_cannot_be_asked_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with socket.socket() as taken:  # bound and not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        where = f"http://127.0.0.1:{taken.getsockname()[1]}/shards"
        answer = check("x", block(where))
        assert answer["ok"]
        assert answer["config"]["data"]["index"] is None
        assert any("cannot be reached" in note for note in answer["notes"])
        with pytest.raises(NotReachable, match="cannot be reached"):
            open_source(parse_config(block(where)))


def test_a_check_knows_buckets_and_streams_from_the_index_alone(server: FileServer) -> None:
    index = json.loads((server.root / "shards/index.json").read_bytes())
    del index["recipes"]["t5"]
    (server.root / "shards/index.json").write_text(json.dumps(index))
    errors = check("x", block(address(server)))["errors"]
    assert [error["path"] for error in errors] == ["streams.text"]
    _looked_up.cache_clear()
    errors = check("x", block(address(server), size=1024))["errors"]
    assert "data.size" in [error["path"] for error in errors]
    assert not tars(server.paths())


def test_what_a_set_was_made_with_is_known_before_it_is_fetched(server: FileServer, original: Path) -> None:
    _looked_up.cache_clear()
    config = parse_config(block(address(server)))
    found, record = shards_of(config), set_record(config)
    assert found is not None
    assert record is not None
    assert found.labels == record.labels == (LABEL,)
    assert record.recipes == read_index(original).recipes
    assert not record.missing
    assert not tars(server.paths())
    opened(server)
    assert set_record(config) == record


def test_a_check_answers_without_torch(server: FileServer) -> None:
    question = json.dumps([{"id": 1, "config": block(address(server))}])
    code = "import sys; from trainer.check import main; main(['--json']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], input=question, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["config"]["data"]["index"]


# ---- what comes from strangers ---------------------------------------------------------------------------------------


def test_an_index_that_never_ends_is_cut_off(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.remote.look_up.MOST_BYTES", 100)
    with pytest.raises(DataError, match="more than 100 bytes"):
        look_up(address(server))


def test_an_index_that_is_not_there_is_an_error_of_the_configuration(server: FileServer) -> None:
    answer = check("x", block(f"{server.base}/elsewhere"))
    assert not answer["ok"]
    assert "index.json is not there (status 404)" in answer["errors"][0]["message"]


# ---- addresses, redirects, tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://example.org/shards", "not protected"),
        ("https://user:word@example.org/shards", "hold no user"),
        ("https://example.org/shards?key=1", "hold no user"),
        ("https:///shards", "is no address"),
        ("https://example.org:x/", "is no address"),
        ("https://example.org/a b", "is no address"),
        ("hub:name", "hub:OWNER/NAME"),
        ("hub:a/b/c", "hub:OWNER/NAME"),
        ("hub:../b", "hub:OWNER/NAME"),
        ("hub:a/b@../x", "hub:OWNER/NAME"),
        ("hub:a/b@", "hub:OWNER/NAME"),
    ],
)
def test_addresses_that_are_refused(text: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARMATURE_ALLOW_HTTP", raising=False)
    assert is_address(text)
    with pytest.raises(DataError, match=words) as caught:
        parse_address(text)
    assert "word" not in str(caught.value).replace("password", "")


def test_addresses_that_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert parse_address("https://example.org/shards/").url("index.json") == "https://example.org/shards/index.json"
    hub = parse_address("hub:some-one/faces.v2@refs/pr/1")
    assert hub == Address(hub.text, repository="some-one/faces.v2", revision="refs/pr/1")
    assert hub.url("a.tar") == "https://huggingface.co/datasets/some-one/faces.v2/resolve/refs%2Fpr%2F1/a.tar"
    assert hub.url("a.tar", "0" * 40).endswith(f"/resolve/{'0' * 40}/a.tar")
    monkeypatch.setenv("ARMATURE_ALLOW_HTTP", "1")
    assert parse_address("http://example.org/x").base == "http://example.org/x"
    assert not is_address("/data/hub:a/b")
    assert not is_address("{data:faces}")


def test_the_token_goes_to_the_hub_and_not_where_it_redirects(
    server: FileServer, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, repository = "c" * 40, "datasets/me/faces/resolve"
    at_main, at_commit = (server.root / repository / revision for revision in ("main", commit))
    for folder in (at_main, at_commit):
        shutil.copytree(original, folder)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password another\n")
    server.extra["X-Repo-Commit"] = commit
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NETRC", str(netrc))
    shard = read_index(original).shards[0]
    with serving(original) as storage:
        server.moved[f"{repository}/{commit}/{shard.path}"] = f"{storage.base}/{shard.path}"
        open_source(parse_config(block("hub:me/faces")))
        assert storage.paths() == [shard.path]
        assert all("Authorization" not in headers for _, headers in storage.asked)
    assert all(headers["Authorization"] == f"Bearer {TOKEN}" for _, headers in server.asked)
    assert {path.split("/")[4] for path in tars(server.paths())} == {commit}, "shards of the commit of the index"


def test_a_redirect_may_not_leave_protection(server: FileServer) -> None:
    server.moved["shards/index.json"] = "http://example.org/index.json"
    with pytest.raises(DataError, match=r"example\.org is not protected"):
        look_up(address(server))
    server.moved["shards/index.json"] = "/shards/index.json"
    _looked_up.cache_clear()
    with pytest.raises(DataError, match="redirected more than"):
        look_up(address(server))


@pytest.mark.parametrize(("status", "words"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (418, "status 418")])
def test_refusals_say_what_to_do(server: FileServer, status: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.answers["datasets/me/faces/resolve/main/index.json"] = status
    with pytest.raises(DataError, match=words) as caught:
        look_up("hub:me/faces")
    assert TOKEN not in str(caught.value)


def test_addresses_and_indices_belong_to_shards() -> None:
    with pytest.raises(ConfigError, match="source folder reads none"):
        parse_config({"steps": 1, "data": {"source": "folder", "path": "https://example.org/x"}})
    with pytest.raises(ConfigError, match="has no index"):
        parse_config({"steps": 1, "data": {"index": "0" * 64}})
    with pytest.raises(ConfigError, match=r"data\.index"):
        parse_config(block("/x", index="zz"))
