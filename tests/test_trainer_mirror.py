"""Mirrored images: pixels, joints, patch features and words turn together, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.fakes.shards import sample, square_set
from tests.fakes.trainer_parts import NoiseSource, tiny_config
from trainer.check import check
from trainer.data import open_source
from trainer.data.anatomy import MIRRORED_JOINTS, joints_of
from trainer.data.batches import Batches, open_batches
from trainer.data.captions import caption, parse, words
from trainer.data.mirror import mirror, mirror_joints, mirror_patches, mirror_words, names_a_side
from trainer.data.portraits import mirrored, portrait_of
from trainer.data.sample import Sample
from trainer.document import parse_config
from trainer.errors import DataError

ids = st.integers(0, 9999).map(lambda number: f"p{number:06d}")


def test_the_table_of_joints_is_its_own_inverse_and_moves_the_right_ones() -> None:
    table = np.asarray(MIRRORED_JOINTS)
    assert np.array_equal(table[table], np.arange(133))
    # Nose; the middles of jaw, nose and lips: what lies on the mirror's axis stays.
    middle = [0, *(23 + joint for joint in (8, 27, 28, 29, 30, 33, 51, 57, 62, 66))]
    assert np.flatnonzero(table == np.arange(133)).tolist() == middle
    for left, right in ((5, 6), (9, 10), (17, 20), (23, 39), (40, 49), (59, 68), (71, 77), (91, 112), (111, 132)):
        assert MIRRORED_JOINTS[left] == right


@given(ids, st.sampled_from([(64, 64), (76, 52), (44, 84)]))
def test_joints_of_the_mirrored_portrait_are_the_mirrored_joints(id: str, size: tuple[int, int]) -> None:
    portrait = portrait_of(id)
    expected = joints_of(mirrored(portrait), *size)
    np.testing.assert_allclose(mirror_joints(joints_of(portrait, *size)), expected, atol=1e-6)


def test_patches_turn_row_by_row() -> None:
    patches = np.arange(6).reshape(6, 1)
    assert mirror_patches(patches, (2, 3))[:, 0].tolist() == [2, 1, 0, 5, 4, 3]


@given(st.integers(0, 99))
def test_twice_is_as_if_nothing_was(seed: int) -> None:
    draw = np.random.default_rng(seed)
    given = Sample(
        id="a",
        caption="left",
        pixels_HWC=draw.integers(0, 256, (4, 6, 3), dtype=np.uint8),
        patches_PD=draw.standard_normal((6, 5)).astype(np.float16),
        patch_grid=(2, 3),
        pose_J3=draw.standard_normal((133, 3)).astype(np.float16),
        parts_HW=draw.integers(0, 9, (4, 6), dtype=np.uint8),
    )
    once, twice = mirror(given), mirror(mirror(given))
    for name in ("pixels_HWC", "patches_PD", "pose_J3", "parts_HW"):
        assert np.array_equal(getattr(twice, name), getattr(given, name))
        assert not np.array_equal(getattr(once, name), getattr(given, name))
    assert not np.signbit(mirror_joints(np.zeros((133, 3)))).any()


@pytest.mark.parametrize(
    ("text", "turned"),
    [
        ("looking left, hair over the right eye", "looking right, hair over the left eye"),
        ("Left hand, RIGHT foot", "Right hand, LEFT foot"),
        ("leftmost, right-hand, rightwards, left-handed", "rightmost, left-hand, leftwards, right-handed"),
        ("bright leftovers upright", "bright leftovers upright"),
    ],
)
def test_words_turn(text: str, turned: str) -> None:
    assert mirror_words(text) == turned
    assert mirror_words(turned) == text


def test_in_doubt_a_word_names_a_side() -> None:
    assert all(map(names_a_side, ("to the left", "Rightmost", "leftovers")))
    assert not any(map(names_a_side, ("bright", "a copyright", "")))


# ---- sources ---------------------------------------------------------------------------------------------------------


@given(ids)
def test_a_mirrored_portrait_says_what_it_shows(id: str) -> None:
    source = open_source(tiny_config(data={"size": 32, "samples": 2, "held_out": 4}))
    plain, turned = source.load(id), source.mirrored(id)
    assert np.array_equal(turned.pixels_HWC, plain.pixels_HWC[:, ::-1])
    shown = parse(turned.caption)
    assert shown == mirrored(portrait_of(id))
    assert mirror_words(turned.caption) == plain.caption
    assert turned.patch_grid == plain.patch_grid
    assert np.array_equal(turned.text_TD, source.encode_caption(turned.caption))
    symmetric = shown == portrait_of(id)
    assert np.array_equal(turned.cls_D, plain.cls_D) == symmetric
    assert caption(shown, 0) == caption(portrait_of(id), 0) or not symmetric


def test_a_mirrored_photograph_has_its_words_turned(tmp_path: Path) -> None:
    for name in "abcd":
        Image.fromarray(np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
            tmp_path / f"{name}.png"
        )
        (tmp_path / f"{name}.txt").write_text("turned to the left")
    source = open_source(parse_config({"steps": 1, "data": {"source": "folder", "path": str(tmp_path), "size": 8}}))
    id = source.train_ids[0]
    turned = source.mirrored(id)
    assert turned.caption == "turned to the right"
    assert words(turned.caption)[-1] == "right"
    assert np.array_equal(turned.text_TD, source.encode_caption("turned to the right"))
    assert np.array_equal(turned.pixels_HWC, source.load(id).pixels_HWC[:, ::-1])


def shards_of(path: Path, **changes: Any) -> Any:
    data = {"source": "shards", "path": str(path), "size": 32, "flip": 1.0, "workers": 0}
    return parse_config({"steps": 1, "batch": 4, "data": data, **changes})


def test_shards_turn_only_what_no_word_forbids(tmp_path: Path) -> None:
    captions = {"s00": "her left hand", "s01": "a bright portrait"}
    contents = [
        sample(id, 32, 32, json={"caption": captions.get(id, "a portrait")}) for id in (f"s{n:02d}" for n in range(20))
    ]
    square_set(tmp_path, contents)
    config = shards_of(tmp_path)
    source = open_source(config)
    assert np.array_equal(source.mirrored("s00").pixels_HWC, source.load("s00").pixels_HWC)
    plain, turned = source.load("s01"), source.mirrored("s01")
    assert np.array_equal(turned.pixels_HWC, plain.pixels_HWC[:, ::-1])
    assert np.array_equal(turned.patches_PD, mirror_patches(plain.patches_PD, (2, 2)))
    assert np.array_equal(turned.pose_J3, mirror_joints(plain.pose_J3))
    assert np.array_equal(turned.text_TD, plain.text_TD)
    without_words = open_source(shards_of(tmp_path, streams={"text": "off"}))
    assert not np.array_equal(without_words.mirrored("s00").pixels_HWC, source.load("s00").pixels_HWC)
    notes = check(1, config.model_dump(mode="json"))["notes"]
    assert any("only images whose caption has no word left or right" in note for note in notes)


# ---- the draw --------------------------------------------------------------------------------------------------------


def test_each_position_of_each_step_draws_for_itself() -> None:
    config = tiny_config(data={"size": 16, "samples": 40, "held_out": 4, "flip": 0.5})
    source = open_source(config)
    plain, turned = Batches(source, 3, 8), open_batches(tiny_config(batch=8, data=config.data.model_dump()), source, 3)
    shares = []
    for step in range(8):
        whole, reference = turned.batch(step, range(8)), plain.batch(step, range(8))
        assert whole.ids == reference.ids
        is_turned = (whole.pixels_BCHW != reference.pixels_BCHW).flatten(1).any(dim=1)
        flipped = reference.pixels_BCHW.flip(3)
        expected = torch.where(is_turned[:, None, None, None], flipped, reference.pixels_BCHW)
        assert torch.equal(whole.pixels_BCHW, expected)
        parts = [turned.batch(step, [position]).pixels_BCHW for position in range(8)]
        assert torch.equal(torch.cat(parts), whole.pixels_BCHW)
        shares += is_turned.tolist()
    assert 0.3 < sum(shares) / len(shares) < 0.7


def test_a_source_that_cannot_mirror_is_refused() -> None:
    with pytest.raises(DataError, match=r"data.flip 0.5: this source cannot mirror"):
        Batches(NoiseSource(tiny_config(), 0), 0, 4, flip=0.5)
