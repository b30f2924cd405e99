"""Every kind of damage is found and named, a clean set has none, and mending takes out exactly what is damaged."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes.prepared import RECIPES, WIDTH, Prepared, prepare
from tests.fakes.shards import npy, write_tar
from trainer.__main__ import main
from trainer.data.buckets import BUCKETS
from trainer.data.tar_index import index_tar, read_span
from trainer.errors import DataError
from trainer.prepare import pack as packing
from trainer.prepare.lock import only_here
from trainer.prepare.manifest import Part, write_manifest
from trainer.prepare.pack import pack
from trainer.prepare.passes import Failed
from trainer.prepare.publication import PUBLISHED
from trainer.prepare.recipe import Recipe
from trainer.prepare.recipes import note_recipes, read_recipes
from trainer.prepare.records import Samples
from trainer.prepare.shard_plan import plan_shards
from trainer.prepare.states import look_up
from trainer.prepare.verify import verify

SHARD = "shards/bucket_256x256/shard-000000.tar"
Plant = Callable[[Prepared, str], None]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "plan_shards", partial(plan_shards, most_samples=2))
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "plan_shards", partial(plan_shards, most_samples=2))
        prepared = prepare(tmp_path_factory.mktemp("clean"), {BUCKETS[0]: 3, BUCKETS[2]: 1})
        pack(prepared.data, prepared.manifest, 0)
    return prepared


@pytest.fixture
def prepared(clean: Prepared, tmp_path: Path) -> Prepared:
    shutil.copytree(clean.data, tmp_path / "data")
    return Prepared(tmp_path / "data", clean.manifest, clean.recipes)


def tree(root: Path) -> dict[str, bytes]:
    """Every file but the lock."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def kinds(prepared: Prepared) -> set[str]:
    return {finding.kind for finding in verify(prepared.data).findings}


def corrupt(prepared: Prepared) -> set[tuple[str, str, str]]:
    """(kind, id or path, artefact) of what must be taken out."""
    found = (finding for finding in verify(prepared.data).findings if finding.is_corrupt)
    return {(one.kind, one.id if one.artefact else one.path, one.artefact) for one in found}


def states(prepared: Prepared) -> dict[tuple[str, str], str]:
    found = (look_up(prepared.samples, entry, read_recipes(prepared.data)) for entry in prepared.manifest.images)
    return {(one.entry.id, artefact): state for one in found for artefact, state in one.states.items()}


def test_nothing_is_found_on_a_clean_set(clean: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(clean.data)
    assert main(["verify", str(clean.data)]) == 0
    assert capsys.readouterr().out == "4 images and 3 shards were read: nothing is wrong\n"
    assert tree(clean.data) == before


# ---- damage to artefacts ---------------------------------------------------------------------------------------------


def _write(name: str, change: Callable[[bytes], bytes]) -> Plant:
    """Change a file behind the back of its record."""

    def plant(prepared: Prepared, id: str) -> None:
        path = prepared.samples.folder(id) / name
        path.write_bytes(change(path.read_bytes()))

    return plant


def _made(artefact: str, **files: Any) -> Plant:
    """Make an artefact as a faulty encoder would: its record is right about it."""
    return lambda prepared, id: prepared.make(id, artefact, **files)


def _bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _forget_file(data: bytes) -> bytes:
    record = json.loads(data)
    del record["files"]["t5m.npy"]
    return json.dumps(record).encode()


def _joint(x: float, confidence: float = 0.5) -> np.ndarray:
    joints_J3 = np.full((133, 3), 0.5, np.float16)
    joints_J3[7, ::2] = x, confidence
    return joints_J3


def _text(tokens: int) -> np.ndarray:
    return np.ones((tokens, WIDTH), np.float16)


def _ones(tokens: int) -> np.ndarray:
    return np.ones(tokens, np.uint8)


DAMAGE: dict[str, tuple[str, str, Plant, str]] = {
    "record cut off": ("broken record", "pose", _write("pose.record.json", lambda data: data[:40]), "is no record"),
    "record of another format": (
        "broken record", "pose", _write("pose.record.json", lambda data: data.replace(b'"format": 1', b'"format": 0')),
        "has the format 0",
    ),
    "record without a file": ("broken record", "t5", _write("t5.record.json", _forget_file), r"no t5m\.npy"),
    "file gone": (
        "missing file", "dinov3", lambda one, id: (one.samples.folder(id) / "dinov3.npy").unlink(), "No such file",
    ),
    "bit flipped": ("changed file", "t5", _write("t5h.npy", _bit), "SHA-256 "),
    "file cut off": ("changed file", "image", _write("image.npy", lambda data: data[:-7]), "SHA-256 "),
    "no .npy": ("no array", "pose", _made("pose", pose__npy="words"), "is no .npy file"),
    "another type": ("wrong type", "pose", _made("pose", pose__npy=np.zeros((133, 3))), "float64"),
    "mask of another type": ("wrong type", "t5", _made("t5", t5m__npy=np.ones(3, np.int32)), "int32"),
    "part map of another size": ("wrong shape", "seg", _made("seg", seg__npy=np.zeros((4, 4), np.uint8)), "4, 4"),
    "joints missing": ("wrong shape", "pose", _made("pose", pose__npy=np.zeros((17, 3), np.float16)), "17, 3"),
    "two encoders": (
        "wrong shape", "dinov3", _made("dinov3", dinov3__npy=np.ones(WIDTH + 1, np.float16)), f"256, {WIDTH}"
    ),
    "empty feature": ("wrong shape", "dinov3", _made("dinov3", dinov3__npy=np.ones(0, np.float16)), "not empty"),
    "patch missing": ("wrong grid", "dinov3", _made("dinov3", dinov3_patches__npy=_text(255)), "255 .* 16 x 16"),
    "not a number": ("not finite", "pose", _made("pose", pose__npy=_joint(np.nan)), "1 values"),
    "more than half precision holds": (
        "not finite", "dinov3", _made("dinov3", dinov3__npy=np.full(WIDTH, np.inf, np.float16)), f"{WIDTH} values"
    ),
    "joints in pixels": ("out of range", "pose", _made("pose", pose__npy=_joint(200.0)), "a joint at 200"),
    "out of the image": ("out of range", "pose", _made("pose", pose__npy=_joint(-1.1)), "a joint at 1.09"),
    "a raw score": ("out of range", "pose", _made("pose", pose__npy=_joint(0, 1.5)), "confidences from 0.5 to 1.5"),
    "a joint nobody saw": ("out of range", "pose", _made("pose", pose__npy=_joint(0.5, 0)), "lies somewhere"),
    "class 28": ("out of range", "seg", _made("seg", seg__npy=np.full((256, 256), 28, np.uint8)), "the class 28"),
    "padded text": ("text mask", "t5", _made("t5", t5h__npy=_text(9), t5m__npy=np.eye(9, dtype=np.uint8)[0]), "1 ones"),
    "mask of another length": ("text mask", "t5", _made("t5", t5h__npy=_text(9), t5m__npy=_ones(8)), r"\(8,\)"),
    "513 tokens": ("text mask", "t5", _made("t5", t5h__npy=_text(513), t5m__npy=_ones(513)), "513 tokens"),
    "no words": ("empty caption", "caption", _made("caption", caption__txt=" \n"), "2 characters, all of them white"),
    "image as floats": (
        "wrong type", "image", _made("image", image__npy=np.zeros((3, 256, 256), np.float16)), "float16"
    ),
    "image of another bucket": (
        "wrong shape", "image", _made("image", image__npy=np.zeros((3, 208, 304), np.uint8)), "3, 208, 304"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_exactly_it_is_made_again(clean: Prepared, prepared: Prepared, damage: str) -> None:
    kind, artefact, plant, words = DAMAGE[damage]
    id = prepared.ids[0]  # of the square bucket
    plant(prepared, id)
    before = states(prepared)
    assert corrupt(prepared) == {(kind, id, artefact)}
    [finding] = [finding for finding in verify(prepared.data).findings if finding.is_corrupt]
    assert finding.path.startswith(f"samples/{id[:2]}/{id}/")
    assert re.search(words, str(finding))
    assert main(["verify", str(prepared.data), "--fix"]) == 65
    after = states(prepared)
    assert after[id, artefact] == "missing"
    made_from_it = {name for name in RECIPES if before[id, name] != "stale" and after[id, name] == "stale"}
    assert made_from_it <= {"image": set(RECIPES), "caption": {"t5"}}.get(artefact, set())
    changed = {key for key in before if before[key] != after[key]} - {(id, name) for name in made_from_it}
    assert changed <= {(id, artefact)}
    prepared.make(id, artefact)
    assert not verify(prepared.data).findings
    assert tree(prepared.data) == tree(clean.data)


# ---- damage to shards ------------------------------------------------------------------------------------------------


def _repack(change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> Callable[[Path], None]:
    """Write a shard anew with other members, and an index that is right about its bytes."""

    def plant(data: Path) -> None:
        tar = data / SHARD
        descriptor = os.open(tar, os.O_RDONLY)
        members = [
            (f"{key}.{suffix}", read_span(descriptor, span))
            for key, entry in index_tar(tar).items()
            for suffix, span in entry.members.items()
        ]
        os.close(descriptor)
        old = hashlib.sha256(tar.read_bytes()).hexdigest(), tar.stat().st_size
        write_tar(tar, change(members))
        new = hashlib.sha256(tar.read_bytes()).hexdigest(), tar.stat().st_size
        index = data / "shards" / "index.json"
        text = index.read_text().replace(old[0], new[0], 1)
        index.write_text(text.replace(f'"bytes": {old[1]}', f'"bytes": {new[1]}', 1))

    return plant


def _without_last(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return members[:-1]


def _without_last_sample(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    last = members[-1][0].partition(".")[0]
    return [member for member in members if not member[0].startswith(last)]


def _twice(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return [*members, members[-1]]


def _flip(data: Path) -> None:
    content = bytearray((data / SHARD).read_bytes())
    content[-20_000] ^= 1
    (data / SHARD).write_bytes(content)


def _flip_header(data: Path) -> None:
    content = bytearray((data / SHARD).read_bytes())
    content[10] ^= 1
    (data / SHARD).write_bytes(content)


SHARD_DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "cut off": ("wrong size", lambda data: os.truncate(data / SHARD, 5000), "5,000 bytes; needed: "),
    "a bit": ("changed shard", _flip, "SHA-256"),
    "a header": ("changed shard", _flip_header, "no uncompressed tar file, or damaged"),
    "a member is missing": ("incomplete sample", _repack(_without_last), r"no t5m\.npy"),
    "a member is there twice": ("incomplete sample", _repack(_twice), r"t5m\.npy twice"),
    "a sample is missing": ("wrong count", _repack(_without_last_sample), "1 samples; needed: 2"),
}


@pytest.mark.parametrize("damage", SHARD_DAMAGE)
def test_a_damaged_shard_is_named_and_written_again(clean: Prepared, prepared: Prepared, damage: str) -> None:
    kind, plant, words = SHARD_DAMAGE[damage]
    plant(prepared.data)
    assert corrupt(prepared) == {(kind, SHARD, "")}
    assert any(re.search(words, str(one)) for one in verify(prepared.data).findings)
    whole = tree(clean.data)
    assert main(["verify", str(prepared.data), "--fix"]) == 65
    gone = {SHARD, SHARD.replace("shard-000000.tar", ".shard-000000.json")}
    assert tree(prepared.data).keys() == whole.keys() - gone
    assert kinds(prepared) - {"broken index"} == {"missing shard"}
    assert pack(prepared.data, prepared.manifest, 0).written == 1
    assert not verify(prepared.data).findings
    assert tree(prepared.data) == whole


def test_an_index_that_is_broken_or_gone_or_lies_is_named(prepared: Prepared) -> None:
    index = prepared.data / "shards" / "index.json"
    whole = index.read_bytes()
    for content in (b"{", b'{"format": 1, "unfinished": true}', None):
        index.unlink() if content is None else index.write_bytes(content)
        [finding] = verify(prepared.data).findings
        assert (finding.kind, finding.path) == ("broken index", "shards/index.json")
    other = json.loads(whole)
    other["splits"]["held_out"], other["splits"]["probe"] = other["splits"]["probe"], other["splits"]["held_out"]
    index.write_text(json.dumps(other))
    assert "other held-out or probe ids" in str(verify(prepared.data).findings)
    assert main(["verify", str(prepared.data), "--fix"]) == 65
    pack(prepared.data, prepared.manifest, 0)
    assert index.read_bytes() == whole


def test_shards_of_artefacts_that_were_made_anew_are_out_of_date_and_stay(prepared: Prepared) -> None:
    prepared.make(prepared.ids[0], "pose", pose__npy=np.zeros((133, 3), np.float16))
    [finding] = verify(prepared.data).findings
    assert (finding.kind, finding.id, finding.is_corrupt) == ("other sample", prepared.ids[0], False)
    assert "another pose.npy" in finding.found
    before = tree(prepared.data / "shards")
    assert main(["verify", str(prepared.data), "--fix"]) == 65
    assert tree(prepared.data / "shards") == before


@pytest.mark.parametrize("change", ["caption", "id"])
def test_what_a_shard_says_in_words_is_compared_too(prepared: Prepared, change: str) -> None:
    def other(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        name = next(name for name, _ in members if name.endswith(".json"))
        said = json.loads(dict(members)[name])
        said |= {"caption": "another"} if change == "caption" else {"image_id": "f" * 16}
        return [(one, json.dumps(said).encode() if one == name else data) for one, data in members]

    _repack(other)(prepared.data)
    [finding] = verify(prepared.data).findings
    assert finding.kind == "other sample"
    assert "another caption or id" in finding.found


def test_a_member_that_no_recipe_has_is_named(prepared: Prepared) -> None:
    _repack(lambda members: [*members, (members[-1][0].replace("t5m", "depth"), npy(np.zeros(3)))])(prepared.data)
    assert "depth.npy, which no recipe has" in str(verify(prepared.data).findings)


# ---- what is no damage -----------------------------------------------------------------------------------------------


def test_stale_is_no_damage_and_is_never_judged_by_its_content(prepared: Prepared) -> None:
    prepared.make(prepared.ids[0], "pose", pose__npy=np.zeros((17, 3), np.float16))  # wrong, but nobody wants it
    note_recipes(prepared.data, {"pose": Recipe(model="dwpose", revision="2")})
    found = verify(prepared.data).findings
    assert {finding.id for finding in found if finding.kind == "stale" and finding.artefact == "pose"} == {
        *prepared.ids
    }
    assert not [finding for finding in found if finding.is_corrupt]
    assert [finding.path for finding in found if finding.kind == "stale" and not finding.id] == ["shards/index.json"]


def test_images_stored_at_another_side_than_is_wanted_now_are_stale_only(prepared: Prepared) -> None:
    note_recipes(prepared.data, {"image": Recipe(options={"side": 512})})
    assert not corrupt(prepared)
    assert kinds(prepared) == {"stale", "other sample"}


def test_a_changed_caption_makes_its_features_stale(prepared: Prepared) -> None:
    prepared.make(prepared.ids[0], "caption", caption__txt="other words")
    assert {(one.kind, one.artefact) for one in verify(prepared.data).findings} == {
        ("stale", "t5"), ("other sample", "")
    }  # fmt: skip


def test_what_is_missing_or_failed_is_no_finding(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, {BUCKETS[0]: 2})
    prepared.samples.drop(prepared.ids[0], "pose")
    inputs = prepared.samples.digests(prepared.ids[1], ("image",))
    assert inputs is not None
    prepared.samples.keep(prepared.ids[1], "pose", RECIPES["pose"], inputs, Failed("nobody"))
    (tmp_path / "samples" / ".half.part").write_bytes(b"")
    assert not verify(tmp_path).findings


def test_what_does_not_belong_is_named_and_never_removed(
    prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    strangers = [
        "notes.txt",
        f"samples/{prepared.ids[0][:2]}/{prepared.ids[0]}/depth.npy",
        "shards/bucket_256x256/shard-000007.tar",
        "samples/list.txt",
        f"samples/{prepared.ids[0][:2]}/portrait.jpg",
    ]
    for name in strangers:
        (prepared.data / name).write_bytes(b"mine")
    assert main(["verify", str(prepared.data), "--fix", "--json"]) == 65
    answer = json.loads(capsys.readouterr().out)
    assert {one["path"] for one in answer["findings"] if one["kind"] == "unknown file"} == {*strangers}
    assert answer["mended"] == {"artefacts": 0, "shards": 0}
    assert all((prepared.data / name).exists() for name in strangers)


def test_photographs_that_are_gone_are_counted_and_no_damage(
    prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = prepared.without(prepared.ids[-1])
    write_manifest(prepared.data, fewer, Part())
    assert kinds(prepared) == {"other sample"}, "until it is packed again"
    pack(prepared.data, fewer, 0)
    assert main(["verify", str(prepared.data)]) == 0
    assert "1 folders below samples/ are of photographs that are gone" in capsys.readouterr().out


def test_what_to_run_is_said(prepared: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    (prepared.samples.folder(prepared.ids[0]) / "pose.npy").unlink()
    assert main(["verify", str(prepared.data)]) == 65
    told = capsys.readouterr()
    assert f"missing file: samples/{prepared.ids[0][:2]}/{prepared.ids[0]}/pose.npy: No such file" in told.out
    assert f"python -m trainer verify {prepared.data} --fix takes out what is corrupt" in told.err
    assert main(["verify", str(prepared.data), "--fix"]) == 65
    told = capsys.readouterr()
    assert "1 artefacts and 0 shards that were corrupt are taken out; to make them again: " in told.err
    assert f"python -m trainer prepare /photographs --out {prepared.data}" in told.err


def test_a_set_that_is_being_prepared_is_not_mended(prepared: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    with only_here(prepared.data):
        assert main(["verify", str(prepared.data), "--fix"]) == 65
    assert "another process prepares" in capsys.readouterr().err


def test_no_set_is_no_clean_set(tmp_path: Path) -> None:
    assert main(["verify", str(tmp_path / "nothing")]) == 2
    with pytest.raises(DataError, match="holds no manifest"):
        verify(tmp_path)
    assert Samples(tmp_path).record("ab", "pose") is None


def test_what_publishing_leaves_belongs_to_the_set(prepared: Prepared) -> None:
    (prepared.data / PUBLISHED).write_text("{}")
    assert verify(prepared.data).findings == ()


def test_a_folder_that_cannot_be_read_is_a_finding(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    id = prepared.manifest.images[0].id
    closed = [prepared.data / "samples" / id[:2], prepared.data / "samples" / id[:2] / id]
    listing = Path.iterdir

    def refused(path: Path) -> Iterator[Path]:
        if path in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(Path, "iterdir", refused)
    found = verify(prepared.data).findings
    assert [(one.kind, one.path) for one in found] == [
        ("unreadable folder", path.relative_to(prepared.data).as_posix()) for path in reversed(closed)
    ]
