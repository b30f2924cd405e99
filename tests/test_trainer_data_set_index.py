"""index.json of a set: what is written is read as it was, and whatever no packer writes is refused by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.artefacts import FILES, MAKERS, PARTS_MEMBER, STREAM_MEMBERS, array_members
from trainer.data.buckets import BUCKETS
from trainer.data.set_index import (
    INDEX,
    UNFINISHED_INDEX,
    IndexedBucket,
    SetIndex,
    Shard,
    find_index,
    index_of,
    parse_index,
    read_index,
    shard_from_json,
)
from trainer.errors import DataError

SIDE = 256
COUNTS = st.integers(1, 2**40)
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)


@st.composite
def bucket_lists(draw: st.DrawFn) -> list[IndexedBucket]:
    found = []
    for bucket in draw(st.lists(st.sampled_from(BUCKETS), min_size=1, unique=True)):
        height, width = bucket.scaled(SIDE) or (0, 0)
        numbers = draw(st.lists(st.integers(0, 999_999), min_size=1, max_size=3, unique=True))
        paths = [f"bucket_{width}x{height}/shard-{number:06d}.tar" for number in numbers]
        shards = tuple(Shard(path, draw(COUNTS), draw(COUNTS), draw(DIGESTS)) for path in paths)
        found.append(IndexedBucket(bucket, height, width, shards))
    return found


def small(**changes: Any) -> SetIndex:
    """Two buckets with three shards of two samples."""
    buckets = []
    for bucket, count in zip(BUCKETS, (2, 1), strict=False):
        height, width = bucket.scaled(SIDE) or (0, 0)
        paths = [f"bucket_{width}x{height}/shard-{number:06d}.tar" for number in range(count)]
        buckets.append(IndexedBucket(bucket, height, width, tuple(Shard(path, 2, 9, "a" * 64) for path in paths)))
    values: dict[str, Any] = {"side": SIDE, "seed": 0, "recipes": {"t5": {"model": "x"}}, "labels": ["random"]}
    splits = {"held_out": ["a"], "probe": ["b"]}
    return index_of(**{**values, "buckets": buckets, **splits, **changes})


def changed(change: Any) -> bytes:
    content = json.loads(small().content)
    change(content)
    return json.dumps(content).encode()


def rename(content: dict[str, Any], name: Any) -> None:
    content["buckets"]["1024x1024"]["shards"][0]["name"] = name


# ---- what is written -------------------------------------------------------------------------------------------------


@given(buckets=bucket_lists(), seed=st.integers(), labels=st.lists(st.text(st.characters(codec="utf-8"))))
def test_what_is_written_is_read_as_it_was(buckets: list[IndexedBucket], seed: int, labels: list[str]) -> None:
    index = small(buckets=buckets, seed=seed, labels=labels, held_out=[], probe=["b"])
    assert parse_index(index.content, "x") == index
    assert (index.buckets, index.seed, index.labels) == (tuple(buckets), seed, tuple(labels))
    assert (index.held_out, index.probe) == ((), ("b",))
    assert index.digest == hashlib.sha256(index.content).hexdigest()
    assert index.samples == sum(shard.samples for bucket in buckets for shard in bucket.shards)
    for bucket in buckets:
        assert tuple(shard_from_json(bucket.folder, shard.as_json()) for shard in bucket.shards) == bucket.shards


def test_what_no_reader_would_take_is_not_written() -> None:
    with pytest.raises(DataError, match=r"the new index\.json is no index of shards \(it has no buckets\)"):
        small(buckets=[])


def test_the_digest_is_that_of_the_bytes_that_are_there(tmp_path: Path) -> None:
    assert find_index(tmp_path) is None
    with pytest.raises(DataError, match=r"index\.json is not there"):
        read_index(tmp_path)
    content = json.dumps(json.loads(small().content)).encode()
    (tmp_path / INDEX).write_bytes(content)
    found = read_index(tmp_path)
    assert found.content == content
    assert found.digest == hashlib.sha256(content).hexdigest() != small().digest
    assert found.shards == small().shards
    (tmp_path / INDEX).unlink()
    (tmp_path / INDEX).mkdir()
    with pytest.raises(DataError, match=r"index\.json cannot be read: Is a directory"):
        find_index(tmp_path)


def test_a_set_that_is_being_packed_is_told_from_a_broken_one() -> None:
    with pytest.raises(DataError, match="is being packed, or that was interrupted: wait for it, or pack the set again"):
        parse_index(UNFINISHED_INDEX, "x")


def test_every_difference_is_named() -> None:
    index = small()
    sizes = {shard.path: shard.size_bytes for shard in index.shards}
    assert index.size_bytes == sum(sizes.values())
    assert not index.differences(sizes)
    first, second, third = sizes
    assert index.differences({second: 8, third: 9, "x": 1}) == [
        f"{first} is missing",
        f"{second} has 8 bytes where the index says 9",
        "x is not in the index",
    ]


# ---- what comes from strangers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../shard-000000.tar", "/etc/passwd", "shard-0.tar", "shard-00000\u0661.tar", "a/shard-000000.tar", None, 7],
)
def test_a_name_that_no_packer_gives_never_becomes_a_path(name: Any) -> None:
    with pytest.raises(DataError, match=r"is no shard-NNNNNN\.tar"):
        parse_index(changed(lambda content: rename(content, name)), "x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("format"), "it has no format"),
        (lambda c: c.update(format=2), "format 2; this version reads 1"),
        (lambda c: c.pop("buckets"), "'buckets' is missing"),
        (lambda c: c.update(buckets={}), "no buckets"),
        (lambda c: c.update(side=512), "not stored at side 512"),
        (lambda c: c.update(seed="0"), "seed is '0', not a whole number"),
        (lambda c: c.update(recipes=[]), "recipes is no mapping"),
        (lambda c: c["recipes"].update(t5="x"), "t5 is no mapping"),
        (lambda c: c["recipes"]["t5"].update(model=float("nan")), "NaN is no JSON"),
        (lambda c: c.update(labels="random"), "labels is no list of texts"),
        (lambda c: c.pop("splits"), "'splits' is missing"),
        (lambda c: c["splits"].update(probe=[1]), "probe is no list of texts"),
        (lambda c: c["splits"].update(probe=["a"]), "an id is in its splits twice"),
        (lambda c: c["splits"].update(probe=list("bcdefgh")), "more ids than its 6 samples"),
        (lambda c: c["buckets"]["1024x1024"].update(folder="bucket_256x256/.."), "no folder of bucket"),
        (lambda c: c["buckets"]["1024x1024"].update(folder="bucket_304x208"), "no folder of bucket"),
        (lambda c: c["buckets"]["1024x1024"].update(folder="bucket_25\u0666x256"), "no folder of bucket"),
        (lambda c: c["buckets"]["1024x1024"].update(samples=99), "has 99 samples, its shards have 4"),
        (lambda c: c["buckets"]["1024x1024"]["shards"][0].update(bytes=-1), "bytes is -1"),
        (lambda c: c["buckets"]["1024x1024"]["shards"][0].update(bytes=True), "bytes is True"),
        (lambda c: c["buckets"]["1024x1024"]["shards"][0].update(sha256="0" * 63), "no SHA-256"),
        (lambda c: rename(c, "shard-000001.tar"), "one of them twice"),
    ],
)
def test_an_index_that_is_not_in_order_is_refused(change: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse_index(changed(change), "x")


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_whatever_is_no_index_is_a_data_error(content: bytes) -> None:
    with pytest.raises(DataError):
        parse_index(content, "x")


# ---- the files of an artefact ----------------------------------------------------------------------------------------


def test_every_member_that_training_wants_has_a_maker() -> None:
    wanted = {PARTS_MEMBER, *(name for names in STREAM_MEMBERS.values() for name in names)}
    assert wanted <= MAKERS.keys()
    assert wanted | {"image.npy"} == {*array_members(FILES)}


def test_an_artefact_that_this_version_does_not_know_has_no_members() -> None:
    assert array_members(["pose", "depth", "caption"]) == ("pose.npy",)
