"""The data card: what it counts, what it never lets through, and which samples it shows."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.fakes.packed_set import LABEL, packed_set, prepared_set
from trainer.data.buckets import BUCKETS
from trainer.data.split import id_hash
from trainer.errors import DataError
from trainer.prepare.card import as_text, histogram, write_card
from trainer.prepare.card_facts import card_facts, kinds
from trainer.prepare.card_sheet import CELL, choose, draw_pose
from trainer.prepare.manifest import ImageEntry


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("card")
    prepared_set(data, counts=(3, 2, 0, 0, 0, 0, 1))
    packed_set(data / "shards")
    return data


def image(id: str, bucket: str = BUCKETS[0].name, perceptual_hash: int = 0) -> ImageEntry:
    return ImageEntry(id, f"{id}.jpg", 1, 1, bucket, f"{perceptual_hash:016x}")


# ---- the card --------------------------------------------------------------------------------------------------------


def test_the_card_says_what_is_there(data: Path) -> None:
    text = write_card(data).read_text()
    rows = {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in text.splitlines() if "|" in line}
    assert {("images", "6"), ("files rejected", "2"), ("exact copies left out", "1")} <= rows
    assert ("1024x1024", "256x256", "4", "44.4 %", "2") in rows
    assert ("it is broken", "2") in rows
    assert ("face", "68", "68.0") in rows
    assert ("training", "7") in rows
    assert "A person was found in 4 of 6 images (66.7 %)" in text
    assert "saw only the beginning of 3 of 6 captions (50.0 %)" in text
    assert as_text(LABEL) in text
    assert "0123456789abcdef" in text


def test_the_card_names_no_photograph(data: Path) -> None:
    assert ".jpg" not in write_card(data).read_text().replace("\\", "")


def test_the_same_set_makes_the_same_bytes(data: Path) -> None:
    first = write_card(data).read_bytes(), (data / "card.png").read_bytes()
    assert (write_card(data).read_bytes(), (data / "card.png").read_bytes()) == first


def test_the_numbers_are_those_of_the_artefacts(data: Path) -> None:
    facts = card_facts(data)
    captions = [path.read_text() for path in (data / "samples").rglob("caption.txt")]
    assert sorted(facts.words) == sorted(len(caption.split()) for caption in captions)
    files = [path.stat().st_size for path in (data / "samples").rglob("image.npy")]
    assert facts.bytes_of["image"] == sum(files)
    assert "dinov3" not in facts.bytes_of


def test_a_set_that_is_not_packed_has_no_card(tmp_path: Path) -> None:
    prepared_set(tmp_path, counts=(1, 0, 0, 0, 0, 0, 0))
    with pytest.raises(DataError, match=r"index\.json is not there"):
        write_card(tmp_path)


@given(st.text())
def test_words_of_files_are_never_markup(text: str) -> None:
    shown = as_text(text)
    bare = re.sub(r"\\.", "", shown)
    assert not re.search(r"[\\`*_{}\[\]()<>#+\-.!|~&$:@\n\r\x00-\x1f\x7f]", bare)
    kept = re.sub(r"\\(.)", r"\1", shown)
    assert [one for one in kept if not one.isspace()] == [
        one for one in text if not (one.isspace() or re.match(r"[CZ]", unicodedata.category(one)))
    ]


@given(st.lists(st.integers(0, 600), max_size=200))
def test_a_histogram_counts_every_value_once(values: list[int]) -> None:
    bins = histogram(values)
    assert sum(count for _, count in bins) == len(values)
    assert len(bins) <= 12


def test_reasons_are_counted_by_kind() -> None:
    reasons = ["it is broken: byte 3", "it has 70 MiB; files up to 64 MiB", "it has 99 MiB; files up to 64 MiB"]
    assert kinds([*reasons, "empty"]) == {"it has N MiB": 2, "empty": 1, "it is broken": 1}


# ---- the picture -----------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(BUCKETS), max_size=40), st.integers(1, 20))
def test_samples_are_chosen_by_hash_and_every_bucket_is_there(buckets: list, count: int) -> None:
    images = [image(f"{index:04d}", bucket.name) for index, bucket in enumerate(buckets)]
    chosen = choose(images, count)
    assert len(chosen) == len(set(chosen)) == min(count, len(images))
    present = {entry.bucket for entry in images}
    assert len({entry.bucket for entry in chosen}) == min(count, len(present))
    for bucket in present:
        own = sorted((entry for entry in images if entry.bucket == bucket), key=lambda entry: id_hash(entry.id))
        taken = [entry for entry in chosen if entry.bucket == bucket]
        assert taken == own[: len(taken)]


def test_the_picture_has_a_cell_for_every_sample(data: Path) -> None:
    write_card(data)
    with Image.open(data / "card.png") as picture:
        assert picture.width > 5 * CELL
        assert picture.height > 2 * CELL
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (colours == (0, 224, 255)).all(axis=1).sum() > 200, "joints of faces"


def test_a_joint_is_drawn_where_it_is() -> None:
    pose_J3 = np.zeros((133, 3), dtype=np.float32)
    pose_J3[0] = 0.5, -0.5, 1.0
    pose_J3[1] = -0.5, 0.5, 0.2  # not sure enough
    pose_J3[2] = 1.5, 0.0, 1.0  # out of the frame
    picture = Image.new("RGB", (100, 80))
    draw_pose(picture, pose_J3)
    drawn_N2 = np.argwhere((np.asarray(picture) == (255, 196, 0)).all(axis=2))
    assert np.allclose(drawn_N2.mean(axis=0), (20.0, 75.0), atol=1.0)
