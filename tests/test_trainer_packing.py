"""Which samples share a cross-attention."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.trainer_parts import random_conditions, random_model
from trainer import randomness
from trainer.data.sample import Conditions
from trainer.model import packing
from trainer.model.packing import GROUP_OPERATIONS, MOST_RUNS, operations_per_token, partition

LENGTHS = st.lists(st.tuples(*[st.integers(1, 40)] * 3), min_size=1, max_size=9)


def work(lengths: list[tuple[int, ...]], sizes: tuple[int, ...], per_token: float) -> float:
    total, start = 0.0, 0
    for size in sizes:
        part = lengths[start : start + size]
        total += GROUP_OPERATIONS + size * sum(map(max, zip(*part, strict=True))) * per_token
        start += size
    return total


def every_partition(count: int) -> list[tuple[int, ...]]:
    cuts = [[0, *(place for place in range(1, count) if bits >> place & 1), count] for bits in range(0, 2**count, 2)]
    return [tuple(end - start for start, end in pairwise(places)) for places in cuts]


@given(LENGTHS, st.sampled_from([0.0, 1e5, 1e6, 1e7, 1e9]))
def test_no_other_partition_is_less_work(lengths: list[tuple[int, ...]], per_token: float) -> None:
    found = partition(lengths, per_token)
    assert sum(found) == len(lengths)
    least = min(work(lengths, sizes, per_token) for sizes in every_partition(len(lengths)))
    assert work(lengths, found, per_token) == pytest.approx(least)


def test_equal_samples_are_one_group_and_many_changes_are_not_worth_looking_at() -> None:
    assert partition([(3, 1)] * 64, 1e9) == (64,)
    assert partition([(index, 1) for index in range(MOST_RUNS)], 1e12) == (1,) * MOST_RUNS
    assert partition([(index, 1) for index in range(MOST_RUNS + 1)], 1e12) == (MOST_RUNS + 1,)


def test_small_models_keep_their_groups_together_and_large_ones_do_not() -> None:
    """A caption of 256 tokens beside all 601, in the model of the quickstart and in one of 192 channels."""
    lengths = [(256, 1, 211, 133), (256, 1, 1, 1)]
    assert partition(lengths, operations_per_token(16, 16)) == (2,)
    assert partition(lengths, operations_per_token(192, 256)) == (1, 1)


PRESENT = {  # all, words alone, nothing, all, joints alone, nothing
    "text": torch.tensor([True, True, False, True, False, False]),
    "cls": torch.tensor([True, False, False, True, False, False]),
    "patches": torch.tensor([True, False, False, True, False, False]),
    "pose": torch.tensor([True, False, False, True, True, False]),
}


def test_lengths_are_those_of_what_is_there() -> None:
    conditions = random_conditions(6)
    words = conditions.text_mask_BT.sum(dim=1).tolist()
    found = random_model().conditioning.lengths(conditions, PRESENT, 6)
    assert [dict(zip(random_model().conditioning.embed, each, strict=True)) for each in found] == [
        {"text": words[0], "cls": 1, "patches": 16, "pose": 9},
        {"text": words[1], "cls": 1, "patches": 1, "pose": 1},
        {"text": 1, "cls": 1, "patches": 1, "pose": 1},
        {"text": words[3], "cls": 1, "patches": 16, "pose": 9},
        {"text": 1, "cls": 1, "patches": 1, "pose": 9},
        {"text": 1, "cls": 1, "patches": 1, "pose": 1},
    ]
    nothing = random_model().conditioning.lengths(Conditions(), {}, 2)
    assert nothing == [(1, 1, 1, 1)] * 2


@pytest.mark.parametrize("price", [0.0, 1e3, 1e12])
def test_who_shares_a_group_changes_no_prediction(monkeypatch: pytest.MonkeyPatch, price: float) -> None:
    """Everybody alone, groups in between, everybody together, and the two groups of a GPU."""
    built, conditions = random_model(), random_conditions(6)
    z = randomness.normal((6, 3, 8, 8), 0, "noise", 0)
    t_B = torch.linspace(0.1, 0.9, 6)
    built.few_shapes = True
    expected = built(z, t_B, conditions, PRESENT).x_BCHW
    built.few_shapes = False
    monkeypatch.setattr(packing, "GROUP_OPERATIONS", price)
    sizes = built._sizes_by_work(z, conditions, PRESENT)
    assert len(sizes) == {0.0: 6, 1e3: len(sizes), 1e12: 1}[price]
    torch.testing.assert_close(built(z, t_B, conditions, PRESENT).x_BCHW, expected, rtol=1e-4, atol=1e-5)


def test_a_group_in_which_all_counts_has_no_mask() -> None:
    conditions = random_conditions(6)
    alone = random_model().conditioning(conditions, PRESENT, (1,) * 6)
    assert all(group.mask_G11S is None for group in alone.groups)
    assert [group.tokens_GSD.shape[1] for group in alone.groups] == [
        sum(each) for each in random_model().conditioning.lengths(conditions, PRESENT, 6)
    ]
    assert random_model().conditioning(conditions, PRESENT, (6,)).groups[0].mask_G11S is not None
