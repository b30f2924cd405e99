"""Money arithmetic: how long something was used, what that costs, and how long the rest of the money lasts. Pure.

Times are seconds since the epoch, durations seconds, money US dollars.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from provisioning.base import Slot


@dataclass(frozen=True, slots=True)
class Rate:
    """What an hour costs: the price of the whole host, and the share (0 to 1) of it that one slot is."""

    price_usd_per_h: float = 0.0
    share: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.price_usd_per_h) and self.price_usd_per_h >= 0.0):
            raise ValueError(f"price_usd_per_h {self.price_usd_per_h}: allowed: a finite number from 0")
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share {self.share}: allowed: 0 to 1")

    @property
    def usd_per_h(self) -> float:
        """US dollars for an hour of the slot."""
        return self.price_usd_per_h * self.share


@dataclass(frozen=True, slots=True)
class Usage:
    """One stretch of use of one slot, from `started` (None: not yet) to `ended` (None: still going on)."""

    started: float | None
    ended: float | None = None
    rate: Rate = Rate()


@dataclass(frozen=True, slots=True)
class Spent:
    """Slot hours and US dollars."""

    hours: float = 0.0
    usd: float = 0.0


def used_s(usage: Usage, now: float, *, known_s: float = 0.0, passed_s: float = 0.0) -> float:
    """Seconds of one stretch so far.

    A clock may be set back at any time, so the wall clock alone can neither give back time that was `known_s` before
    nor stand still: while the use goes on, `passed_s` (seconds on a clock that never runs backwards, since `known_s`
    was found) counts at least.
    """
    if usage.started is None:
        return max(0.0, known_s)
    end = now if usage.ended is None else usage.ended
    at_least_s = known_s if usage.ended is not None else known_s + max(0.0, passed_s)
    return max(0.0, at_least_s, end - usage.started)


def spent(stretches: Sequence[tuple[float, Rate]]) -> Spent:
    """The sum over (seconds, rate)."""
    return Spent(
        hours=math.fsum(seconds for seconds, _ in stretches) / 3600.0,
        usd=math.fsum(seconds * rate.usd_per_h for seconds, rate in stretches) / 3600.0,
    )


def affordable_s(left_usd: float, rate: Rate) -> float:
    """Seconds that the money lasts; infinite where nothing is paid for, 0 when it is used up."""
    if rate.usd_per_h == 0.0:
        return math.inf
    return max(0.0, left_usd) / rate.usd_per_h * 3600.0


def share_of(slot: Slot, slots: Sequence[Slot]) -> float:
    """The share (0 to 1) of its host that a slot is: by GPUs where it has some, else by the number of slots."""
    if slot.gpu_uuids:
        gpus = {uuid for one in (slot, *slots) for uuid in one.gpu_uuids}
        return len(slot.gpu_uuids) / len(gpus)
    return 1.0 / len({slot.name, *(one.name for one in slots)})
