"""The sizes at which a set can be stored. No torch."""

from __future__ import annotations

from trainer.data.buckets import BUCKETS
from trainer.data.shard_set import FEATURE_CELL
from trainer.errors import UsageError

SMALLEST_SIDE, LARGEST_SIDE = 256, 4096
SIDES = tuple(
    side
    for side in range(SMALLEST_SIDE, LARGEST_SIDE + 1, FEATURE_CELL)
    if all(
        (size := bucket.scaled(side)) is not None and not (size[0] % FEATURE_CELL or size[1] % FEATURE_CELL)
        for bucket in BUCKETS
    )
)
"""Sides of the square bucket in pixels at which all seven buckets are whole cells of 16 pixels."""


def check_side(side: int) -> None:
    """Raise UsageError for a side at which some bucket has no whole number of feature cells."""
    if side not in SIDES:
        listed = ", ".join(str(allowed) for allowed in SIDES[:6])
        raise UsageError(f"--side {side}: allowed are the multiples of {SIDES[0]}: {listed}, …")
