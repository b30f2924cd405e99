"""Which offer to rent: what is asked of the service, what each filter excluded, and the rest by what it costs in full.

Pure. The service is asked widely and every filter is applied here, so that "nothing fits" can say why: how many offers
each filter excluded, and how near the nearest came. Money is US dollars, memory MiB, disk and traffic GB (10**9 bytes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from provisioning import base
from provisioning.vast.asking import OfferQuery
from provisioning.vast.filters import Excluded, apply_filters, gpu_word
from provisioning.vast.models import Offer
from provisioning.vast.prices import RESERVE, Cost, Prices, cost_of, prices_of
from provisioning.vast.wanted import Wanted

__all__ = [
    "Choice", "Cost", "Excluded", "Prices", "Ranked", "Wanted", "as_offer", "ceiling_usd", "choose", "explain",
    "order_of", "query", "wide_query",
]  # fmt: skip

PROVIDER = "vast"
MOST_OFFERS = 1000
"""A search for more would come near the size that an answer may have; the service says that it cuts long ones too."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """An offer that passed every filter, its prices, and what the planned use of it costs.

    `is_whole` is false where only a part of the machine is offered: others then share its cores and its network.
    """

    offer: Offer
    prices: Prices
    cost: Cost

    @property
    def is_whole(self) -> bool:
        """Whether the whole machine is offered; a machine that does not say counts as a part."""
        return self.offer.gpu_frac is not None and self.offer.gpu_frac >= 1.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What came of `found` offers: those that fit, best first, and what each filter took away of the others."""

    ranked: tuple[Ranked, ...]
    excluded: tuple[Excluded, ...]
    found: int


def query(wanted: Wanted) -> OfferQuery:
    """A search that holds only what the hardware must be; everything else is left for `choose` to count.

    GPU names, number and memory, and the data centre, are asked of the service: it cuts a long answer, cheapest first,
    and large machines are the ones that would be lost.
    """
    return OfferQuery(
        kind="bid" if wanted.is_interruptible else "on-demand",
        gpu_names=wanted.gpu_names,
        min_gpus=wanted.gpus,
        min_gpu_ram_mb=wanted.min_vram_gib * 1024 if wanted.min_vram_gib else None,
        is_verified=None,
        is_datacenter=True if wanted.is_datacenter else None,
        storage_gb=wanted.disk_gb,
        limit=MOST_OFFERS,
    )


def wide_query(wanted: Wanted) -> OfferQuery:
    """A search that holds nothing of the machine: where `query` found none at all, it shows what there is instead."""
    kind = query(wanted).kind
    return OfferQuery(kind=kind, is_verified=None, storage_gb=wanted.disk_gb, limit=MOST_OFFERS)


def choose(offers: Sequence[Offer], wanted: Wanted) -> Choice:
    """The offers that fit, by the full cost of the planned use; ties by reliability, then whole machines, then number.

    The offers must come from a search that priced the disk that is wanted. Every offer is either ranked or counted by
    the first filter that it failed.
    """
    passed, excluded = apply_filters(offers, wanted)
    ranked = [
        Ranked(offer, prices, cost_of(prices, wanted)) for offer in passed if (prices := prices_of(offer, wanted))
    ]
    ranked.sort(key=_place)
    return Choice(tuple(ranked), excluded, len(offers))


def _place(one: Ranked) -> tuple[float, float, bool, int]:
    return one.cost.total_usd, -(one.offer.reliability or 0.0), not one.is_whole, one.offer.offer_id


def explain(choice: Choice) -> str:
    """One line: how many offers there are, what took how many away and how near the nearest came."""
    offers = "1 offer" if choice.found == 1 else f"{choice.found:,} offers"
    if not choice.found:
        return "there are no such offers at all"
    parts = [str(one) for one in choice.excluded]
    if choice.ranked:
        parts.append("1 fits" if len(choice.ranked) == 1 else f"{len(choice.ranked):,} fit")
    return f"{offers}: {', '.join(parts)}"


def order_of(ranked: Ranked, wanted: Wanted, ttl_s: float) -> dict[str, Any]:
    """All that a create of this offer must know, and what it costs, as JSON without a secret: for `base.Offer.order`.

    `ttl_s` is the instance's longest life in seconds, `duration_s` how long its host lets it live at all (null: it does
    not say); `bid_usd_per_h` is null on demand. Raises ValueError for a life
    that is no positive number.
    """
    if not (math.isfinite(ttl_s) and ttl_s > 0.0):
        raise ValueError(f"ttl_s {ttl_s}: allowed: a finite number above 0")
    offer, prices = ranked.offer, ranked.prices
    return {
        "offer_id": offer.offer_id,
        "machine_id": offer.machine_id,
        "gpu_name": offer.gpu_name,
        "gpus": offer.num_gpus,
        "image": wanted.image,
        "disk_gb": wanted.disk_gb,
        "bid_usd_per_h": prices.gpu_usd_per_h if wanted.is_interruptible else None,
        "ttl_s": float(ttl_s),
        "duration_s": offer.duration_s,
        "gpu_usd_per_h": prices.gpu_usd_per_h,
        "storage_usd_per_h": prices.storage_usd_per_h,
        "inet_up_usd_per_gb": prices.inet_up_usd_per_gb,
        "inet_down_usd_per_gb": prices.inet_down_usd_per_gb,
        "traffic_up_gb": wanted.traffic_up_gb,
        "traffic_down_gb": wanted.traffic_down_gb,
    }


def as_offer(ranked: Ranked, wanted: Wanted, ttl_s: float) -> base.Offer:
    """The offer as every provider's are. The price is that of an hour with its disk, without traffic."""
    return base.Offer(
        provider=PROVIDER,
        offer_id=str(ranked.offer.offer_id),
        gpus=ranked.offer.num_gpus or 0,
        cores=int(ranked.offer.cpu_cores or 0),
        price_usd_per_h=ranked.prices.usd_per_h,
        machine=str(ranked.offer.machine_id),
        order=order_of(ranked, wanted, ttl_s),
    )


def ceiling_usd(order: Mapping[str, Any]) -> float:
    """The most, in USD, that an order can cost: GPUs and disk until its end, and a quarter more traffic than planned.

    It holds as long as the machine moves no more than that: the service bills traffic without a limit. Raises
    ValueError for an order in which a price is missing or no amount.
    """
    amount = {name: _amount(order, name) for name in _PRICED}
    hours = amount["ttl_s"] / 3600.0
    traffic_usd = (
        amount["traffic_up_gb"] * amount["inet_up_usd_per_gb"]
        + amount["traffic_down_gb"] * amount["inet_down_usd_per_gb"]
    )
    return (amount["gpu_usd_per_h"] + amount["storage_usd_per_h"]) * hours + RESERVE * traffic_usd


_PRICED = (
    "ttl_s",
    "gpu_usd_per_h",
    "storage_usd_per_h",
    "inet_up_usd_per_gb",
    "inet_down_usd_per_gb",
    "traffic_up_gb",
    "traffic_down_gb",
)


def _amount(order: Mapping[str, Any], name: str) -> float:
    value = order.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < math.inf:
        raise ValueError(f"order: {name} {value!r}: allowed: a finite number from 0")
    return float(value)


def asked(wanted: Wanted) -> str:
    """The hardware that is asked for, in words: what `query` sends."""
    names = " or ".join(gpu_word(name) for name in wanted.gpu_names) or "GPU"
    memory = f" of {wanted.min_vram_gib:g} GiB" if wanted.min_vram_gib else ""
    place = " in a data centre" if wanted.is_datacenter else ""
    return f"{wanted.gpus} x {names}{memory} on one machine{place}"
