"""Which images are held out: decided by the id alone, so adding images never moves one to the other side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

HELD_OUT_PERCENT = 2


def id_hash(id: str) -> int:
    """First 8 bytes, big-endian, of SHA-256 of the id."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big")


def is_held_out(id: str) -> bool:
    """Whether the hash of the id modulo 100 is below 2."""
    return id_hash(id) % 100 < HELD_OUT_PERCENT


def split(ids: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training ids in the given order and held-out ids by ascending hash.

    A small set holds out at least max(1, min(8, n / 4)) images: those of the smallest hashes join the rule's own.
    """
    least = max(1, min(8, len(ids) // 4))
    by_hash = sorted(ids, key=lambda id: (id_hash(id), id))
    held_out = [id for id in by_hash if is_held_out(id)]
    if len(held_out) < least:
        others = [id for id in by_hash if not is_held_out(id)]
        held_out = sorted(held_out + others[: least - len(held_out)], key=lambda id: (id_hash(id), id))
    chosen = frozenset(held_out)
    return tuple(id for id in ids if id not in chosen), tuple(held_out)
