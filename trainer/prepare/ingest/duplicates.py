"""Images that look the same: pairs of perceptual hashes that differ in few bits.

Two hashes that differ in at most d bits agree in at least one of any d + 1 blocks that the bits are divided into (the
pigeonhole principle), so only images that share a block are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from trainer.prepare.manifest import ImageEntry

HASH_BITS = 64
NEAR_BITS = 4
"""Hashes that differ in at most so many of 64 bits count as the same picture; strangers differ in about half."""


def near_duplicates(entries: Sequence[ImageEntry], near_bits: int = NEAR_BITS) -> list[tuple[ImageEntry, ...]]:
    """Groups of two and more images that look the same, in the order of their first ones.

    Two images are in one group if a chain of near pairs leads from one to the other.
    """
    hashes_N = np.array([int(entry.perceptual_hash, 16) for entry in entries], dtype=np.uint64)
    unique_U, which_N = np.unique(hashes_N, return_inverse=True)
    leader_U = list(range(len(unique_U)))

    def leader(index: int) -> int:
        while leader_U[index] != index:
            leader_U[index] = index = leader_U[leader_U[index]]
        return index

    for first, second in near_pairs(unique_U, near_bits):
        leader_U[leader(first)] = leader(second)
    groups: dict[int, list[ImageEntry]] = {}
    for entry, index in zip(entries, which_N.tolist(), strict=True):
        groups.setdefault(leader(index), []).append(entry)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def near_pairs(hashes_N: np.ndarray, near_bits: int) -> Iterator[tuple[int, int]]:
    """Pairs of indices of uint64 hashes that differ in at most `near_bits` bits; a pair may come more than once."""
    edges = np.linspace(0, HASH_BITS, near_bits + 2).round().astype(int).tolist()
    for low, high in pairwise(edges):
        block_N = (hashes_N >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order_N = np.argsort(block_N, kind="stable")
        sorted_N = block_N[order_N]
        starts = np.arange(len(hashes_N) - 1)
        lag = 1
        while len(starts := starts[starts + lag < len(hashes_N)]):
            # Blocks are sorted: where one differs `lag` places on, so does every later one.
            starts = starts[sorted_N[starts] == sorted_N[starts + lag]]
            firsts, seconds = order_N[starts], order_N[starts + lag]
            near = _differing_bits(hashes_N[firsts], hashes_N[seconds]) <= near_bits
            yield from zip(firsts[near].tolist(), seconds[near].tolist(), strict=True)
            lag += 1


def _differing_bits(left_N: np.ndarray, right_N: np.ndarray) -> np.ndarray:
    bytes_N8 = np.bitwise_xor(left_N, right_N).view(np.uint8).reshape(-1, 8)
    bits_N: np.ndarray = np.unpackbits(bytes_N8, axis=1).sum(axis=1)
    return bits_N
