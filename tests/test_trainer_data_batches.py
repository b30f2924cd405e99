"""Splitting, ordering and batching."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.data import open_source
from trainer.data.batches import Batches
from trainer.data.sample import Batch, Conditions, Sample, collate, to_unit_range
from trainer.data.split import id_hash, is_held_out, is_probe, split
from trainer.document import parse_config
from trainer.errors import DataError


def source(samples: int = 20, held_out: int = 4, **blocks: object):
    data = {"size": 16, "samples": samples, "held_out": held_out}
    validation = {"samples": held_out}
    return open_source(parse_config({"steps": 4, "data": data, "validation": validation, **blocks}), 0)


# ---- split -----------------------------------------------------------------------------------------------------------


def test_the_rule_is_the_hash_modulo_one_hundred() -> None:
    first = int.from_bytes(hashlib.sha256(b"p000000").digest()[:8], "big")
    assert id_hash("p000000") == first
    assert is_held_out("p000000") == (first % 100 < 2)
    numbers = {id: id_hash(id) % 100 for id in (f"image-{index}" for index in range(3000))}
    assert set(numbers.values()) == set(range(100))
    assert all(is_held_out(id) == (number < 2) for id, number in numbers.items())
    assert all(is_probe(id) == (number == 2) for id, number in numbers.items())


@given(st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=300))
def test_a_split_is_complete_disjoint_and_holds_enough_out(ids: set[str]) -> None:
    train, held_out, probe = split(sorted(ids))
    assert set(train) | set(held_out) | set(probe) == ids
    assert len(train) + len(held_out) + len(probe) == len(ids)
    assert train, "something must be left to train on"
    assert len(probe) >= min(max(1, min(8, len(ids) // 8)), len(ids) - len(held_out) - 1)
    assert len(train) == 1 or {id for id in ids if is_probe(id)} <= {*held_out, *probe}
    assert list(probe) == sorted(probe, key=id_hash)
    assert len(held_out) >= max(1, min(8, len(ids) // 4))
    assert {id for id in ids if is_held_out(id)} <= set(held_out)
    assert list(held_out) == sorted(held_out, key=id_hash)


def test_a_small_set_adds_the_smallest_hashes() -> None:
    ids = [f"image-{index}" for index in range(16)]
    own = [id for id in ids if is_held_out(id)]
    expected = own + [id for id in sorted(ids, key=id_hash) if id not in own][: 4 - len(own)]
    assert set(split(ids)[1]) == set(expected)


def test_a_large_set_holds_out_what_the_rule_says() -> None:
    ids = [f"image-{index}" for index in range(5000)]
    assert set(split(ids)[1]) == {id for id in ids if is_held_out(id)}


def test_more_training_portraits_leave_the_validation_alone() -> None:
    small, large = source(20, 4), source(200, 4)
    assert small.held_out_ids == large.held_out_ids
    assert large.train_ids[:20] == small.train_ids
    assert len(large.train_ids) == 200
    assert not set(large.train_ids) & set(source(20, 50).held_out_ids)


def test_probe_portraits_are_a_third_side_that_nothing_moves() -> None:
    small, large = source(20, 4), source(1000, 60)
    assert small.probe_ids == large.probe_ids
    assert len(small.probe_ids) == 8
    assert all(is_probe(id) for id in small.probe_ids)
    assert not set(large.probe_ids) & {*large.train_ids, *large.held_out_ids}
    assert not any(is_probe(id) or is_held_out(id) for id in large.train_ids)


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_pixels_change_range_at_one_point_and_hit_both_ends() -> None:
    x = to_unit_range(torch.arange(256, dtype=torch.uint8))
    assert x[0] == -1.0
    assert x[255] == 1.0
    assert x.dtype == torch.float32
    assert torch.equal(((x + 1) * 127.5).round().byte(), torch.arange(256, dtype=torch.uint8))
    with pytest.raises(AssertionError, match="uint8"):
        to_unit_range(x)


def test_a_procedural_sample_has_all_streams_in_half_precision() -> None:
    images = source()
    sample = images.load(images.train_ids[0])
    assert (sample.pixels_HWC.shape, sample.pixels_HWC.dtype) == ((16, 16, 3), np.uint8)
    streams = images.streams
    assert sample.text_TD is not None
    assert sample.text_TD.shape == (streams.text_length, streams.text_width)
    assert sample.cls_D is not None
    assert sample.cls_D.shape == (streams.cls_width,)
    assert sample.patches_PD is not None
    assert sample.patches_PD.shape == (sample.patch_grid[0] * sample.patch_grid[1], streams.patch_width)
    assert sample.pose_J3 is not None
    assert sample.pose_J3.shape == (streams.pose_joints, 3)
    assert {sample.text_TD.dtype, sample.cls_D.dtype, sample.patches_PD.dtype, sample.pose_J3.dtype} == {np.dtype("f2")}
    assert images.load(images.train_ids[0]) is sample, "a portrait is drawn once"


def test_streams_that_are_off_are_not_made() -> None:
    images = source(streams={"cls": "off", "pose": "off"})
    sample = images.load(images.held_out_ids[0])
    assert sample.cls_D is None
    assert sample.pose_J3 is None
    assert sample.patches_PD is not None
    assert (images.streams.cls_width, images.streams.pose_joints) == (0, 0)


def test_an_edit_is_exact() -> None:
    images = source(held_out=30)
    for id in images.held_out_ids:
        edit, sample = images.edit(id), images.load(id)
        differs_HW = (edit.pixels_HWC != sample.pixels_HWC).any(axis=2)
        np.testing.assert_array_equal(edit.region_HW, differs_HW)
        assert 0 < edit.region_HW.mean() < 1
        assert len({edit.caption, edit.paraphrase, sample.caption}) == 3


def text_sample(tokens: int) -> Sample:
    return Sample("x", "", np.zeros((2, 2, 3), np.uint8), text_TD=np.ones((tokens, 4), np.float16))


def test_text_is_padded_to_the_longest_of_the_batch() -> None:
    conditions = collate([text_sample(2), text_sample(5), text_sample(1)]).conditions
    assert conditions.text_BTD is not None
    assert conditions.text_mask_BT is not None
    assert conditions.text_BTD.shape == (3, 5, 4)
    assert conditions.text_mask_BT.sum(dim=1).tolist() == [2, 5, 1]
    assert torch.equal(conditions.text_BTD[..., 0].bool(), conditions.text_mask_BT)
    assert conditions.streams == ("text",)


def test_conditions_select_keep_and_move() -> None:
    batch = whole_batch()
    chosen = batch.conditions.select(torch.tensor([2, 0]))
    assert chosen.patch_grid == batch.conditions.patch_grid
    for name in ("text_BTD", "text_mask_BT", "cls_BD", "patches_BPD", "pose_BJ3"):
        assert torch.equal(getattr(chosen, name), getattr(batch.conditions, name)[[2, 0]])
    assert torch.equal(
        batch.conditions.select(torch.tensor([True, False, False, True])).cls_BD, batch.conditions.cls_BD[[0, 3]]
    )
    assert batch.conditions.keep(("text", "pose")).streams == ("text", "pose")
    assert batch.conditions.keep(()).streams == ()
    moved = batch.to("cpu").conditions
    assert moved.cls_BD.dtype == torch.float32
    assert moved.text_mask_BT.dtype == torch.bool
    assert batch.conditions.cls_BD.dtype == torch.float16


def whole_batch() -> Batch:
    return Batches(source(), 0, 4).batch(0, range(4))


def test_absent_streams_stay_absent() -> None:
    assert Conditions().select(torch.tensor([0])).to("cpu") == Conditions()


# ---- order -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 16), st.integers(0, 3))
def test_epochs_are_permutations(size: int, batch: int, seed: int) -> None:
    batches = Batches(source(size), seed, batch)
    steps = -(-3 * size // batch)
    sequence = [id for step in range(steps) for id in batches.ids(step, range(batch))]
    for epoch in range(3):
        assert Counter(sequence[epoch * size : (epoch + 1) * size]) == Counter(batches.source.train_ids)


def test_a_batch_depends_on_seed_step_and_position_only() -> None:
    images = source()
    straight = Batches(images, 5, 8)
    sequence = [straight.ids(step, range(8)) for step in range(12)]
    for step in (11, 0, 7):
        fresh = Batches(images, 5, 8)
        assert fresh.ids(step, range(8)) == sequence[step]
        assert fresh.ids(step, [3, 4]) == sequence[step][3:5]
    assert Batches(images, 6, 8).ids(0, range(8)) != sequence[0]
    assert [id for step in range(6) for id in Batches(images, 5, 16).ids(step, range(16))] == [
        id for part in sequence for id in part
    ]


def test_micro_batches_are_parts_of_the_effective_batch() -> None:
    batches = Batches(source(), 1, 8)
    whole, part = batches.batch(3, range(8)), batches.batch(3, range(4, 8))
    assert part.ids == whole.ids[4:]
    assert part.captions == whole.captions[4:]
    assert torch.equal(part.pixels_BCHW, whole.pixels_BCHW[4:])
    assert torch.equal(part.conditions.pose_BJ3, whole.conditions.pose_BJ3[4:])


def test_nothing_to_train_on_is_refused() -> None:
    images = source()
    images.train_ids = ()
    with pytest.raises(DataError, match="no training images"):
        Batches(images, 0, 4)
