"""The copy of a run folder is the run folder, whatever happened to it in between; and a hostile host gains nothing."""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from provisioning import mirror as mirrors
from provisioning.changes import SMALL_BYTES, changes
from provisioning.mirror import CHANGES, NOTES, Mirror
from provisioning.run_paths import OURS
from tests.fakes.asked_agent import files_of_at_most

SKIPPED = (".safetensors",)
NAMES = st.sampled_from(
    ["metrics.jsonl", "attempt-1/stdout.log", "attempt-1/exit.json", "a/b/c/log", "model.safetensors"]
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["append", "replace", "rewrite", "delete", "look", "forget"]), NAMES, st.binary(max_size=90)
    ),
    max_size=25,
)


def look(source: Path, mirror: Mirror, budget: int = 10**6) -> bool:
    """One question and its answer, through JSON as on the line; whether nothing was cut off."""
    asked = json.loads(json.dumps(mirror.known()))
    answer = json.loads(json.dumps(changes(str(source), asked, [*SKIPPED, *mirror.unwanted], budget)))
    found = CHANGES.validate_python(answer)
    mirror.take(found)
    return found.is_whole


def act(source: Path, what: str, name: str, data: bytes) -> None:
    path = source / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "append":
        with path.open("ab") as file:
            file.write(data)
    elif what == "replace":
        path.with_name("part").write_bytes(data)
        path.with_name("part").replace(path)
    elif what == "rewrite":
        path.write_bytes(path.read_bytes() + data if path.exists() else data)
    elif path.exists():
        path.unlink()


def files(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != NOTES}


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, budget=st.sampled_from([7, 64, 10**6]))
def test_the_copy_holds_what_the_folder_holds(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, bytes]], budget: int
) -> None:
    base = tmp_path_factory.mktemp("mirror")
    source, mirror = base / "there", Mirror(base / "here")
    source.mkdir()
    for what, name, data in steps:
        if what == "forget":
            mirror = Mirror(base / "here")  # another process takes over
        elif what == "look":
            look(source, mirror, max(budget, 100))
        else:
            act(source, what, name, data)
    for _ in range(500):
        if look(source, mirror, max(budget, 100)):
            break
    wanted = {name: data for name, data in files(source).items() if not name.endswith(SKIPPED)}
    here = files(base / "here") if (base / "here").exists() else {}
    assert {name: here.get(name) for name in wanted} == wanted
    assert mirror.refused == {}
    shutil.rmtree(base)


def test_new_bytes_alone_travel(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"0123456789")
    known = {"log": [(tmp_path / "log").stat().st_ino, 4, 0, zlib.crc32(b"0123")]}
    (found,) = changes(str(tmp_path), known, (), 100)["files"].values()
    assert (found[1], found[3], found[4]) == (10, 4, "NDU2Nzg5")
    known["log"][1:] = [10, (tmp_path / "log").stat().st_mtime_ns, zlib.crc32(b"0123456789")]
    assert changes(str(tmp_path), known, (), 100)["files"] == {}


def test_a_small_file_comes_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"x" * (SMALL_BYTES + 1))
    (tmp_path / "exit.json").write_bytes(b"{}" * 100)
    mirror = Mirror(tmp_path / "copy")
    source = tmp_path
    assert not look(source, mirror, 150)
    assert len(files(mirror.folder)["a.log"]) == 150
    assert "exit.json" not in files(mirror.folder)


def test_a_file_that_was_only_touched_is_touched_here(tmp_path: Path) -> None:
    source, mirror = tmp_path / "there", Mirror(tmp_path / "here")
    source.mkdir()
    (source / "heartbeat").write_bytes(b"1")
    look(source, mirror)
    inode = (mirror.folder / "heartbeat").stat().st_ino
    os.utime(source / "heartbeat", ns=(5 * 10**9, 5 * 10**9))
    look(source, mirror)
    found = (mirror.folder / "heartbeat").stat()
    assert (found.st_ino, found.st_mtime_ns) == (inode, 5 * 10**9)


def test_what_is_being_written_there_is_not_copied(tmp_path: Path) -> None:
    source, mirror = tmp_path / "there", Mirror(tmp_path / "here")
    source.mkdir()
    for name in (".exit.json.4711", "exit.json.part", "scores.tmp", "exit.json"):
        (source / name).write_bytes(b"{}")
    look(source, mirror)
    assert set(files(mirror.folder)) == {"exit.json"}
    assert mirror.refused == {}


def test_links_devices_and_pipes_are_named_and_not_read(tmp_path: Path) -> None:
    source = tmp_path / "there"
    source.mkdir()
    (source / "link").symlink_to("/etc/passwd")
    (source / "folder").symlink_to("/etc")
    os.mkfifo(source / "pipe")
    mirror = Mirror(tmp_path / "here")
    look(source, mirror)
    assert files(tmp_path / "here") == {} or not (tmp_path / "here").exists()
    assert set(mirror.refused) == {"link", "folder", "pipe"}


def test_a_link_keeps_away_no_file_whose_path_ends_as_its_own(tmp_path: Path) -> None:
    source, mirror = tmp_path / "there", Mirror(tmp_path / "here")
    act(source, "append", "attempt-1/metrics.jsonl", b"{}\n")
    (source / "metrics.jsonl").symlink_to("attempt-1/metrics.jsonl")
    look(source, mirror)
    act(source, "append", "attempt-1/metrics.jsonl", b"{}\n")
    look(source, mirror)
    assert files(mirror.folder) == {"attempt-1/metrics.jsonl": b"{}\n{}\n"}
    assert set(mirror.refused) == {"metrics.jsonl"}


def test_what_only_we_write_is_never_taken_and_comes_once(tmp_path: Path) -> None:
    source, mirror = tmp_path / "there", Mirror(tmp_path / "here")
    for name in (*OURS, "attempt-1/config.yaml"):
        act(source, "rewrite", name, b"theirs")
    for name in sorted(OURS)[:-1]:  # the last is not here yet
        act(mirror.folder, "rewrite", name, b"ours")
    for _ in range(2):
        look(source, mirror)
    assert files(mirror.folder) == dict.fromkeys(sorted(OURS)[:-1], b"ours") | {"attempt-1/config.yaml": b"theirs"}
    assert mirror.refused == {}
    assert changes(str(source), mirror.known(), (), 10**6)["files"] == {}
    act(source, "append", "config.yaml", b" and more")  # as a file that grew it would come from its old end on
    look(source, mirror)
    assert mirror.refused == {}
    assert (mirror.folder / "config.yaml").read_bytes() == b"ours"


def test_a_checkpoint_that_is_whole_here_is_not_mixed_with_another_of_its_name(tmp_path: Path) -> None:
    source, mirror = tmp_path / "there", Mirror(tmp_path / "here")
    for step in (1, 2):
        act(source, "rewrite", f"checkpoints/step_00000{step}/state.json", b"theirs")
    act(mirror.folder, "rewrite", "checkpoints/step_000001/state.json", b"ours")
    act(mirror.folder, "rewrite", "checkpoints/step_000001/model.safetensors", b"weights")
    look(source, mirror)
    assert (mirror.folder / "checkpoints/step_000001/state.json").read_bytes() == b"ours"
    assert (mirror.folder / "checkpoints/step_000002/state.json").read_bytes() == b"theirs"
    assert mirror.refused == {}


def piece(data: bytes = b"x", *, offset: int = 0, size: int | None = None) -> list[Any]:
    return [1, offset + len(data) if size is None else size, 0, offset, base64.b64encode(data).decode()]


def answer(**files: list[Any]) -> Any:
    return {"files": files, "odd": [], "is_whole": True}


@pytest.mark.parametrize(
    "name",
    [
        "../escape", "a/../../escape", "/etc/cron.d/x", "", ".", "..", "a//b", "a/", ".mirror.json", "a/.hidden",
        "a\0b", "a\nb", "\x1b[31mred", "a\\b", "x" * 300, "/".join("abcdefghijklm"), "\u202etxt.exe", "a/./b",
        "samples/" + "\u6f22" * 82 + ".png", "\udcff" * 90, "config.yaml/../x",
    ],
)  # fmt: skip
def test_a_name_that_could_do_harm_is_refused_and_named(tmp_path: Path, name: str) -> None:
    mirror = Mirror(tmp_path / "run")
    (tmp_path / "run").mkdir()
    mirror.take(CHANGES.validate_python(answer(**{name: piece(), "fine": piece(b"ok")})))
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file() and path.name != NOTES] == [
        Path("run/fine")
    ]
    (told,) = mirror.refused
    assert told.isprintable()


def test_a_link_that_stands_here_is_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "log").symlink_to(tmp_path / "secret")
    (run / NOTES).write_text('{"log": [1, 4, 0, 0]}')
    mirror = Mirror(run)
    assert mirror.known()["log"][1] == 0
    mirror.take(CHANGES.validate_python(answer(log=piece(b"evil", offset=4, size=8))))
    assert "log" in mirror.refused
    mirror.take(CHANGES.validate_python(answer(log=piece(b"evil"))))
    assert (tmp_path / "secret").read_bytes() == b"mine"
    assert (run / "log").read_bytes() == b"evil"


def test_a_host_cannot_fill_the_disk(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "run", most_bytes=100)
    mirror.take(CHANGES.validate_python(answer(a=piece(b"x" * 60), b=piece(b"y" * 60), c=piece(b"z" * 40))))
    assert {name: len(data) for name, data in files(tmp_path / "run").items()} == {"a": 60, "c": 40}
    assert "more than 100 bytes" in mirror.refused["b"]


def test_a_host_cannot_make_files_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "MOST_FILES", 5)
    monkeypatch.setattr(mirrors, "MORE_ATTEMPT_FILES", 2)
    source, mirror = tmp_path / "there", Mirror(tmp_path / "here")
    for number in range(8):
        act(source, "append", f"image-{number}.png", b"x")
    look(source, mirror)
    for number in range(4):
        act(source, "append", f"attempt-2/{number}.json", b"{}")
    for _ in range(2):
        assert look(source, mirror)
    assert set(files(tmp_path / "here")) == {f"image-{n}.png" for n in range(5)} | {
        "attempt-2/0.json",
        "attempt-2/1.json",
    }
    assert mirror.refused == {"(more files)": "the run has more than 5 files"}
    assert changes(str(source), mirror.known(), (), 10**6)["files"] == {}, "what is not taken does not come again"
    for number in range(40):
        mirror.take(CHANGES.validate_python(answer(**{f"other-{number}": piece(), f"../{number}": piece()})))
    assert len(files(tmp_path / "here")) == 7
    assert len(mirror.known()) <= 7 + 5
    assert max(len(mirror.refused), len(mirror.unwanted)) <= 5


def test_what_would_fill_our_disk_is_named_and_comes_once_there_is_room(tmp_path: Path) -> None:
    source, mirror = tmp_path / "there", Mirror(tmp_path / "here")
    act(source, "append", "metrics.jsonl", b"{}\n")
    act(source, "append", "empty", b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("provisioning.incoming.KEPT_FREE_BYTES", 2**62)
        look(source, mirror)
        assert files(mirror.folder) == {"empty": b""}
        assert list(mirror.refused) == ["metrics.jsonl"]
        assert "MiB are free" in mirror.short
    look(source, mirror)
    assert files(mirror.folder) == {"empty": b"", "metrics.jsonl": b"{}\n"}
    assert (mirror.refused, mirror.short) == ({}, "")


def test_a_file_that_our_disk_cannot_hold_is_refused_and_the_rest_taken(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "run")
    with files_of_at_most(1000):
        mirror.take(CHANGES.validate_python(answer(a=piece(b"x" * 2000), b=piece(b"y"))))
    assert files(tmp_path / "run") == {"b": b"y"}
    assert mirror.refused == {"a": "this machine cannot keep it: File too large"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_full_disk_is_nothing_that_a_file_is_refused_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    mirror = Mirror(tmp_path / "run")
    monkeypatch.setattr(mirrors, "_write", full)
    with pytest.raises(OSError, match=os.strerror(number)):
        mirror.take(CHANGES.validate_python(answer(a=piece())))
    assert mirror.refused == {}


@pytest.mark.parametrize(("offset", "size"), [(5, 6), (2**40, 2**40 + 1), (0, 0)])
def test_bytes_that_do_not_follow_are_refused(tmp_path: Path, offset: int, size: int) -> None:
    mirror = Mirror(tmp_path / "run")
    mirror.take(CHANGES.validate_python(answer(log=piece(offset=offset, size=size))))
    assert "log" in mirror.refused
    assert not (tmp_path / "run" / "log").exists()


def test_a_file_that_becomes_a_folder_is_refused_and_the_rest_taken(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "run")
    mirror.take(CHANGES.validate_python(answer(a=piece(), **{"a/b": piece(), "c": piece()})))
    assert set(files(tmp_path / "run")) == {"a", "c"}
    mirror.take(CHANGES.validate_python(answer(**{"d/e": piece(), "d": piece()})))
    assert set(files(tmp_path / "run")) == {"a", "c", "d/e"}, "nothing that was begun is left"
    assert mirror.refused == dict.fromkeys(["a/b", "d"], "it is a file and a folder at once")


@pytest.mark.parametrize(
    "told",
    [
        None, [], {}, {"files": []}, {"files": {}, "odd": [1]}, answer(a=[1, 2, 3]), answer(a=[-1, 1, 0, 0, ""]),
        answer(a=["x", 1, 0, 0, ""]), answer(a=[1, 1, 0, 0, "", 0]),
        answer(a=[2**64, 1, 0, 0, ""]),
    ],
)  # fmt: skip
def test_an_answer_of_another_shape_is_no_answer(told: Any) -> None:
    with pytest.raises(ValidationError):
        CHANGES.validate_python(told)
