"""Thresholds that measure how bad something is, and how a replay scales them.

A level is a percentage, a number of deviations or a projection. Counts, spans and shares of the budget are no levels:
they say when there is enough to judge by, and stay as they are. Each detector states its own levels in `LEVELS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

Levels = Mapping[str, float]
"""The levels of one detector by their short names, as it should use them now."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Factors on the levels of all detectors: one for all, and others by full name (`regress.persistent`)."""

    factor: float = 1.0
    named: Mapping[str, float] = field(default_factory=dict)

    def of(self, detector: str, levels: Levels) -> Levels:
        """The levels of one detector, scaled."""
        if self.factor == 1.0 and not self.named:
            return levels
        return {name: level * self.named.get(f"{detector}.{name}", self.factor) for name, level in levels.items()}


def read_scaling(texts: tuple[str, ...], known: tuple[str, ...]) -> Scaling:
    """What `--scale-thresholds` says: numbers above 0, or NAME=number with a name of `known`; a later one holds.

    Raises ValueError with a sentence for a person.
    """
    factor, named = 1.0, {}
    for text in texts:
        name, has_name, number = text.rpartition("=")
        if has_name and name not in known:
            raise ValueError(f"{name!r:.60} is no level; allowed: {', '.join(known)}")
        try:
            value = float(number)
        except ValueError:
            raise ValueError(f"{text!r:.60} is neither a number nor NAME=number") from None
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{text!r:.60}: a factor is a finite number above 0")
        if has_name:
            named[name] = value
        else:
            factor = value
    return Scaling(factor, named)
