"""Chance for synthetic studies: every draw is a function of a key, so that any step can be measured in any order.

A key is a number made of what the draw is for (seed, profile, arm, stream). Noise of a step comes from a counter-based
hash of (key, step): asking for step 350 alone gives the value that asking for all steps would have given.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def key(*parts: str | int) -> int:
    """64 bits that stand for these parts: the first 8 bytes of the SHA-256 of their compact JSON."""
    text = json.dumps(parts, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def generator(*parts: str | int) -> np.random.Generator:
    """A generator for the parameters of one thing; noise along steps comes from `normals` instead."""
    return np.random.default_rng(key(*parts))


def uniforms(stream: int, counters_N: NDArray[np.int64]) -> Array:
    """Uniform numbers inside (0, 1), one for each counter: SplitMix64 (Steele, Lea, Flood 2014) of stream + counter."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    state = np.uint64(stream) + (counters_N.astype(np.uint64) + np.uint64(1)) * golden
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return ((state >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def normals(stream: int, counters_N: NDArray[np.int64]) -> Array:
    """Standard normal numbers, one for each counter (Box-Muller over two streams of uniform numbers)."""
    radius_N = np.sqrt(-2 * np.log(uniforms(stream, counters_N)))
    value_N: Array = radius_N * np.cos(2 * np.pi * uniforms(key(stream, "angle"), counters_N))
    return value_N


def gumbels(normals_N: Array) -> Array:
    """Gumbel numbers of scale 1 and median 0 with the ranks of these normal ones, so that correlation can be set first.

    The normal distribution function is approximated by a logistic one with a cubic term (error below 2e-4; Page 1977).
    """
    cubic_N = 1.5957691 * normals_N + 0.07135481 * normals_N**3
    share_N = np.clip(1 / (1 + np.exp(-cubic_N)), 1e-9, 1 - 1e-9)
    value_N: Array = -np.log(-np.log(share_N)) + np.log(np.log(2))
    return value_N


def waves(chance: np.random.Generator, sd: float, fastest: float, count: int = 14) -> tuple[Array, Array, Array]:
    """A smooth random function of the share of the budget: amplitudes, frequencies (cycles a budget) and phases."""
    frequencies_K = fastest * chance.random(count) ** 1.5
    return np.full(count, sd * np.sqrt(2 / count)), frequencies_K, 2 * np.pi * chance.random(count)


def along(wave: tuple[Array, Array, Array], shares_N: Array) -> Array:
    """The value of a smooth random function at these shares of the budget."""
    amplitudes_K, frequencies_K, phases_K = wave
    return np.cos(2 * np.pi * np.outer(shares_N, frequencies_K) + phases_K) @ amplitudes_K
