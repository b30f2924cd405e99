"""What a rented machine costs: before it is taken, while it is held, at most, and whose share it was. Pure.

The provider's rules (notes of its documentation, "billing"): the GPUs cost only while the container runs, the disk from
the creation to the destruction, stopped or not, and every byte in and out. Times are seconds since the epoch, durations
seconds, sizes bytes or GB of 10**9 bytes, money US dollars.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

BYTES_PER_GB = 1e9

SURE_GAP_S = 150.0
"""Between two observations so far apart a change is dated to the middle: two rounds of looking at a machine that is
quiet. What happened in a longer silence nobody knows: with a change in it all of it counts as running, until the
provider's bill says more."""

TRAFFIC_RESERVE = 1.25
"""Traffic is billed without a limit; the ceiling allows a quarter more than was foreseen."""

FROZEN = "frozen"
"""Paused in a way that keeps its GPUs: a meter knows it as this, everybody else as halted."""

GPU_STAGES = frozenset({"running", "reachable", FROZEN})
"""Stages in which the GPUs are paid for."""

FREE_STAGES = frozenset({"offline", "gone"})
"""Stages in which not even the disk is: a host that the provider does not reach is not billed."""


@dataclass(frozen=True, slots=True)
class Prices:
    """GPUs and disk in USD an hour for the whole order, traffic in USD a GB each way. Raises ValueError for what is no
    price: negative, not finite."""

    gpu_usd_per_h: float = 0.0
    storage_usd_per_h: float = 0.0
    up_usd_per_gb: float = 0.0
    down_usd_per_gb: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name} {value!r}: allowed: a finite number from 0")

    @property
    def usd_per_h(self) -> float:
        """An hour of the machine while it runs, without traffic."""
        return self.gpu_usd_per_h + self.storage_usd_per_h


@dataclass(frozen=True, slots=True)
class Terms:
    """What was agreed on before a machine was taken: prices, how long it may live, and the traffic foreseen in GB."""

    prices: Prices
    ttl_s: float
    up_gb: float = 0.0
    down_gb: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("ttl_s", 1.0), ("up_gb", 0.0), ("down_gb", 0.0)):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= least):
                raise ValueError(f"{name} {value!r}: allowed: a finite number from {least:g}")

    @property
    def traffic_usd(self) -> float:
        """The traffic foreseen."""
        return self.up_gb * self.prices.up_usd_per_gb + self.down_gb * self.prices.down_usd_per_gb

    @property
    def ceiling_usd(self) -> float:
        """The most that it may cost: running from the first second to the end of its life."""
        return self.prices.usd_per_h * self.ttl_s / 3600.0 + self.traffic_usd


@dataclass(frozen=True, slots=True)
class Meter:
    """What one machine has used up to `at_s`, when it was last seen in `stage`.

    `doubtful_s` are the seconds of all long silences.
    """

    at_s: float
    stage: str
    gpu_s: float = 0.0
    storage_s: float = 0.0
    up_bytes: int = 0
    down_bytes: int = 0
    doubtful_s: float = 0.0

    def usd(self, prices: Prices) -> float:
        """The cost so far."""
        return math.fsum(
            (
                self.gpu_s * prices.gpu_usd_per_h / 3600.0,
                self.storage_s * prices.storage_usd_per_h / 3600.0,
                self.up_bytes / BYTES_PER_GB * prices.up_usd_per_gb,
                self.down_bytes / BYTES_PER_GB * prices.down_usd_per_gb,
            )
        )

    def until(self, at_s: float, stage: str | None = None) -> Meter:
        """The meter at a later time, when the machine was seen in `stage` (None: nobody looked, it counts as before).
        Time that does not move on, as on a clock that was set back, adds nothing and takes nothing away."""
        stage = self.stage if stage is None else stage
        span_s = at_s - self.at_s
        if span_s <= 0.0:
            return replace(self, stage=stage)
        is_long = span_s > SURE_GAP_S
        # A machine that is gone had not changed before; it lived to the end of the silence for all that is known.
        ends = self.stage if is_long and stage == "gone" else stage
        is_unknown = is_long and ends != self.stage
        gpu = _billed_s(self.stage in GPU_STAGES, ends in GPU_STAGES, is_unknown, span_s)
        storage = _billed_s(self.stage not in FREE_STAGES, ends not in FREE_STAGES, is_unknown, span_s)
        return replace(
            self,
            at_s=at_s,
            stage=stage,
            gpu_s=self.gpu_s + gpu,
            storage_s=self.storage_s + storage,
            doubtful_s=self.doubtful_s + (span_s if is_long else 0.0),
        )

    def moved(self, up_bytes: int, down_bytes: int) -> Meter:
        """With more traffic out of and into the machine. Raises ValueError for less."""
        if up_bytes < 0 or down_bytes < 0:
            raise ValueError(f"traffic only grows: {up_bytes} and {down_bytes} bytes")
        return replace(self, up_bytes=self.up_bytes + up_bytes, down_bytes=self.down_bytes + down_bytes)


def _billed_s(was: bool, is_now: bool, is_unknown: bool, span_s: float) -> float:
    """Billed seconds of a span that began in one state and was seen to end in another."""
    if is_unknown:
        return span_s
    return span_s * (was + is_now) / 2.0


def outlook_usd(meter: Meter, terms: Terms, ttl_end_s: float, now_s: float) -> float:
    """The most that a machine that is held will have cost at the end of its life: what it cost until now, the dearest
    hour for the rest, and what the foreseen traffic has left."""
    so_far = meter.until(now_s)
    moved_usd = (
        so_far.up_bytes / BYTES_PER_GB * terms.prices.up_usd_per_gb
        + so_far.down_bytes / BYTES_PER_GB * terms.prices.down_usd_per_gb
    )
    rest_usd = max(0.0, ttl_end_s - now_s) / 3600.0 * terms.prices.usd_per_h
    return so_far.usd(terms.prices) + rest_usd + max(0.0, terms.traffic_usd - moved_usd)


def why_unaffordable(ceiling_usd: float, bound_usd: float, max_usd: float | None) -> str:
    """Why an order of this ceiling may not be placed beside what is spent and bound already; '' when it may."""
    if max_usd is None or ceiling_usd + bound_usd <= max_usd:
        return ""
    return (
        f"it may cost {ceiling_usd:.2f} USD and {bound_usd:.2f} USD are spent or bound already; "
        f"max_usd is {max_usd:.2f}"
    )


@dataclass(frozen=True, slots=True)
class Bill:
    """What one machine cost: by our meter, and by the provider (None: it has not said).

    `is_whole`: the provider was asked for the last time. Until then it may have more to charge.
    """

    metered_usd: float
    charged_usd: float | None = None
    is_whole: bool = True

    @property
    def usd(self) -> float:
        """What it cost as far as anybody knows: the provider's word, else ours."""
        return self.metered_usd if self.charged_usd is None else self.charged_usd

    @property
    def bound_usd(self) -> float:
        """What counts against a limit: until the provider's last word no less than ours, for half a bill frees none."""
        return self.usd if self.is_whole else max(self.metered_usd, self.usd)


@dataclass(frozen=True, slots=True)
class Share:
    """One run's part of a machine's cost: the slot time that it used, and its part of the time that nobody did."""

    used_usd: float
    idle_usd: float

    @property
    def usd(self) -> float:
        """Both together."""
        return self.used_usd + self.idle_usd


def split(usd: float, slots: int, held_s: float, used_s: Mapping[str, float]) -> dict[str, Share]:
    """A machine's cost over the runs that used it, by slot seconds; '' takes all of it where no run did.

    `slots` is how many it was cut into, `held_s` how long it was held. The time that no run used (boot, staging, sync,
    waiting) is shared by the same weights and kept apart. All parts together are the whole: what rounding leaves goes
    to the largest part. Raises ValueError for less than one slot or anything negative.
    """
    if slots < 1 or held_s < 0.0 or usd < 0.0 or any(not 0.0 <= seconds < math.inf for seconds in used_s.values()):
        raise ValueError(f"a split needs slots >= 1 and nothing negative: {slots} slots, {held_s} s, {usd} USD")
    together_s = math.fsum(used_s.values())
    if together_s <= 0.0:
        return {"": Share(0.0, usd)}
    # More slot seconds than the machine had are a matter of two clocks; then nothing was idle.
    used_usd = usd * (together_s / max(together_s, slots * held_s))
    idle_usd = usd - used_usd
    weights = {run: seconds / together_s for run, seconds in used_s.items() if seconds > 0.0}
    shares = {run: Share(used_usd * weight, idle_usd * weight) for run, weight in weights.items()}
    most = max(shares, key=lambda run: shares[run].usd)
    rest_usd = usd - math.fsum(share.usd for share in shares.values())
    shares[most] = replace(shares[most], used_usd=max(0.0, shares[most].used_usd + rest_usd))
    return shares


def grouped(shares: Mapping[str, Share], group_of: Mapping[str, str]) -> dict[str, Share]:
    """The shares of runs added up by what they belong to (an arm, a study). Raises KeyError for a run without one; ''
    belongs to ''."""
    found: dict[str, list[Share]] = {}
    for run, share in shares.items():
        found.setdefault(group_of[run] if run else "", []).append(share)
    return {
        name: Share(math.fsum(one.used_usd for one in parts), math.fsum(one.idle_usd for one in parts))
        for name, parts in found.items()
    }


def terms_of_order(order: Mapping[str, Any]) -> Terms:
    """The terms in what a provider wants to know of an order: `gpu_usd_per_h`, `storage_usd_per_h`,
    `inet_up_usd_per_gb`, `inet_down_usd_per_gb`, `ttl_s`, `traffic_up_gb`, `traffic_down_gb`.

    Raises ValueError for an order in which one of them is missing or no amount: what has no price is not rented.
    """
    names = {
        "gpu_usd_per_h": "gpu_usd_per_h", "storage_usd_per_h": "storage_usd_per_h",
        "up_usd_per_gb": "inet_up_usd_per_gb", "down_usd_per_gb": "inet_down_usd_per_gb",
    }  # fmt: skip
    missing = [name for name in (*names.values(), "ttl_s", "traffic_up_gb", "traffic_down_gb") if name not in order]
    if missing:
        raise ValueError(f"an order without {', '.join(missing)} has no known cost")
    return Terms(
        Prices(**{ours: order[theirs] for ours, theirs in names.items()}),
        order["ttl_s"],
        TRAFFIC_RESERVE * order["traffic_up_gb"],
        TRAFFIC_RESERVE * order["traffic_down_gb"],
    )


def meter_json(meter: Meter) -> dict[str, Any]:
    """A meter as JSON."""
    return {name: getattr(meter, name) for name in Meter.__slots__}


def terms_json(terms: Terms) -> dict[str, Any]:
    """Terms as JSON."""
    prices = {name: getattr(terms.prices, name) for name in Prices.__slots__}
    return {**prices, "ttl_s": terms.ttl_s, "up_gb": terms.up_gb, "down_gb": terms.down_gb}


def terms_from_json(document: Mapping[str, Any]) -> Terms:
    """Terms as `terms_json` wrote them. Raises KeyError or ValueError for anything else."""
    prices = Prices(**{name: float(document[name]) for name in Prices.__slots__})
    return Terms(prices, float(document["ttl_s"]), float(document["up_gb"]), float(document["down_gb"]))
