"""Packing that is killed anywhere ends with the same bytes when it is done again, and nobody trains on half a set."""

from __future__ import annotations

import os
import random
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.fakes.kill_at_file import killed_at, steps_of
from tests.fakes.prepared import Prepared, prepare
from trainer.data.buckets import BUCKETS
from trainer.data.shard_set import describe_set
from trainer.errors import DataError
from trainer.prepare import pack as packing
from trainer.prepare.lock import sweep
from trainer.prepare.manifest import Manifest
from trainer.prepare.pack import pack
from trainer.prepare.shard_plan import plan_shards

POINTS = 14
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning"
)  # the child is careful


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tmp_path_factory.mktemp("whole"), {BUCKETS[0]: 5, BUCKETS[3]: 2}, ("image", "caption", "pose"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "plan_shards", partial(plan_shards, most_samples=2))
    monkeypatch.setattr(os, "fsync", lambda _: None)


def beside(whole: Prepared, data: Path, shards: Path | None = None) -> Path:
    """A set with the same artefacts, and with shards of its own."""
    data.mkdir()
    (data / "samples").symlink_to(whole.data / "samples")
    shutil.copy(whole.data / "recipes.json", data)
    if shards is not None:
        shutil.copytree(shards, data / "shards")
    return data


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"" for path in root.rglob("*")}


def can_be_trained_on(root: Path) -> bool:
    try:
        describe_set(root)
    except DataError:
        return False
    return True


def points(whole: Prepared, data: Path, manifest: Manifest) -> list[int]:
    """Where to kill: the first and the last steps, and others that a seed draws."""
    total = steps_of(data, lambda: pack(data, manifest, 1))
    assert total > 30, "there is much to be interrupted"
    return sorted({1, 2, 3, total - 1, total, *random.Random(4).sample(range(4, total - 1), POINTS)})


@pytest.mark.parametrize("is_first", [True, False])
def test_killed_anywhere_it_ends_with_the_same_bytes(whole: Prepared, tmp_path: Path, is_first: bool) -> None:
    """From nothing, and from shards of another seed and of an image and a bucket more."""
    fewer = whole.without(*(entry.id for entry in whole.manifest.images if entry.bucket == BUCKETS[3].name))
    manifest = whole.manifest if is_first else Manifest(fewer.photos, fewer.images[1:])
    fresh, old = beside(whole, tmp_path / "fresh"), None
    pack(fresh, manifest, 1)
    expected = tree(fresh / "shards")
    if not is_first:
        old = beside(whole, tmp_path / "old") / "shards"
        pack(old.parent, whole.manifest, 0)
    for step in points(whole, beside(whole, tmp_path / "counted", old), manifest):
        data = beside(whole, tmp_path / f"killed-{step}", old)
        assert killed_at(step, data, lambda data=data: pack(data, manifest, 1))
        left = tree(data / "shards")
        unfinished = {name for name in left if name.endswith(".part")}
        seen = {name: content for name, content in left.items() if name not in unfinished}
        assert not can_be_trained_on(data / "shards") or seen in (expected, old and tree(old)), f"step {step}"
        sweep(data / "shards")
        pack(data, manifest, 1)
        assert tree(data / "shards") == expected, f"step {step}"
        shutil.rmtree(data)


def test_killed_again_and_again_it_comes_to_an_end(whole: Prepared, tmp_path: Path) -> None:
    """Every attempt is killed after three quarters of the whole work; what it finished is not done again."""
    fresh, data = beside(whole, tmp_path / "fresh"), beside(whole, tmp_path / "data")
    pack(fresh, whole.manifest, 1)
    step = steps_of(data, lambda: pack(data, whole.manifest, 1)) * 3 // 4
    shutil.rmtree(data / "shards")
    attempts = 0
    while killed_at(step, data, lambda: pack(data, whole.manifest, 1)):
        attempts += 1
        assert attempts < 20
    assert attempts
    assert tree(data / "shards") == tree(fresh / "shards")
