"""References to data: which are taken, where they stand, what is refused, and how a run names them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.spec.command import expand
from runner.staging import data

TAKEN = [
    ("/data/faces", "path", "faces"),
    ("/data/faces/", "path", "faces"),
    ("rsync://host/module/faces", "rsync", "faces"),
    ("rsync://me@host:8730/module", "rsync", "module"),
    ("me@host.example.org:/data/faces.tar", "rsync", "faces.tar"),
    ("host:/data/faces/", "rsync", "faces"),
    ("https://host/a/faces.tar?version=2", "http", "faces.tar"),
    (f"http://host:80/faces%20x.tar#sha256={'0a' * 32}", "http", "faces_x.tar"),
    ("https://host/...", "http", "data"),
    ("s3://bucket/some/key.bin", "s3", "key.bin"),
    ("s3://bucket/prefix/", "s3", "prefix"),
    ("hf://datasets/org/name", "hf", "name"),
    ("hf://datasets/org/name@v1.0", "hf", "name"),
    ("hf://datasets/org/name@main/data/train.parquet", "hf", "train.parquet"),
]

REFUSED = [
    ("", "neither"),
    ("faces", "relative"),
    ("./faces", "relative"),
    ("~/faces", "relative"),
    ("/", "plain"),
    ("/data/../etc", "plain"),
    ("/data//x", "plain"),
    ("/data/x ", "blank"),
    ("/data/x\n", "printed"),
    ("/data/\x1b[31mx", "printed"),
    ("C:\\data", "neither"),
    ("-e:/x", "neither"),
    ("host:relative", "neither"),
    ("host:/data/*.png", "remote shell"),
    ("host:/data/$(reboot)", "remote shell"),
    ("me:hunter2@host:/data", "password"),
    ("https://me:hunter2@host/x", "password"),
    ("https://hunter2@host/x", "user or password"),
    ("rsync://me:hunter2@host/m", "password"),
    ("s3://AKIA:hunter2@bucket/x", "password"),
    ("https://host/x?X-Amz-Signature=hunter2", "signed"),
    ("https://host/x?access_token=hunter2", "signed"),
    ("https://host/x?AWSAccessKeyId=hunter2", "signed"),
    ("https://host/x?sig=hunter2", "signed"),
    ("https://host/x#md5=1", "#"),
    ("https://host/x#sha256=12", "#"),
    ("https://host/folder/", "folder"),
    ("https://host", "folder"),
    ("https:///x", "host"),
    ("https://host:port/x", "cannot be read"),
    ("https://host/a/../b", ".."),
    ("https://host/a/%2e%2e/b", ".."),
    ("s3://bucket", "whole"),
    ("rsync://host/", "module"),
    ("ftp://host/x", "nothing here fetches"),
    ("file:///etc/passwd", "nothing here fetches"),
    ("hf://org/name", "dataset"),
    ("hf://datasets/name", "dataset"),
    ("hf://datasets/org/name@", "dataset"),
    ("hf://datasets/org/name/../x", "dataset"),
    ("/" + "x" * 2000, "characters"),
]


@pytest.mark.parametrize(("text", "kind", "name"), TAKEN)
def test_what_is_taken(text: str, kind: str, name: str) -> None:
    found = data.parse(text)
    assert (found.text, found.kind, found.name) == (text, kind, name)
    place = found.place("/home/u/staging")
    assert place == (text if kind == "path" else f"/home/u/staging/data/{found.key[:32]}/{name}")


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_what_is_refused_and_that_nothing_secret_is_said(text: str, said: str) -> None:
    with pytest.raises(data.BadReference, match=said.replace(".", r"\.")) as caught:
        data.parse(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("query", ["tokenizer=x", "monkey=1", "keyword=a", "design=2", "author=me", "download=true"])
def test_words_that_only_look_like_keys_are_taken(query: str) -> None:
    assert data.parse(f"https://host/x?{query}").kind == "http"


@given(st.text())
def test_a_place_never_leaves_its_folder(text: str) -> None:
    try:
        found = data.parse(text)
    except data.BadReference:
        return
    if found.kind != "path":
        below = found.place("/staging").removeprefix(f"/staging/data/{found.key[:32]}/")
        assert "/" not in below
        assert below.strip(".")
        assert not below.startswith("-")


def test_names_become_variables_of_their_own() -> None:
    assert data.variable("old-faces.v2") == "RUNNER_DATA_OLD_FACES_V2"
    assert data.name_problem("faces", ["old"]) == ""
    assert "old-faces" in data.name_problem("old.faces", ["old-faces"])
    for name in ("", "9", "a b", "a/b", "x" * 65, "ä", "a\n"):
        assert data.name_problem(name)
    placed = data.places({"faces": "/data/faces"}, "/staging")
    assert data.variables(placed) == {"RUNNER_DATA_FACES": "/data/faces"}


def test_a_command_gets_its_places_and_keeps_the_rest() -> None:
    command = ("python3", "{arm_dir}/x.py", "--in={data:faces}/a", "{{data:faces}}", "{seed}{data:b}", "{steps}")
    found = data.with_places(command, {"faces": "/d/{odd}", "b": "/b"})
    argv = expand(found, seed=3, run_dir="/r", arm_dir="/a", python="py", steps=7)
    assert argv == ["py", "/a/x.py", "--in=/d/{odd}/a", "{data:faces}", "3/b", "7"]
    assert data.names_in_argument("{data:faces}{{data:x}}{seed}") == ("faces",)


def test_the_trainers_place_stands_in_front_of_its_path() -> None:
    block = {"steps": 1, "data": {"source": "folder", "path": "{data:faces}/train"}}
    for fine in (block, {"steps": 1}, {"data": None}, {"data": {"path": None}}, {"data": {"path": "/x"}}):
        assert data.misplaced(fine) is None
    assert data.misplaced({"data": {"path": "{data:a}/{data:b}"}}) == "data.path"
    assert data.misplaced({"x": [{"y": "{data:a}"}]}) == "x[0].y"
