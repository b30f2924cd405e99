"""Shards as a source of images: what is read, what is refused, and that WebDataset itself reads the same."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.shards import SIDE, WIDTH, as_pixels, npy, sample, square_set, write_set, write_shards, write_tar
from trainer.check import check
from trainer.data import open_source
from trainer.data.batches import Batches, open_batches
from trainer.data.buckets import BUCKETS, bucket_of, parse_folder
from trainer.data.npy import parse_npy
from trainer.data.shapes import stream_shapes
from trainer.data.shards import ShardSource
from trainer.data.tar_index import index_tar
from trainer.document import parse_config
from trainer.errors import ConfigError, DataError

MODEL = {"width": 16, "depth": 2, "heads": 2, "patch": 4}


def block(path: Path | str, size: int = 64, **changes: Any) -> dict[str, Any]:
    data = {"source": "shards", "path": str(path), "size": size, **changes.pop("data", {})}
    return {"steps": 4, "batch": 4, "model": MODEL, "data": data, **changes}


def opened(path: Path, size: int = 32, **changes: Any) -> ShardSource:
    source = open_source(parse_config(block(path, size, **changes)))
    assert isinstance(source, ShardSource)
    return source


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("shards"))


def square(count: int = 12, **changes: Any) -> list[dict[str, Any]]:
    return [sample(f"s{number:02d}", 32, 32, **changes) for number in range(count)]


def all_ids(source: ShardSource) -> set[str]:
    return {*source.train_ids, *source.held_out_ids, *source.probe_ids}


# ---- buckets ---------------------------------------------------------------------------------------------------------


def test_the_seven_buckets_and_their_scales() -> None:
    assert [bucket.name for bucket in BUCKETS] == [
        "1024x1024", "1216x832", "832x1216", "1280x768", "768x1280", "1344x704", "704x1344"
    ]  # fmt: skip
    assert BUCKETS[1].scaled(512) == (416, 608)
    assert BUCKETS[1].scaled(100) is None
    assert parse_folder("bucket_1216x832") == (1216, 832)
    for wrong in ("bucket_", "bucket_12", "bucket_ax3", "bucket_0x4", "bucket_4x4 ", "shard_4x4", "bucket_-4x4"):
        assert parse_folder(wrong) is None


@given(st.sampled_from(BUCKETS), st.integers(1, 64))
def test_a_scaled_bucket_is_recognised(bucket: Any, sixteenths: int) -> None:
    height, width = bucket.scaled(16 * sixteenths)
    assert bucket_of(width, height) == (bucket, 16 * sixteenths)
    assert bucket_of(width + 1, height) is None or width == height


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # WebDataset's, not ours
def test_webdatasets_own_reader_and_ours_agree_on_every_sample(whole: Path) -> None:
    source = opened(whole, SIDE)
    seen = set()
    for tar in sorted(whole.glob("*/shard-*.tar")):
        for theirs in webdataset.WebDataset(str(tar), shardshuffle=False).decode():
            ours = source.load(theirs["__key__"])
            seen.add(ours.id)
            pixels = theirs["image.npy"]
            expected = pixels if pixels.dtype == np.uint8 else np.rint(pixels.astype(np.float32) * 255).astype(np.uint8)
            assert np.array_equal(ours.pixels_HWC, expected.transpose(1, 2, 0))
            assert ours.caption == theirs["json"]["caption"]
            assert np.array_equal(ours.cls_D, theirs["dinov3.npy"])
            assert np.array_equal(ours.patches_PD, theirs["dinov3_patches.npy"])
            assert np.array_equal(ours.text_TD, theirs["t5h.npy"][: theirs["t5m.npy"].sum()])
            assert ours.patch_grid == (pixels.shape[1] // 16, pixels.shape[2] // 16)
    assert len(seen) == sum(4 + index for index in range(7))
    assert seen == all_ids(source), "every image is on one side"
    assert len({source.load(id).pixels_HWC.shape for id in source.held_out_ids}) > 1, "of every bucket"


def test_a_set_says_what_it_is_made_of(whole: Path) -> None:
    source = opened(whole, 64)
    assert [bucket.name for bucket in source.train_buckets] == [bucket.name for bucket in BUCKETS]
    assert source.train_ids == tuple(id for bucket in source.train_buckets for id in bucket.ids)
    shapes = stream_shapes(parse_config(block(whole)))
    assert source.streams == shapes
    assert (shapes.text_width, shapes.text_length, shapes.cls_width, shapes.patch_width) == (WIDTH, 77, WIDTH, WIDTH)
    [told] = [note for note in source.notes if note.startswith("validated images by bucket: 1024x1024 (")]
    numbers = [int(number) for number in re.findall(r"\((\d+)\)", told)]
    assert (len(numbers), sum(numbers)) == (7, min(len(source.held_out_ids), 48))
    assert source.rejected == ()
    sizes = {source.load(bucket.ids[0]).pixels_HWC.shape[:2] for bucket in source.train_buckets}
    assert sizes == {bucket.scaled(64) for bucket in BUCKETS}


def test_streams_that_are_off_are_not_read(tmp_path: Path) -> None:
    square_set(tmp_path, [sample(f"s{n}", 32, 32, **{"dinov3_patches.npy": None, "pose.npy": None}) for n in range(8)])
    with pytest.raises(ConfigError, match=r"streams.patches.*hold no dinov3_patches.npy.*off"):
        opened(tmp_path)
    source = opened(tmp_path, streams={"patches": "off", "pose": "off"})
    loaded = source.load(source.train_ids[0])
    assert loaded.patches_PD is None
    assert loaded.pose_J3 is None
    assert loaded.patch_grid == (0, 0)
    assert source.streams.patch_width == source.streams.pose_joints == 0


def test_pixels_are_halved_by_averaging_blocks(tmp_path: Path) -> None:
    contents = [as_pixels(content) for content in square(8)]
    square_set(tmp_path, contents)
    loaded = opened(tmp_path, 16).load("s00").pixels_HWC
    blocks = contents[0]["image.npy"].reshape(3, 16, 2, 16, 2).astype(np.float64).mean(axis=(2, 4)).transpose(1, 2, 0)
    assert np.abs(loaded - blocks).max() <= 0.5
    assert opened(tmp_path, 24).load("s00").pixels_HWC.shape == (24, 24, 3)
    assert np.array_equal(opened(tmp_path, 24).load("s00").pixels_HWC, opened(tmp_path, 24).load("s00").pixels_HWC)


def test_floats_and_pixels_are_told_apart_by_their_type(tmp_path: Path) -> None:
    dark = np.ones((3, 32, 32), dtype=np.uint8)  # as numbers in [0, 1], this would be white
    bright = np.ones((3, 32, 32), dtype=np.float32)
    rest = square(8)
    square_set(
        tmp_path, [sample("a", 32, 32, **{"image.npy": dark}), sample("b", 32, 32, **{"image.npy": bright}), *rest]
    )
    source = opened(tmp_path)
    assert (source.load("a").pixels_HWC == 1).all()
    assert (source.load("b").pixels_HWC == 255).all()


def test_joints_keep_their_place_in_the_frame_and_lose_what_is_not_there(tmp_path: Path) -> None:
    pose = np.zeros((133, 3), dtype=np.float16)
    pose[0] = 0.5, -0.25, 0.75
    pose[1] = 0.5, 1.5, 0.75  # out of the frame
    pose[2] = 0.5, 0.5, 3.0  # scores are not bounded
    pose[3] = -1.0, -1.0, -0.1  # not found
    square_set(tmp_path, [*square(8), sample("p", 32, 32, **{"pose.npy": pose})])
    joints = opened(tmp_path).load("p").pose_J3
    assert joints[:4].tolist() == [[0.5, -0.25, 0.75], [0, 0, 0], [0.5, 0.5, 1.0], [0, 0, 0]]
    assert joints.dtype == np.float16


@pytest.mark.parametrize("length", [77, 512])
def test_text_is_as_long_as_its_mask_says(tmp_path: Path, length: int) -> None:
    hidden = np.arange(length * WIDTH, dtype=np.float16).reshape(length, WIDTH) / 8192
    mask = (np.arange(length) < 5).astype(np.int32)
    square_set(tmp_path, [sample(f"s{n}", 32, 32, **{"t5h.npy": hidden, "t5m.npy": mask}) for n in range(6)])
    source = opened(tmp_path)
    assert np.array_equal(source.load("s0").text_TD, hidden[:5])
    assert source.streams.text_length == length


def test_part_maps_are_read_if_a_loss_asks_for_them(tmp_path: Path) -> None:
    classes = np.arange(28, dtype=np.uint8).repeat(37)[:1024].reshape(32, 32)
    parts = {"seg.npy": classes}
    asked = {"segmentation": {"enabled": True}}
    square_set(tmp_path / "with", [*square(8, **parts), sample("odd", 32, 32, **{"seg.npy": classes + 200})])
    source = opened(tmp_path / "with", 16, **asked)
    assert np.array_equal(source.load("s00").parts_HW, classes[1::2, 1::2])
    assert np.array_equal(source.mirrored("s00").parts_HW, source.load("s00").parts_HW[:, ::-1])
    with pytest.raises(DataError, match=r"seg.npy has the class 227; allowed: 0 to 27"):
        source.load("odd")
    assert opened(tmp_path / "with").load("s00").parts_HW is None
    with pytest.raises(DataError, match=r"has seg.npy; pack it again, or train with segmentation.enabled: false"):
        opened(square_set(tmp_path / "without", square(8)), **asked)


# ---- one broken sample -----------------------------------------------------------------------------------------------

BROKEN = {
    "a member is not there": ({"dinov3.npy": None}, "no dinov3.npy"),
    "not a number": ({"dinov3.npy": np.full(WIDTH, np.nan, np.float16)}, "dinov3.npy has 8 values"),
    "infinite": ({"dinov3_patches.npy": np.full((4, WIDTH), np.inf, np.float16)}, "such as inf"),
    "too large for half precision": ({"t5h.npy": np.full((77, WIDTH), 1e6, np.float32)}, r"such as 1e\+06"),
    "another width": ({"dinov3.npy": np.zeros(WIDTH + 1, np.float16)}, r"needed: floats \(8\)"),
    "another number of patches": ({"dinov3_patches.npy": np.zeros((5, WIDTH), np.float16)}, "has 5 patches; 2 x 2"),
    "whole numbers": ({"dinov3.npy": np.zeros(WIDTH, np.int64)}, "dinov3.npy is int64"),
    "another image size": ({"image.npy": np.zeros((3, 32, 16), np.uint8)}, r"\(3, 32, 16\); needed: \(3, 32, 32\)"),
    "channels last": ({"image.npy": np.zeros((32, 32, 3), np.uint8)}, r"\(32, 32, 3\)"),
    "pixels in [-1, 1]": ({"image.npy": np.full((3, 32, 32), -1, np.float16)}, r"from -1 to -1; needed: \[0, 1\]"),
    "pixels to 255 as floats": ({"image.npy": np.full((3, 32, 32), 255, np.float32)}, "from 255 to 255"),
    "pixels that are NaN": ({"image.npy": np.full((3, 32, 32), np.nan, np.float16)}, "from nan to nan"),
    "pixels as int16": ({"image.npy": np.zeros((3, 32, 32), np.int16)}, "image.npy is int16"),
    "too much text": (
        {"t5h.npy": np.zeros((513, WIDTH), np.float16), "t5m.npy": np.ones(513, np.uint8)},
        "513 tokens; allowed: up to 512",
    ),
    "another mask": ({"t5m.npy": np.ones(76, np.uint8)}, r"t5m.npy is uint8 \(76,\)"),
    "a mask with a gap": ({"t5m.npy": np.array([1, 0] * 38 + [1], np.uint8)}, "none behind a gap"),
    "an empty mask": ({"t5m.npy": np.zeros(77, np.uint8)}, "marks 0 tokens"),
    "a joint in pixels": ({"pose.npy": np.full((133, 3), 500, np.float16)}, "a joint at 500: pixels"),
    "a joint that is NaN": ({"pose.npy": np.full((133, 3), np.nan, np.float16)}, "pose.npy has values that are not"),
    "other joints": ({"pose.npy": np.zeros((17, 3), np.float16)}, r"pose.npy is float16 \(17, 3\)"),
    "no caption": ({"json": {"text": "a portrait"}}, "json has no text under caption"),
    "a caption of another kind": ({"json": {"caption": 3}}, "json has no text under caption"),
    "a list": ({"json": [1]}, "json has no text under caption"),
    "no json": ({"json": None, "json.txt": "{"}, "no json"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_sample_is_replaced_counted_and_named(tmp_path: Path, case: str) -> None:
    changes, reason = BROKEN[case]
    contents = square(24)
    probe = opened(square_set(tmp_path / "good", contents))
    victim = probe.train_ids[7]  # neither held out nor among the first of its shard, so it is found when it is read
    spoilt = [sample(victim, 32, 32, **changes) if one["__key__"] == victim else one for one in contents]
    config = parse_config(block(square_set(tmp_path / "bad", spoilt), 32, data={"max_rejected_share": 0.1}))
    source = open_source(config)
    batches = open_batches(config, source, 3)
    ids = [id for step in range(8) for id in batches.batch(step, range(4)).ids]
    assert victim not in ids
    listed = [*source.rejected, *batches.rejected]
    assert [name for name, _ in listed] == [f"bucket_32x32/shard-000000.tar: {victim}"]
    assert re.search(reason, listed[0][1]), listed
    if source.rejected:
        return  # known from the index: it is in no order at all
    expected = [id for step in range(8) for id in batches.ids(step, range(4))]
    assert [id for id in expected if id != victim] == [
        got for got, wanted in zip(ids, expected, strict=True) if wanted != victim
    ]
    sequence = [batches.ids(0, [number])[0] for number in range(64)]
    place = expected.index(victim)
    assert ids[place] == sequence[place + 1], "the next of the same order"
    assert batches.metrics() == {"sys/data_rejected": 1.0}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: data[:-1], "63 bytes|15 bytes of numbers where its header promises 16"),
        (lambda data: data + b"\0", "17 bytes of numbers"),
        (lambda data: b"", "is no .npy file"),
        (lambda data: b"\x93NUMPX" + data[6:], "is no .npy file"),
        (lambda data: data.replace(b"<f2", b"|O8"), "Python objects"),
        (lambda data: data.replace(b"<f2", b"<q9"), "unknown type"),
        (lambda data: data.replace(b"(8,)", b"(-8)"), "plain numbers"),
        (lambda data: data.replace(b"{", b"["), "no literal"),
    ],
)
def test_a_broken_array_is_called_broken(spoil: Any, reason: str) -> None:
    data = npy(np.arange(8, dtype=np.float16))
    assert parse_npy(data).tolist() == list(range(8))
    with pytest.raises(ValueError, match=reason):
        parse_npy(spoil(data))


def test_arrays_in_fortran_order_are_read_right() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert np.array_equal(parse_npy(npy(np.asfortranarray(array))), array)


def test_too_many_broken_samples_end_the_run(tmp_path: Path) -> None:
    contents = square(40)
    probe = opened(square_set(tmp_path / "good", contents))
    victims = set(probe.train_ids[5:9])
    nan = {"dinov3.npy": np.full(WIDTH, np.nan, np.float16)}
    spoilt = [sample(one["__key__"], 32, 32, **(nan if one["__key__"] in victims else {})) for one in contents]
    config = parse_config(block(square_set(tmp_path / "bad", spoilt), 32, data={"max_rejected_share": 0.05}))
    batches = open_batches(config, open_source(config), 0)
    with pytest.raises(DataError, match=r"3 of 40 samples cannot be used, more than data.max_rejected_share 0.05.*nan"):
        [batches.batch(step, range(4)) for step in range(20)]


def test_a_bucket_without_a_usable_sample_says_so(tmp_path: Path) -> None:
    config = parse_config(block(square_set(tmp_path, square(8)), 32))
    source = open_source(config)
    batches = Batches(source, 0, 4)
    for tar in tmp_path.glob("*/*.tar"):  # spoilt after it was opened
        data = tar.read_bytes()
        tar.write_bytes(data.replace(b"\x93NUMPY", b"\x93NUMPX"))
    with pytest.raises(DataError, match=r"no sample of bucket 1024x1024 can be used.*is no .npy file"):
        batches.batch(0, range(4))


def test_a_shard_that_vanishes_ends_the_run(tmp_path: Path) -> None:
    source = opened(square_set(tmp_path, square(8)))
    shutil.rmtree(tmp_path / "bucket_32x32")
    with pytest.raises(DataError, match=r"shard-000000.tar can no longer be read: No such file"):
        source.load(source.train_ids[0])


# ---- a set that is not in order --------------------------------------------------------------------------------------


def test_a_broken_held_out_image_is_passed_over(tmp_path: Path) -> None:
    contents = square(40)
    first = opened(square_set(tmp_path / "good", contents)).held_out_ids[0]
    spoilt = [
        sample(first, 32, 32, **{"t5m.npy": np.zeros(77, np.uint8)}) if c["__key__"] == first else c for c in contents
    ]
    source = opened(square_set(tmp_path / "bad", spoilt))
    assert first not in all_ids(source)
    assert [name.split()[-1] for name, _ in source.rejected] == [first]


@pytest.mark.parametrize("suffix", ["dinov3.npy", "pose.npy", "t5m.npy"])
def test_a_shard_without_a_modality_is_refused(tmp_path: Path, suffix: str) -> None:
    write_shards(
        tmp_path / "bucket_32x32", [*square(6), *(sample(f"t{n}", 32, 32, **{suffix: None}) for n in range(6))], 6
    )
    with pytest.raises(DataError, match=rf"missing a modality: no sample of .*shard-000001.tar has {suffix}.*off"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dinov3.npy": np.full(WIDTH, np.nan, np.float16)}, "such as nan"),
        ({"image.npy": np.full((3, 32, 32), -1, np.float16)}, "from -1 to -1"),
    ],
)
def test_a_shard_that_is_broken_from_its_start_is_refused(tmp_path: Path, changes: dict, reason: str) -> None:
    write_shards(tmp_path / "bucket_32x32", [*square(8), *(sample(f"t{n}", 32, 32, **changes) for n in range(8))], 8)
    with pytest.raises(DataError, match=f"first samples of .*shard-000001.tar cannot be used.*{reason}"):
        opened(tmp_path)


def test_a_broken_first_sample_is_not_a_broken_shard(tmp_path: Path) -> None:
    bad = sample("first", 32, 32, **{"dinov3.npy": np.full(WIDTH, np.nan, np.float16)})
    source = opened(square_set(tmp_path, [bad, *square(30)]))
    assert "first" not in all_ids(source)
    assert len(source.rejected) == 1


def test_an_id_counts_once(tmp_path: Path) -> None:
    write_shards(tmp_path / "bucket_32x32", [*square(30), *square(1)], 30)
    source = opened(tmp_path)
    assert source.rejected == (
        ("bucket_32x32/shard-000001.tar: s00", "the same id as in bucket_32x32/shard-000000.tar"),
    )
    members = [(f"s.{name}", b"") for name in ("json", "json")]
    write_tar(tmp_path / "bucket_32x32" / "shard-000002.tar", members)
    with pytest.raises(DataError, match="missing a modality"):
        opened(tmp_path)


def test_other_files_are_left_alone_and_counted(tmp_path: Path) -> None:
    square_set(tmp_path, square(30))
    (tmp_path / "README.md").write_text("a set")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "bucket_32x32" / "shard-a.tar").write_bytes(b"")
    [note] = [note for note in opened(tmp_path).notes if "left alone" in note]
    assert note.startswith("2 files or folders that are no shards")
    assert "README.md" in note
    assert "bucket_32x32/shard-a.tar" in note


def test_ids_become_file_names(tmp_path: Path) -> None:
    square_set(tmp_path, [*square(8), sample("in a folder/ä", 32, 32)])
    [id] = [id for id in opened(tmp_path)._places if not id.startswith("s")]
    assert id.startswith("in_a_folder_")
    assert "/" not in id


SHARD = "bucket_32x32/shard-000000.tar"
SPOILT_SETS = {
    "nothing there": (lambda root: None, "holds no folder bucket_"),
    "an empty bucket": (lambda root: (root / "bucket_32x32").mkdir(), "holds no shard-NNNNNN.tar"),
    "nonsense": (lambda root: (root / "bucket_wide").mkdir(), "bucket_wide is no bucket: allowed"),
    "an eighth shape": (lambda root: (root / "bucket_64x32").mkdir(), "bucket_64x32 is no bucket"),
    "uneven cells": (lambda root: (root / "bucket_24x24").mkdir(), "multiples of 16"),
    "two resolutions": (
        lambda root: (square_set(root, square(3)), square_set(root, [sample("t", 48, 48)], 48)),
        "mixes resolutions: bucket_.* put each resolution into a set of its own",
    ),
    "two encoders": (
        lambda root: [write_set(root, BUCKETS[n : n + 1], lambda _: 2, features=8 + n) for n in (0, 1)],
        "has 9 features, those of earlier buckets 8",
    ),
    "an empty file": (lambda root: write_tar(root / SHARD, []).write_bytes(b""), "empty file"),
    "no tar": (lambda root: write_tar(root / SHARD, []).write_text("hello" * 999), "uncompressed"),
    "no samples": (lambda root: write_tar(root / SHARD, []), "holds no samples"),
    "cut off in a member": (lambda root: cut(square_set(root, square(8)), 5000), r"is cut off \(s07.*copy it again"),
    "cut off in a header": (lambda root: cut(square_set(root, square(8)), -100), "cut off"),
    "one sample": (lambda root: square_set(root, square(1)), "holds 1 usable samples; at least 2"),
}  # fmt: skip


def cut(root: Path, off: int) -> None:
    """Cut a shard off: so many bytes before the end of its numbers, or behind the start of its last header if < 0."""
    [tar] = root.glob("*/*.tar")
    data = tar.read_bytes().rstrip(b"\0")
    last_header = data.rfind(b"s07.")
    tar.write_bytes(data[: -off or None] if off > 0 else data[: last_header - off])


@pytest.mark.parametrize("case", SPOILT_SETS)
def test_a_set_that_is_not_in_order_is_refused(tmp_path: Path, case: str) -> None:
    spoil, reason = SPOILT_SETS[case]
    spoil(tmp_path)
    with pytest.raises((DataError, ConfigError), match=reason):
        opened(tmp_path)


def test_a_tar_without_its_end_was_cut_off(tmp_path: Path) -> None:
    root = square_set(tmp_path, square(8))
    [tar] = root.glob("*/*.tar")
    data = tar.read_bytes()
    last = len(data.rstrip(b"\0"))
    tar.write_bytes(data[: -(-last // 512) * 512])
    with pytest.raises(DataError, match="there is no end mark"):
        opened(tmp_path)


def test_no_folder_is_refused_when_it_is_opened_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="absent is not a folder"):
        opened(tmp_path / "absent")
    with pytest.raises(DataError, match="RUNNER_DATA_FACES_7K is not set"):
        opened("{data:faces-7k}")  # type: ignore[arg-type]
    monkeypatch.setenv("RUNNER_DATA_FACES_7K", str(square_set(tmp_path / "there", square(8))))
    assert opened("{data:faces-7k}").train_ids  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs the path"):
        parse_config({"steps": 1, "data": {"source": "shards"}})


# ---- tar files -------------------------------------------------------------------------------------------------------

names = st.text(st.sampled_from("ab/.ä "), min_size=1, max_size=300).filter(lambda name: not re.search("//|/$", name))


@pytest.fixture(scope="module")
def one_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tar") / "shard-0.tar"


@given(
    st.lists(st.tuples(names, st.integers(0, 1500), st.booleans())),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_a_tar_is_read_as_pythons_own_reader_does(one_tar: Path, members: list, kind: int) -> None:
    with tarfile.open(one_tar, "w", format=kind) as tar:
        for name, size, is_folder in members:
            info = tarfile.TarInfo(name)
            info.mtime = 12.5  # a fraction needs an extra header
            info.type, info.size = (tarfile.DIRTYPE, 0) if is_folder else (tarfile.REGTYPE, size)
            tar.addfile(info, io.BytesIO(bytes(size)))
    with tarfile.open(one_tar) as tar:
        files = [member for member in tar if member.isfile()]
    expected = {}
    for member in files:
        if found := re.fullmatch(r"((?:.*/)?[^/.]+)\.([^/]*)", member.name):
            expected.setdefault(found[1], {}).setdefault(found[2], (member.offset_data, member.size))
    assert {key: dict(entry.members) for key, entry in index_tar(one_tar).items()} == expected
    whole = sum(len(entry.members) + len(entry.repeated) for entry in index_tar(one_tar).values())
    assert whole == sum(1 for member in files if re.fullmatch(r"(?:.*/)?[^/.]+\.[^/]*", member.name))


@given(st.integers(0, 10**6), st.integers(0, 255), st.booleans())
def test_a_damaged_tar_is_refused_or_read_and_nothing_else(one_tar: Path, place: int, value: int, is_cut: bool) -> None:
    info = tarfile.TarInfo("a" * 120 + ".json")
    info.mtime, info.size = 0.5, 700
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(info, io.BytesIO(bytes(700)))
    data = bytearray(file.getvalue()[:6144])
    place %= len(data)
    data[place] = value
    one_tar.write_bytes(data[:place] if is_cut else data)
    with contextlib.suppress(DataError):
        assert len(index_tar(one_tar)) <= 1


# ---- check -----------------------------------------------------------------------------------------------------------


def test_a_check_knows_the_widths_of_shards_that_are_here(whole: Path, tmp_path: Path) -> None:
    here, away = check(1, block(whole)), check(2, block(tmp_path / "absent"))
    assert here["ok"]
    assert away["ok"]
    assert here["parameters"] < away["parameters"]
    assert any("is not on this machine: sizes assume 1024" in note for note in away["notes"])
    assert not any("not on this machine" in note for note in here["notes"])
    assert here["config"]["data"]["workers"] == 2


@pytest.mark.parametrize(
    ("changes", "path", "reason"),
    [
        ({"size": 512}, "data.size", "512 is more than what the shards in .* hold images of 256"),
        ({"size": 40}, "data.size", "bucket 1216x832 scaled to 40 / 1024 is no whole number"),
        ({"size": 64, "patch": 8}, "model.patch", "patches of 8 do not divide bucket 1216x832, which is 76 x 52"),
    ],
)
def test_a_check_refuses_what_does_not_fit_a_bucket(whole: Path, changes: dict, path: str, reason: str) -> None:
    patch = changes.pop("patch", 4)
    answer = check(1, {**block(whole, **changes), "model": {**MODEL, "patch": patch}})
    assert not answer["ok"]
    assert any(error["path"] == path and re.search(reason, error["message"]) for error in answer["errors"])


def test_routing_must_leave_something_out_in_every_bucket(whole: Path) -> None:
    errors = check(1, block(whole, tread={"enabled": True, "ratio": 0.01, "keep_multiple": 128}))["errors"]
    reasons = " ".join(error["message"] for error in errors)
    assert "all 256 tokens of bucket 1024x1024 are kept" in reasons
    assert "all 247 tokens of bucket 832x1216 are kept" in reasons
