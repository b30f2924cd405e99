"""Images that look the same are found by their hashes, whatever the number of images."""

from __future__ import annotations

from itertools import combinations

import imagehash
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from tests.fakes.photographs import drawn, encoded
from trainer.prepare.ingest.crop import make_crop
from trainer.prepare.ingest.duplicates import NEAR_BITS, near_duplicates, near_pairs
from trainer.prepare.manifest import ImageEntry

hashes = st.integers(0, 2**64 - 1)
flips = st.lists(st.integers(0, 63), max_size=7, unique=True)


def entry(index: int, hash: str) -> ImageEntry:
    return ImageEntry(f"{index:016x}", f"{index:06}.png", 1, 1, "1024x1024", hash)


def groups_of(values: list[int]) -> list[list[int]]:
    entries = [entry(index, f"{value:016x}") for index, value in enumerate(values)]
    return [[int(member.id, 16) for member in group] for group in near_duplicates(entries)]


@given(hashes, st.lists(flips, min_size=1, max_size=12), st.integers(0, 8))
def test_pairs_are_those_of_a_comparison_of_all_with_all(base: int, flipped: list[list[int]], near_bits: int) -> None:
    values = sorted({base ^ sum(1 << bit for bit in bits) for bits in flipped} | {base})
    found = {tuple(sorted(pair)) for pair in near_pairs(np.array(values, dtype=np.uint64), near_bits)}
    indices = range(len(values))
    assert found == {(i, j) for i, j in combinations(indices, 2) if (values[i] ^ values[j]).bit_count() <= near_bits}


def test_groups_are_chains_in_the_order_of_their_first_images() -> None:
    lone, left, right = 0x0123456789ABCDEF, 0xFFFF0000FFFF0000, 0x00FF00FF00FF00FF
    assert groups_of([]) == []
    assert groups_of([lone]) == []
    assert groups_of([right, left, lone, left ^ 0b1111, left ^ 0b11111111, right]) == [[0, 5], [1, 3, 4]]
    assert groups_of([left, left ^ 0b11111]) == []


def test_a_large_set_of_strangers_has_few_groups_and_no_planted_one_is_missed() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**64, 70_000, dtype=np.uint64).tolist()
    for index in range(0, 70_000, 7_000):
        values[index + 1] = values[index] ^ (1 << 3 | 1 << 17 | 1 << 40 | 1 << 62)
    values[50_001:52_001] = [values[50_000]] * 2_000  # a burst of one picture costs nothing more
    groups = groups_of(values)
    assert [group[:2] for group in groups if len(group) > 1] == [
        *([index, index + 1] for index in range(0, 50_000, 7_000)),
        [50_000, 50_001],
        *([index, index + 1] for index in range(56_000, 70_000, 7_000)),
    ]


def hash_of(image: Image.Image, format: str = "PNG") -> int:
    return int(str(make_crop(encoded(image, format), 256).facts["perceptual_hash"]), 16)


def test_the_same_picture_is_near_after_what_happens_to_pictures_and_others_are_far() -> None:
    picture = drawn(1, 800, 600)
    original = hash_of(picture)
    versions = [
        hash_of(picture, "JPEG"),
        hash_of(picture.resize((400, 300))),
        hash_of(ImageEnhance.Brightness(picture).enhance(1.05)),
    ]
    assert all((original ^ version).bit_count() <= NEAR_BITS for version in versions)
    strangers = [hash_of(drawn(seed)) for seed in range(2, 10)]
    assert all((left ^ right).bit_count() > 2 * NEAR_BITS for left, right in combinations([original, *strangers], 2))


def test_the_hash_is_that_of_the_stored_crop() -> None:
    made = make_crop(encoded(drawn(4), "PNG"), 256)
    image_CHW = made.files["image.npy"]
    assert isinstance(image_CHW, np.ndarray)
    crop = Image.fromarray(np.ascontiguousarray(image_CHW.transpose(1, 2, 0)))
    assert str(imagehash.phash(crop)) == made.facts["perceptual_hash"]
