"""What an offer costs: its prices out of fields that may be missing, and the cost of a planned use. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from provisioning.vast.asking import BID_USD_PER_H
from provisioning.vast.models import Offer
from provisioning.vast.wanted import Wanted

HOURS_PER_MONTH = 730.0
"""Disk is priced by the month; 8,760 hours a year over twelve."""
RESERVE = 1.25
"""Plans run late: an instance may live, and moves may grow, by a quarter more than planned."""
MARGIN_S = 2 * 3600.0
"""Beyond that: booting and setting up at the start, bringing everything home at the end."""


@dataclass(frozen=True, slots=True)
class Prices:
    """USD for an hour of the GPUs (at the bid, where there is one) and of the wanted disk, and for GB both ways."""

    gpu_usd_per_h: float
    storage_usd_per_h: float
    inet_up_usd_per_gb: float
    inet_down_usd_per_gb: float

    @property
    def usd_per_h(self) -> float:
        """An hour of the whole machine, without traffic."""
        return self.gpu_usd_per_h + self.storage_usd_per_h


@dataclass(frozen=True, slots=True)
class Cost:
    """What the planned use costs, in USD: GPUs, disk, traffic both ways."""

    gpu_usd: float
    storage_usd: float
    traffic_usd: float

    @property
    def total_usd(self) -> float:
        """Everything together."""
        return self.gpu_usd + self.storage_usd + self.traffic_usd


def prices_of(offer: Offer, wanted: Wanted) -> Prices | None:
    """The prices of an offer, or None when one of them is missing, no number, or nothing an hour.

    The service says the price of an hour with and without disk; where the two contradict each other, the dearer one
    holds. Both must have been priced for the wanted disk.
    """
    storage = _storage_usd_per_h(offer, wanted)
    gpu = _bid(offer, wanted) if wanted.is_interruptible else _on_demand(offer, storage)
    parts = (gpu, storage, offer.inet_up_usd_per_gb, offer.inet_down_usd_per_gb)
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or known[0] <= 0.0:
        return None
    found = Prices(*known)
    return found if math.isfinite(cost_of(found, wanted).total_usd * RESERVE) else None


def cost_of(prices: Prices, wanted: Wanted) -> Cost:
    """The cost of the planned hours and traffic (billing rules: GPUs while running, disk always, every byte)."""
    return Cost(
        gpu_usd=prices.gpu_usd_per_h * wanted.hours,
        storage_usd=prices.storage_usd_per_h * wanted.hours,
        traffic_usd=prices.inet_up_usd_per_gb * wanted.traffic_up_gb
        + prices.inet_down_usd_per_gb * wanted.traffic_down_gb,
    )


def needed_s(wanted: Wanted) -> float:
    """Seconds that a machine must stay to be had: the planned hours, a quarter more, and two hours beyond."""
    return wanted.hours * 3600.0 * RESERVE + MARGIN_S


def _bid(offer: Offer, wanted: Wanted) -> float | None:
    """What would be bid; None where the least bid is not known, or is more than the service takes."""
    low, high = BID_USD_PER_H
    least = offer.min_bid_usd_per_h
    if wanted.bid_usd_per_h is not None or least is None:
        return wanted.bid_usd_per_h
    return max(low, least) if least <= high else None


def _storage_usd_per_h(offer: Offer, wanted: Wanted) -> float | None:
    if offer.storage_usd_per_gb_month is not None:
        return offer.storage_usd_per_gb_month * wanted.disk_gb / HOURS_PER_MONTH
    if offer.storage_usd_per_h is not None:
        return offer.storage_usd_per_h
    if wanted.is_interruptible or offer.usd_per_h is None or offer.base_usd_per_h is None:
        return None
    return max(0.0, offer.usd_per_h - offer.base_usd_per_h)


def _on_demand(offer: Offer, storage_usd_per_h: float | None) -> float | None:
    without_disk = offer.base_usd_per_h
    if offer.usd_per_h is None or storage_usd_per_h is None:
        return without_disk
    rest = offer.usd_per_h - storage_usd_per_h
    return rest if without_disk is None else max(rest, without_disk)
