"""Which images are held out, and for whom: decided by the id alone, so adding images never moves one to another side.

By the hash of its id modulo 100: 0 and 1 are validation images, 2 is a probe image, the rest is trained on. Probe
images are the judge's own: what decides about a run is neither what it trains on nor what it is ranked by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

HELD_OUT_PERCENT = 2
PROBE_PERCENT = 1
PROBE_IMAGES = 8  # a probe draws at most so many: few enough to be cheap, enough for a sign-flip test to say p < 0.01


class Split(NamedTuple):
    """Disjoint ids: training ids in the given order, validation and probe ids by ascending hash."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    probe: tuple[str, ...]


def id_hash(id: str) -> int:
    """First 8 bytes, big-endian, of SHA-256 of the id."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big")


def is_held_out(id: str) -> bool:
    """Whether the hash of the id modulo 100 is below 2."""
    return id_hash(id) % 100 < HELD_OUT_PERCENT


def is_probe(id: str) -> bool:
    """Whether the hash of the id modulo 100 is 2."""
    return 0 <= id_hash(id) % 100 - HELD_OUT_PERCENT < PROBE_PERCENT


def split(ids: Sequence[str]) -> Split:
    """Sort the ids of a set of n images into its three sides.

    A small set holds out at least max(1, min(8, n / 4)) images for validation and at least max(1, min(8, n / 8)) for
    probes: those of the smallest hashes join the rule's own. Probes never take the last image that could be trained on,
    so a set of two has none.
    """
    least, least_probe = max(1, min(8, len(ids) // 4)), max(1, min(8, len(ids) // 8))
    by_hash = sorted(ids, key=lambda id: (id_hash(id), id))
    held_out = _filled_up([id for id in by_hash if is_held_out(id)], by_hash, least)
    validated = frozenset(held_out)
    others = [id for id in by_hash if id not in validated]
    most = max(0, len(others) - 1)
    probe = _filled_up([id for id in others if is_probe(id)][:most], others, min(most, least_probe))
    chosen = validated.union(probe)
    return Split(tuple(id for id in ids if id not in chosen), tuple(held_out), tuple(probe))


def _filled_up(own: list[str], by_hash: list[str], least: int) -> list[str]:
    """`own` and, where it has fewer than `least`, the next ones of `by_hash`; in the order of `by_hash`."""
    there = frozenset(own)
    more = islice((id for id in by_hash if id not in there), max(0, least - len(own)))
    chosen = there.union(more)
    return [id for id in by_hash if id in chosen]
