"""Which samples of a micro-batch share one cross-attention, when their conditions differ in length.

In a group every stream is as long as its longest copy, and shorter samples are masked. Few groups compute tokens that
nobody looks at; many cost calls. On a CPU both are weighed; on a GPU, where shapes should repeat, there are at most two
groups (`conditioning.long_first`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

GROUP_OPERATIONS = 60e6
"""What one more group costs per block, forth and back, in operations of one core: about half a millisecond."""
MOST_RUNS = 24


def operations_per_token(width: int, tokens: int) -> float:
    """Operations of one block for one condition token of one sample, forth and back.

    Its key and value (width x width each), and its product with every one of `tokens` image tokens, twice; a
    multiply-add counts as two, forward and backward as three forwards.
    """
    return 3.0 * (4.0 * width**2 + 4.0 * tokens * width)


def partition(lengths: Sequence[tuple[int, ...]], per_token: float) -> tuple[int, ...]:
    """Sizes of consecutive groups with the least work; `lengths` holds the length of every stream, sample by sample.

    A group of G samples costs G times the sum of its longest streams times `per_token` operations, and
    `GROUP_OPERATIONS`. Exact, unless the samples change in length more than `MOST_RUNS` times: then there is one group.
    """
    runs = [(length, len(list(same))) for length, same in groupby(lengths)]
    if len(runs) > MOST_RUNS:
        return (len(lengths),)
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]  # of the first 0, 1, 2, ... runs
    for end in range(1, len(runs) + 1):
        best.append(min(_ending(runs, best, end, per_token)))
    return best[-1][1]


def _ending(
    runs: Sequence[tuple[tuple[int, ...], int]],
    best: Sequence[tuple[float, tuple[int, ...]]],
    end: int,
    per_token: float,
) -> list[tuple[float, tuple[int, ...]]]:
    """Work and sizes of the first `end` runs, for every place where their last group may begin."""
    found = []
    longest, size = runs[end - 1][0], 0
    for start in range(end - 1, -1, -1):
        longest = tuple(map(max, longest, runs[start][0]))
        size += runs[start][1]
        work = best[start][0] + GROUP_OPERATIONS + size * sum(longest) * per_token
        found.append((work, (*best[start][1], size)))
    return found
