"""Which samples share a cross-attention."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
