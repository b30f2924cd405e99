"""Is a checkpoint worse on the very same samples? An exact test on paired per-sample scores.

Every validation uses the same samples and the same noise, so the difference of two checkpoints sample by sample is
much quieter than either mean. The test asks how often flipping the signs of the differences at random would give a sum
as large as the one seen (Fisher's randomisation test for pairs). It shows that a checkpoint is worse, never that the
run is lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

# With fewer pairs the smallest possible p is not small enough to mean anything.
FEWEST_PAIRS = 10
# Differences are counted in this many units of the largest one: the distribution is then exact on integers.
UNITS = 200


def differences(before: Mapping[str, float], after: Mapping[str, float], sign: float = 1.0) -> list[float]:
    """after - before for every sample that both have as a finite value, in the order of the sample's name, times `sign`
    (1 where lower is better, -1 where higher is). A difference too large for a number is left out."""
    found = (sign * (after[name] - before[name]) for name in sorted(before.keys() & after.keys()))
    return [one for one in found if math.isfinite(one)]


def sign_flip_p(pairs: Sequence[float]) -> float | None:
    """One-sided p-value, 0 to 1, of "no worse on average"; None for fewer than ten pairs, where none would convince.

    Exact up to the rounding of each difference to 1/200 of the largest; linear in the number of possible sums.
    """
    if len(pairs) < FEWEST_PAIRS:
        return None
    largest = max(map(abs, pairs))
    if largest == 0:
        return 1.0
    units = [round(UNITS * (abs(pair) / largest)) for pair in pairs]
    observed = sum(unit if pair > 0 else -unit for unit, pair in zip(units, pairs, strict=True))
    ways = [1]  # ways[s]: in how many choices the flipped ones sum to s units
    for unit in units:
        longer = ways + [0] * unit
        for total, count in enumerate(ways):
            longer[total + unit] += count
        ways = longer
    whole = sum(units)
    # A choice whose positive part is s has the sum 2 s - whole.
    as_large = sum(count for total, count in enumerate(ways) if 2 * total - whole >= observed)
    return float(as_large / 2 ** len(units))
