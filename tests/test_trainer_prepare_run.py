"""Artefacts and the passes that make them: states, batches, interruptions, failures, locks, divided work."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.numpy_passes import MeanColour, small_set, tree
from trainer.errors import DataError
from trainer.prepare import records
from trainer.prepare.lock import only_here, sweep
from trainer.prepare.manifest import ImageEntry, Manifest, Part, read_manifest, whole_manifest, write_manifest
from trainer.prepare.passes import Failed, Made
from trainer.prepare.recipe import Recipe, recipe_from_json
from trainer.prepare.records import BrokenRecord, Samples
from trainer.prepare.run import batches_of, run_pass

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    return Samples(tmp_path)


# ---- records ---------------------------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was_written(samples: Samples) -> None:
    made = Made({"a.npy": np.arange(3.0), "b.txt": "ä"}, {"seen": True, "count": 2})
    recipe = Recipe("model", "r1", 3, {"side": 256}, "a stand-in")
    written = samples.keep("ab12", "thing", recipe, {"image.npy": "f" * 64}, made)
    assert samples.record("ab12", "thing") == written
    assert samples.state("ab12", "thing", recipe, {"image.npy": "f" * 64}) == "done"
    assert samples.read("ab12", "b.txt").decode() == "ä"
    assert set(written.files) == {"a.npy", "b.txt"}


@pytest.mark.parametrize(
    "other",
    [
        Recipe("other", "r1", 3, {"side": 256}),
        Recipe("model", "r2", 3, {"side": 256}),
        Recipe("model", "r1", 4, {"side": 256}),
        Recipe("model", "r1", 3, {"side": 512}),
        Recipe("model", "r1", 3, {}),
        Recipe("model", "r1", 3, {"side": 256}, "label"),
    ],
)
def test_any_change_of_the_recipe_makes_an_artefact_stale(samples: Samples, other: Recipe) -> None:
    recipe = Recipe("model", "r1", 3, {"side": 256})
    samples.keep("ab12", "thing", recipe, {}, Made({"a.npy": np.zeros(1)}))
    assert samples.state("ab12", "thing", recipe, {}) == "done"
    assert samples.state("ab12", "thing", other, {}) == "stale"
    assert samples.state("ab12", "thing", recipe, {"image.npy": "0" * 64}) == "stale"
    assert recipe.hash != other.hash
    assert recipe_from_json(json.loads(json.dumps(other.as_json()))) == other


def test_what_failed_has_a_reason_and_no_files(samples: Samples) -> None:
    samples.keep("ab12", "thing", Recipe(), {}, Failed("too dark"))
    assert samples.state("ab12", "thing", Recipe(), {}) == "failed"
    assert samples.digests("ab12", ("thing",)) is None
    assert samples.state("ab12", "other", Recipe(), {}) == "missing"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 0}', '{"format": 1, "recipe": {}}'])
def test_a_broken_record_is_stale_and_made_again(samples: Samples, text: str) -> None:
    samples.keep("ab12", "thing", Recipe(), {}, Made({"a.npy": np.zeros(1)}))
    (samples.folder("ab12") / "thing.record.json").write_text(text)
    assert samples.state("ab12", "thing", Recipe(), {}) == "stale"
    assert samples.digests("ab12", ("thing",)) is None
    with pytest.raises(BrokenRecord, match=r"thing\.record\.json"):
        samples.record("ab12", "thing")


def test_a_full_disk_keeps_what_there_was(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.keep("ab12", "thing", Recipe(revision="1"), {}, Made({"a.npy": np.zeros(3)}))
    before = tree(samples.root)

    def full(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(records.os, "replace", full)
    with pytest.raises(DataError, match=r"the disk is full.*kept and whole"):
        samples.keep("ab12", "thing", Recipe(revision="2"), {}, Made({"a.npy": np.ones(3)}))
    after = tree(samples.root)
    assert after == {name: content for name, content in before.items() if "record" not in name}, "no half file, no lie"
    assert samples.state("ab12", "thing", Recipe(revision="2"), {}) == "missing"


# ---- passes ----------------------------------------------------------------------------------------------------------


def test_a_pass_makes_everything_once(tmp_path: Path) -> None:
    manifest, samples, work = small_set(tmp_path, 11), Samples(tmp_path), MeanColour()
    outcome = run_pass(work, samples, manifest)
    assert (outcome.made, outcome.done, outcome.failed, outcome.waiting) == (11, 0, [], [])
    assert all(len(batch) <= work.batch for batch in work.batches)
    assert not work.is_open, "the model is freed"
    again = MeanColour()
    assert run_pass(again, samples, manifest).done == 11
    assert again.batches == []


def test_the_images_of_a_batch_have_one_shape(tmp_path: Path) -> None:
    manifest = small_set(tmp_path, 10)
    by_id = {entry.id: entry.bucket for entry in manifest.images}
    for batch in batches_of(MeanColour(), manifest.images):
        assert len({by_id[entry.id] for entry in batch}) == 1
    text_only = MeanColour(needs=("caption",), batch=4)
    assert [len(batch) for batch in batches_of(text_only, manifest.images)] == [4, 4, 2]


@given(stops=st.lists(st.integers(0, 6), max_size=4), batch=st.integers(1, 4))
def test_interrupted_anywhere_it_ends_in_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], batch: int
) -> None:
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")
    run_pass(MeanColour(batch=batch), Samples(whole), small_set(whole, 11))
    manifest = small_set(broken, 11)
    for stop in stops:
        work = MeanColour(batch=batch, stop_at=stop)
        try:
            run_pass(work, Samples(broken), manifest)
        except KeyboardInterrupt:
            assert len(work.batches) == stop
    run_pass(MeanColour(batch=batch), Samples(broken), manifest)
    assert tree(broken / "samples") == tree(whole / "samples")


@pytest.mark.parametrize("threads", [2, 5])
def test_batches_that_are_computed_at_once_are_the_same_batches(tmp_path: Path, threads: int) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    run_pass(MeanColour(), Samples(one), small_set(one, 23))
    work, manifest = MeanColour(threads=threads), small_set(several, 23)
    assert run_pass(work, Samples(several), manifest).made == 23
    assert tree(one / "samples") == tree(several / "samples")
    in_order = [[entry.id for entry in batch] for batch in batches_of(work, manifest.images)]
    assert sorted(work.batches) == sorted(in_order)


def test_an_error_in_one_of_several_batches_keeps_what_came_before(tmp_path: Path) -> None:
    manifest, samples = small_set(tmp_path, 23), Samples(tmp_path)
    work = MeanColour(threads=3, stop_at=4, interrupt=DataError)
    with pytest.raises(DataError):
        run_pass(work, samples, manifest)
    assert not work.is_open
    made = sum(samples.digests(entry.id, ("colour",)) is not None for entry in manifest.images)
    assert made % work.batch in (0, 2), "whole batches, of which the last of a bucket has two"
    assert run_pass(MeanColour(), samples, manifest).done == made


def test_only_what_is_missing_is_written_but_computed_in_its_own_batch(tmp_path: Path) -> None:
    manifest, samples = small_set(tmp_path, 9, ("1024x1024",)), Samples(tmp_path)
    run_pass(MeanColour(), samples, manifest)
    before = tree(tmp_path)
    lost, others = manifest.images[4].id, [entry.id for entry in manifest.images[3:6]]
    samples.drop(lost, "colour")
    times = {id: (samples.folder(id) / "colour.npy").stat().st_mtime_ns for id in others if id != lost}
    work = MeanColour()
    assert run_pass(work, samples, manifest).made == 1
    assert work.batches == [others]
    assert tree(tmp_path) == before
    assert times == {id: (samples.folder(id) / "colour.npy").stat().st_mtime_ns for id in times}


def test_a_failure_is_one_image_and_is_tried_again(tmp_path: Path) -> None:
    manifest, samples = small_set(tmp_path, 6), Samples(tmp_path)
    bad = manifest.images[2].id
    outcome = run_pass(MeanColour(fails=frozenset({bad})), samples, manifest)
    assert (outcome.made, outcome.failed) == (5, [(bad, "asked to")])
    assert run_pass(MeanColour(), samples, manifest).made == 1


def test_a_number_that_is_not_finite_is_a_failure(tmp_path: Path) -> None:
    class Broken(MeanColour):
        def _colour(self, each: Any, count: int) -> np.ndarray:
            return np.array([np.nan, 1.0], dtype=np.float16)

    outcome = run_pass(Broken(), Samples(tmp_path), small_set(tmp_path, 2))
    assert [reason for _, reason in outcome.failed] == ["colour.npy has 1 values that float16 cannot hold"] * 2


def test_an_image_waits_for_what_the_pass_needs(tmp_path: Path) -> None:
    manifest, samples = small_set(tmp_path, 5), Samples(tmp_path)
    waiting = manifest.images[1].id
    samples.drop(waiting, "image")
    outcome = run_pass(MeanColour(), samples, manifest)
    assert (outcome.made, outcome.waiting) == (4, [waiting])


def test_a_changed_image_and_a_changed_model_make_again_exactly_what_depends_on_them(tmp_path: Path) -> None:
    manifest, samples = small_set(tmp_path, 6), Samples(tmp_path)
    run_pass(MeanColour(), samples, manifest)
    changed = manifest.images[0].id
    image = Made({"image.npy": np.zeros((3, 32, 32), dtype=np.uint8)})
    samples.keep(changed, "image", Recipe(options={"side": 32}), {"source": "e" * 64}, image)
    outcome = run_pass(MeanColour(), samples, manifest)
    assert (outcome.made, outcome.done) == (1, 5)
    assert run_pass(MeanColour(revision="2"), samples, manifest).made == 6


def test_a_stale_image_file_of_the_wrong_kind_ends_the_pass(tmp_path: Path) -> None:
    manifest, samples = small_set(tmp_path, 2), Samples(tmp_path)
    (samples.folder(manifest.images[0].id) / "image.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"image\.npy is no array.*verify --fix"):
        run_pass(MeanColour(), samples, manifest)


# ---- one process at a time -------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from trainer.prepare.lock import only_here
from trainer.prepare.manifest import Part
with only_here(Path(sys.argv[1]), Part(int(sys.argv[2]), int(sys.argv[3]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("theirs", "ours", "allowed"),
    [((1, 1), (1, 1), False), ((1, 2), (1, 2), False), ((1, 2), (2, 2), True), ((1, 2), (1, 1), False)],
)
def test_two_processes_on_one_output(tmp_path: Path, theirs: Part, ours: Part, allowed: bool) -> None:
    argv = [sys.executable, "-c", HOLD, str(tmp_path), *map(str, theirs)]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        if allowed:
            with only_here(tmp_path, Part(*ours)):
                pass
        else:
            with pytest.raises(DataError, match="another process prepares"), only_here(tmp_path, Part(*ours)):
                pass
        other.kill()
    with only_here(tmp_path, Part(*ours)):
        pass  # a lock ends with its process


def test_half_written_files_of_killed_processes_are_swept(tmp_path: Path) -> None:
    small_set(tmp_path, 2)
    before = tree(tmp_path)
    left = next(path for path in (tmp_path / "samples").rglob("*.npy")).with_name(".image.npy.part")
    left.write_bytes(b"half")
    assert sweep(tmp_path) == 1
    assert tree(tmp_path) == before


# ---- the manifest ----------------------------------------------------------------------------------------------------


def entry(number: int, path: str = "") -> ImageEntry:
    return ImageEntry(f"{number:016x}", path or f"p{number:02d}.jpg", 1, 2, "1024x1024", "0" * 16)


def test_parts_of_a_set_are_joined_by_path(tmp_path: Path) -> None:
    one = Manifest("/photos", (entry(0), entry(2)), (("b.jpg", "broken"),), (("z.jpg", "p00.jpg"),))
    two = Manifest("/photos", (entry(1), entry(2, "p09.jpg")))
    with pytest.raises(DataError, match="holds no manifest"):
        whole_manifest(tmp_path)
    write_manifest(tmp_path, one, Part(1, 2))
    with pytest.raises(DataError, match="lacks parts 2 of 2"):
        whole_manifest(tmp_path)
    write_manifest(tmp_path, two, Part(2, 2))
    joined = whole_manifest(tmp_path)
    assert [each.path for each in joined.images] == ["p00.jpg", "p01.jpg", "p02.jpg"]
    assert joined.copies == (("p09.jpg", "p02.jpg"), ("z.jpg", "p00.jpg"))
    assert joined.rejected == (("b.jpg", "broken"),)
    write_manifest(tmp_path, one, Part(1, 3))
    assert whole_manifest(tmp_path) == joined, "the other division has only begun"
    write_manifest(tmp_path, one, Part())
    assert whole_manifest(tmp_path) == one, "it takes the place of all parts"
    write_manifest(tmp_path, one, Part(1, 2))
    assert whole_manifest(tmp_path) == one
    write_manifest(tmp_path, two, Part(2, 2))
    assert whole_manifest(tmp_path) == joined
    for number in (1, 2, 3):
        write_manifest(tmp_path, two, Part(number, 3))
    with pytest.raises(DataError, match="divided in several ways"):
        whole_manifest(tmp_path)


def test_a_manifest_comes_back_and_a_broken_one_is_named(tmp_path: Path) -> None:
    manifest = Manifest("/photos", (entry(0),), (("ä.jpg", "tiny"),), ())
    write_manifest(tmp_path, manifest, Part())
    assert read_manifest(tmp_path) == whole_manifest(tmp_path) == manifest
    for text, reason in (("{", "no manifest"), ('{"format": 0}', "has the format 0"), ('{"format": 1}', "no manifest")):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DataError, match=reason):
            read_manifest(tmp_path)
