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


def points(total: int) -> list[int]:
    """The first and the last steps, and others that a seed draws."""
    return sorted({1, 2, total - 1, total, *random.Random(4).sample(range(3, total - 1), POINTS)})


def killed_while_packing(whole: Prepared, data: Path, old: Path | None, manifest: Manifest, step: int) -> Path:
    """A set in which packing with seed 1 was killed when it touched a file below shards/ for the `step`-th time."""
    beside(whole, data, old)
    assert killed_at(step, data / "shards", lambda: pack(data, manifest, 1))
    return data


def shards_of(root: Path) -> dict[str, bytes]:
    """What lies there, what is half-written aside."""
    return {name: content for name, content in tree(root).items() if not name.endswith(".part")}


def test_killed_anywhere_it_ends_with_the_same_bytes(whole: Prepared, tmp_path: Path) -> None:
    fresh = beside(whole, tmp_path / "fresh")
    pack(fresh, whole.manifest, 1)
    expected = tree(fresh / "shards")
    counted = beside(whole, tmp_path / "counted")
    total = steps_of(counted, lambda: pack(counted, whole.manifest, 1))
    for step in points(total):
        data = beside(whole, tmp_path / f"killed-{step}")
        assert killed_at(step, data, lambda data=data: pack(data, whole.manifest, 1))
        assert not can_be_trained_on(data / "shards") or shards_of(data / "shards") == expected, f"step {step}"
        sweep(data)
        pack(data, whole.manifest, 1)
        assert tree(data / "shards") == expected, f"step {step}"
        shutil.rmtree(data)


def test_killed_while_shards_are_replaced_it_goes_on_or_back(whole: Prepared, tmp_path: Path) -> None:
    """At every step: from shards of another seed, of an image and of a bucket more."""
    square = [entry for entry in whole.manifest.images if entry.bucket == BUCKETS[0].name]
    fewer = Manifest(whole.manifest.photos, tuple(square[1:]))
    fresh, old = beside(whole, tmp_path / "fresh"), beside(whole, tmp_path / "old") / "shards"
    pack(fresh, fewer, 1)
    pack(old.parent, whole.manifest, 0)
    expected, before = tree(fresh / "shards"), tree(old)
    counted = beside(whole, tmp_path / "counted", old)
    total = steps_of(counted / "shards", lambda: pack(counted, fewer, 1))
    assert total > 20, "there is much to be interrupted"
    for step in range(1, total + 1):
        data = killed_while_packing(whole, tmp_path / f"killed-{step}", old, fewer, step)
        assert not can_be_trained_on(data / "shards") or shards_of(data / "shards") in (expected, before), f"{step}"
        sweep(data / "shards")
        back = beside(whole, tmp_path / f"back-{step}", data / "shards")
        for one, manifest, seed, wanted in ((data, fewer, 1, expected), (back, whole.manifest, 0, before)):
            pack(one, manifest, seed)
            assert tree(one / "shards") == wanted, f"step {step}, seed {seed}"
            shutil.rmtree(one)


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
