"""Packing: what a set of shards is follows from the artefacts and the seed, and training reads exactly that."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.prepared import RECIPES, SIDE, SMALL, Prepared, content, prepare
from trainer.check import check
from trainer.config import TrainerConfig
from trainer.data import open_source
from trainer.data.artefacts import FILES
from trainer.data.buckets import BUCKETS
from trainer.data.set_index import SetIndex, read_index
from trainer.data.shards import ShardSource
from trainer.data.split import split
from trainer.data.tar_index import index_tar
from trainer.document import parse_config
from trainer.errors import ConfigError, DataError
from trainer.prepare import pack as packing
from trainer.prepare.pack import pack
from trainer.prepare.passes import Failed
from trainer.prepare.recipe import Recipe
from trainer.prepare.recipes import note_recipes, read_recipes
from trainer.prepare.shard_plan import Packable, balanced, plan_shards
from trainer.prepare.table import PASSES

MODEL = {"width": 16, "depth": 2, "heads": 2, "patch": 4}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples a shard, and nothing waits for a disk."""
    monkeypatch.setattr(packing, "plan_shards", partial(plan_shards, most_samples=2))
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(tmp_path / "data")


def config_of(prepared: Prepared, **changes: Any) -> TrainerConfig:
    data = {"source": "shards", "path": str(prepared.data / "shards"), "size": SIDE}
    return parse_config({"steps": 4, "batch": 2, "model": MODEL, "data": data, **changes})


def opened(prepared: Prepared, **changes: Any) -> ShardSource:
    source = open_source(config_of(prepared, **changes))
    assert isinstance(source, ShardSource)
    return source


def shards(prepared: Prepared) -> dict[str, bytes]:
    """Every file below shards/, hidden ones too."""
    root = prepared.data / "shards"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def index_of(prepared: Prepared) -> SetIndex:
    return read_index(prepared.data / "shards")


def packed_ids(prepared: Prepared) -> list[str]:
    """Ids in the order in which they lie in the shards that the index lists."""
    root = prepared.data / "shards"
    return [id for shard in index_of(prepared).shards for id in index_tar(root / shard.path)]


# ---- what is packed --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # WebDataset's, not ours
def test_webdataset_reads_what_the_artefacts_are(prepared: Prepared) -> None:
    pack(prepared.data, prepared.manifest, seed=3)
    paths = [str(prepared.data / "shards" / shard.path) for shard in index_of(prepared).shards]
    found = {one["__key__"]: one for one in webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)}
    assert sorted(found) == sorted(prepared.ids)
    for entry in prepared.manifest.images:
        own = found[entry.id]
        said = json.loads(own["json"])
        assert said["caption"] == content(entry, "caption")["caption.txt"]
        assert (said["image_id"], said["source"], said["bucket"]) == (entry.id, entry.path, entry.bucket)
        assert (3, said["height"], said["width"]) == np.load(io.BytesIO(own["image.npy"])).shape
        members = {name for name in own if not name.startswith("__")}
        assert members == {"json", *(name for names in FILES.values() for name in names)} - {"caption.txt"}
        for name in members - {"json"}:
            assert own[name] == prepared.samples.read(entry.id, name)


def test_training_gets_the_very_pixels_and_features(prepared: Prepared) -> None:
    pack(prepared.data, prepared.manifest, seed=3)
    source = opened(prepared, segmentation={"enabled": True})
    assert not source.rejected
    for entry in prepared.manifest.images:
        sample = source.load(entry.id)
        expected = {name: one for artefact in FILES for name, one in content(entry, artefact).items()}
        assert sample.caption == expected["caption.txt"]
        np.testing.assert_array_equal(sample.pixels_HWC.transpose(2, 0, 1), expected["image.npy"])
        np.testing.assert_array_equal(sample.text_TD, expected["t5h.npy"])
        np.testing.assert_array_equal(sample.cls_D, expected["dinov3.npy"])
        np.testing.assert_array_equal(sample.patches_PD, expected["dinov3_patches.npy"])
        np.testing.assert_array_equal(sample.pose_J3, expected["pose.npy"])
        np.testing.assert_array_equal(sample.parts_HW, expected["seg.npy"])


def test_the_index_names_every_shard_and_the_split_of_training(prepared: Prepared) -> None:
    packed = pack(prepared.data, prepared.manifest, seed=3)
    index = index_of(prepared)
    assert index == packed.index
    assert (index.side, index.seed, index.samples) == (SIDE, 3, len(prepared.ids))
    assert [bucket.bucket for bucket in index.buckets] == list(SMALL)
    assert {name: Recipe(**recipe) for name, recipe in index.recipes.items()} == RECIPES
    for shard in index.shards:
        tar = (prepared.data / "shards" / shard.path).read_bytes()
        assert (len(tar), hashlib.sha256(tar).hexdigest()) == (shard.size_bytes, shard.sha256)
    source = opened(prepared)
    sides = split(packed_ids(prepared))
    assert (index.held_out, index.probe) == (sides.held_out, sides.probe)
    # Training validates on the bucket with the most held-out images, in their order; it trains on none of the others.
    assert [id for id in index.held_out if id in source.held_out_ids] == list(source.held_out_ids)
    assert [id for id in index.probe if id in source.probe_ids] == list(source.probe_ids)
    assert (
        source.train_ids
        == sides.train
        == tuple(id for id in packed_ids(prepared) if id not in {*index.held_out, *index.probe})
    )


def test_what_is_missing_stale_or_failed_is_left_out_and_counted(prepared: Prepared) -> None:
    first, second, third, fourth, *_ = prepared.ids
    prepared.samples.drop(first, "pose")
    prepared.samples.keep(second, "t5", Recipe(model="older"), {}, Failed(""))
    inputs = prepared.samples.digests(third, ("image",))
    assert inputs is not None
    prepared.samples.keep(third, "pose", RECIPES["pose"], inputs, Failed("nobody is in it"))
    prepared.make(fourth, "caption", caption__txt="other words")  # so its text features are those of old words
    packed = pack(prepared.data, prepared.manifest, seed=0)
    assert dict(packed.left_out) == {
        first: "pose missing", second: "t5 stale", third: "pose failed", fourth: "t5 stale"
    }  # fmt: skip
    assert sorted(packed_ids(prepared)) == sorted(prepared.ids[4:])
    assert "6 samples of 2 buckets" in packed.summary
    assert "4 images left out: t5 stale 2, pose missing 1, pose failed 1" in packed.summary


def test_a_set_without_some_artefact_has_no_member_of_it(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, artefacts=("image", "caption", "pose"))
    pack(tmp_path, prepared.manifest, seed=0)
    source = opened(prepared, streams={"text": "off", "cls": "off", "patches": "off"})
    assert source.load(prepared.ids[0]).pose_J3 is not None
    with pytest.raises(ConfigError, match=r"streams\.text: the shards in .* hold no t5h\.npy"):
        opened(prepared)


def test_nothing_to_pack_is_an_error_that_says_why(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, {BUCKETS[0]: 2})
    for id in prepared.ids:
        prepared.samples.drop(id, "image")
    with pytest.raises(DataError, match=r"nothing to pack .*2 images left out: image missing 2$"):
        pack(tmp_path, prepared.manifest, seed=0)
    assert not (tmp_path / "shards").exists()


def test_a_file_that_changed_is_never_packed(prepared: Prepared) -> None:
    path = prepared.samples.folder(prepared.ids[0]) / "pose.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(
        DataError, match=r"pose\.npy is not what its record says: run python -m trainer verify .* --fix"
    ):
        pack(prepared.data, prepared.manifest, seed=0)


def test_an_image_of_another_size_is_never_packed(prepared: Prepared) -> None:
    prepared.make(prepared.ids[0], "image", image__npy=np.zeros((3, 8, 8), np.uint8))
    for artefact in ("caption", "t5", "dinov3", "pose", "seg"):
        prepared.make(prepared.ids[0], artefact)
    with pytest.raises(DataError, match=r"image\.npy has the shape \(3, 8, 8\); bucket .* needs \(3, "):
        pack(prepared.data, prepared.manifest, seed=0)


def test_every_pass_has_its_files() -> None:
    assert {*PASSES, "image"} == FILES.keys()


def test_recipes_that_are_unknown_or_lack_the_image_are_refused(tmp_path: Path) -> None:
    note_recipes(tmp_path, {"image": RECIPES["image"], "smell": Recipe()})
    with pytest.raises(DataError, match="names the artefact 'smell'; this version knows image, caption"):
        read_recipes(tmp_path)
    (tmp_path / "recipes.json").unlink()
    note_recipes(tmp_path, {"pose": RECIPES["pose"]})
    with pytest.raises(DataError, match="has no recipe of images"):
        read_recipes(tmp_path)


# ---- order -----------------------------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_bytes_and_another_one_another_order(tmp_path: Path) -> None:
    sets = [prepare(tmp_path / name) for name in ("one", "two", "three")]
    for one, seed in zip(sets, (0, 0, 1), strict=True):
        pack(one.data, one.manifest, seed)
    assert shards(sets[0]) == shards(sets[1])
    assert sorted(packed_ids(sets[0])) == sorted(packed_ids(sets[2]))
    assert packed_ids(sets[0]) != packed_ids(sets[2])


@given(st.integers(1, 5000), st.integers(1, 1000))
def test_shards_are_as_few_and_as_equal_as_can_be(count: int, most: int) -> None:
    sizes = balanced(count, most)
    assert sum(sizes) == count
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert (len(sizes) - 1) * most < count


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(BUCKETS)), unique_by=lambda one: one[0]), st.integers()
)
def test_every_image_is_in_one_shard_of_its_bucket_whatever_their_order(drawn: list[Any], seed: int) -> None:
    images = [Packable(f"{number:016x}", f"{number}.jpg", bucket.name, ()) for number, bucket in drawn]
    plans = plan_shards(images, SIDE, seed, most_samples=3)
    assert plans == plan_shards(images[::-1], SIDE, seed, most_samples=3)
    assert sorted(image.id for plan in plans for image in plan.samples) == sorted(image.id for image in images)
    assert all(image.bucket == plan.bucket.name for plan in plans for image in plan.samples)
    assert len({plan.path for plan in plans}) == len(plans)
    assert [plan.bucket for plan in plans] == sorted((plan.bucket for plan in plans), key=BUCKETS.index)


# ---- again -----------------------------------------------------------------------------------------------------------


def times(prepared: Prepared) -> Mapping[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (prepared.data / "shards").rglob("*.*")}


def test_packing_again_writes_nothing(prepared: Prepared) -> None:
    assert pack(prepared.data, prepared.manifest, seed=0).written == 5
    before = times(prepared)
    again = pack(prepared.data, prepared.manifest, seed=0)
    assert (again.written, again.kept, again.removed) == (0, 5, 0)
    assert times(prepared) == before


def test_images_that_are_gone_leave_no_trace(prepared: Prepared, tmp_path: Path) -> None:
    pack(prepared.data, prepared.manifest, seed=0)
    tall = [entry.id for entry in prepared.manifest.images if entry.bucket == BUCKETS[2].name]
    fewer = prepared.without(*tall, *prepared.ids[:2])
    packed = pack(prepared.data, fewer, seed=0)
    assert packed.removed == 3
    assert "3 removed that no longer belong" in packed.summary
    fresh = prepare(tmp_path / "fresh")
    pack(fresh.data, fewer, seed=0)
    assert shards(prepared) == shards(fresh)
    assert [path.name for path in (prepared.data / "shards").glob("bucket_*")] == ["bucket_256x256"]
    assert not opened(prepared).rejected


def test_only_the_shard_of_a_changed_image_is_written_again(prepared: Prepared) -> None:
    pack(prepared.data, prepared.manifest, seed=0)
    prepared.make(prepared.ids[0], "pose", pose__npy=np.zeros((133, 3), np.float16))
    packed = pack(prepared.data, prepared.manifest, seed=0)
    assert (packed.written, packed.kept) == (1, 4)


@pytest.mark.parametrize("spoil", [lambda tar: tar.unlink(), lambda tar: tar.write_bytes(b"cut off")])
def test_a_shard_that_is_not_whole_is_written_again(prepared: Prepared, spoil: Any) -> None:
    pack(prepared.data, prepared.manifest, seed=0)
    whole = shards(prepared)
    spoil(prepared.data / "shards" / "bucket_256x256" / "shard-000001.tar")
    assert pack(prepared.data, prepared.manifest, seed=0).written == 1
    assert shards(prepared) == whole


def test_a_foreign_file_in_a_bucket_that_must_go_is_not_removed(prepared: Prepared) -> None:
    pack(prepared.data, prepared.manifest, seed=0)
    note = prepared.data / "shards" / "bucket_208x304" / "note.txt"
    note.write_text("mine")
    tall = [entry.id for entry in prepared.manifest.images if entry.bucket == BUCKETS[2].name]
    with pytest.raises(DataError, match=r"bucket_208x304 no longer belongs to the set, and note\.txt in it"):
        pack(prepared.data, prepared.without(*tall), seed=0)
    assert note.read_text() == "mine"


def test_a_full_disk_keeps_what_was_packed(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter([None, None, OSError(errno.ENOSPC, "No space left on device")])

    def full(_descriptor: int) -> None:
        if error := next(calls):
            raise error

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"the disk is full: .* free some space and give the same command again"):
        pack(prepared.data, prepared.manifest, seed=0)
    assert not [name for name in shards(prepared) if name.endswith(".part")]
    monkeypatch.setattr(os, "fsync", lambda _: None)
    packed = pack(prepared.data, prepared.manifest, seed=0)
    assert (packed.written, packed.kept) == (3, 2)


# ---- the trainer reads the index -------------------------------------------------------------------------------------


def test_reports_say_what_features_are_worth_and_the_index_is_no_stranger(prepared: Prepared) -> None:
    pack(prepared.data, prepared.manifest, seed=0)
    notes = opened(prepared).notes
    assert {RECIPES["t5"].label, RECIPES["dinov3"].label} < {*notes}
    assert not [note for note in notes if "left alone" in note]


def _remove_shard(root: Path) -> None:
    (root / "bucket_256x256" / "shard-000001.tar").unlink()


def _lengthen(root: Path) -> None:
    with (root / "bucket_256x256" / "shard-000001.tar").open("ab") as file:
        file.write(bytes(512))


def _add_shard(root: Path) -> None:
    tar = root / "bucket_256x256" / "shard-000000.tar"
    tar.with_name("shard-000009.tar").write_bytes(tar.read_bytes())


def _change_index(old: str, new: str, root: Path) -> None:
    text = (root / "index.json").read_text()
    assert old in text
    (root / "index.json").write_text(text.replace(old, new, 1))


SPOILT = {
    "a shard is gone": (_remove_shard, r"bucket_256x256/shard-000001\.tar is missing: pack the set again"),
    "a shard has other bytes": (_lengthen, r"shard-000001\.tar has [\d,]+ bytes where the index says [\d,]+: pack"),
    "a shard too many": (_add_shard, r"shard-000009\.tar is not in the index: pack the set again"),
    "no JSON": (partial(_change_index, "{", ""), "is no index of shards .*: pack the set again"),
    "another format": (partial(_change_index, '"format": 1', '"format": 2'), "has the format 2; this version reads 1"),
    "wrong sum": (partial(_change_index, '"samples": 6', '"samples": 7'), "has 7 samples, its shards have 6"),
    "no splits": (partial(_change_index, '"splits"', '"split"'), "is no index of shards"),
    "interrupted": (
        lambda root: (root / "index.json").write_text('{"format": 1, "unfinished": true}'),
        "is being packed, or that was interrupted: wait for it, or pack the set again",
    ),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_set_that_is_not_what_its_index_says_is_refused(prepared: Prepared, spoil: str) -> None:
    pack(prepared.data, prepared.manifest, seed=0)
    change, message = SPOILT[spoil]
    config = config_of(prepared)
    change(prepared.data / "shards")
    with pytest.raises(DataError, match=message):
        open_source(config)


def test_a_check_of_a_configuration_finds_it_too(prepared: Prepared, tmp_path: Path) -> None:
    pack(prepared.data, prepared.manifest, seed=0)
    data = {"source": "shards", "path": str(prepared.data / "shards"), "size": SIDE}
    config = {"steps": 4, "batch": 2, "model": MODEL, "data": data}
    assert check(1, config)["ok"]
    _remove_shard(prepared.data / "shards")
    assert not check(1, config)["ok"]
