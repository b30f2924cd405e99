"""Offers: what is for rent, on which machine, at what price. An offer (an ask) can be used once.

Several offers may lie on one machine and share its GPUs (gpu_frac < 1); taking one takes away every other that needs
one of the same GPUs. When the instance is gone, the machine offers the same GPUs again under new numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

HOURS_PER_MONTH = 730.0
SEARCH_TYPES = ("on-demand", "ondemand", "bid", "interruptible", "reserved")
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "in": lambda value, among: value in among,
    "notin": lambda value, among: value not in among,
}


@dataclass(frozen=True)
class Offer:
    """One ask. Prices are for the whole offer; sizes in the units of the wire: MB of memory, GB of disk, Mb/s."""

    ask_id: int
    machine_id: int
    gpu_ids: tuple[int, ...] = (0,)
    machine_gpus: int = 1
    host_id: int = 1
    gpu_name: str = "RTX 4090"
    gpu_ram_mb: int = 24564
    compute_cap: int = 890
    gpu_usd_per_h: float = 0.4
    min_bid_usd_per_h: float = 0.2
    storage_usd_per_gb_month: float = 0.15
    inet_up_usd_per_gb: float = 0.02
    inet_down_usd_per_gb: float = 0.01
    disk_space_gb: float = 500.0
    cpu_ram_mb: int = 128_000
    cpu_cores_effective: float = 16.0
    inet_up_mbps: float = 800.0
    inet_down_mbps: float = 900.0
    reliability: float = 0.99
    cuda_max_good: float = 12.8
    driver_version: str = "570.86.15"
    direct_port_count: int = 50
    duration_s: float = 30 * 86400.0
    verified: bool = True
    datacenter: bool = False
    geolocation: str = "Sweden, SE"
    rented: bool = False
    unschedulable: bool = False  # an instance can be contracted but does not start

    def storage_usd_per_h(self, disk_gb: float) -> float:
        """Storage in USD an hour for so many GB."""
        return self.storage_usd_per_gb_month * disk_gb / HOURS_PER_MONTH

    def wire(self, now_s: float, bid: bool, allocated_gb: float) -> dict[str, Any]:
        """The record that a search answers with."""
        gpu = self.min_bid_usd_per_h if bid else self.gpu_usd_per_h
        disk = self.storage_usd_per_h(allocated_gb)
        return {
            "id": self.ask_id, "ask_contract_id": self.ask_id, "machine_id": self.machine_id, "host_id": self.host_id,
            "bundle_id": self.machine_id * 1000 + len(self.gpu_ids), "num_gpus": len(self.gpu_ids),
            "gpu_ids": list(self.gpu_ids), "gpu_name": self.gpu_name, "gpu_ram": self.gpu_ram_mb,
            "gpu_total_ram": self.gpu_ram_mb * len(self.gpu_ids), "gpu_frac": len(self.gpu_ids) / self.machine_gpus,
            "compute_cap": self.compute_cap, "cuda_max_good": self.cuda_max_good,
            "driver_version": self.driver_version, "cpu_name": "AMD EPYC 7543", "cpu_cores": 64,
            "cpu_cores_effective": self.cpu_cores_effective, "cpu_ram": self.cpu_ram_mb,
            "disk_space": self.disk_space_gb, "disk_bw": 2500.0, "disk_name": "nvme", "pcie_bw": 24.0, "pci_gen": 4.0,
            "inet_up": self.inet_up_mbps, "inet_down": self.inet_down_mbps, "inet_up_cost": self.inet_up_usd_per_gb,
            "inet_down_cost": self.inet_down_usd_per_gb, "direct_port_count": self.direct_port_count,
            "dph_base": gpu, "dph_total": gpu + disk, "discounted_dph_total": gpu + disk, "is_bid": bid,
            "min_bid": self.min_bid_usd_per_h, "storage_cost": self.storage_usd_per_gb_month,
            "storage_total_cost": disk, "reliability": self.reliability, "reliability2": self.reliability,
            "expected_reliability": self.reliability, "verification": "verified" if self.verified else "unverified",
            "rentable": not self.rented, "rented": self.rented, "static_ip": True, "public_ipaddr": "192.0.2.7",
            "geolocation": self.geolocation, "start_date": now_s - 86400.0, "end_date": now_s + self.duration_s,
            "duration": self.duration_s, "hosting_type": int(self.datacenter), "datacenter": self.datacenter,
            "mobo_name": "ROMED8-2T", "score": 100.0 / (gpu + disk), "dlperf": 80.0 * len(self.gpu_ids),
            "dlperf_per_dphtotal": 80.0 * len(self.gpu_ids) / (gpu + disk),
            "search": {"gpuCostPerHour": gpu, "diskHour": disk, "totalHour": gpu + disk},
        }  # fmt: skip


class Market:
    """All offers. `take` uses one up; `free` puts its GPUs up again under a new number."""

    def __init__(self, offers: Iterable[Offer]) -> None:
        self.offers = {offer.ask_id: offer for offer in offers}
        self._next_ask = max(self.offers, default=1000) + 1

    def take(self, ask_id: int) -> Offer | None:
        """Use up one offer and every other that needs one of its GPUs. None when it is not there to be taken."""
        offer = self.offers.get(ask_id)
        if offer is None or offer.rented:
            return None
        for other in list(self.offers.values()):
            if other.machine_id == offer.machine_id and set(other.gpu_ids) & set(offer.gpu_ids):
                self.offers[other.ask_id] = replace(other, rented=True)
        return offer

    def free(self, offer: Offer, taken: Iterable[Offer]) -> None:
        """The instance on this offer is gone; `taken` is what other instances still hold."""
        busy = {(held.machine_id, gpu) for held in taken for gpu in held.gpu_ids}
        for other in list(self.offers.values()):
            if other.machine_id != offer.machine_id or not other.rented or not set(other.gpu_ids) & set(offer.gpu_ids):
                continue
            if not any((other.machine_id, gpu) in busy for gpu in other.gpu_ids):
                del self.offers[other.ask_id]
                self.offers[self._next_ask] = replace(other, ask_id=self._next_ask, rented=False)
                self._next_ask += 1

    def move_price(self, machine_id: int, factor: float) -> None:
        """All offers of one machine become dearer or cheaper; what is rented already keeps its price."""
        for offer in list(self.offers.values()):
            if offer.machine_id == machine_id:
                self.offers[offer.ask_id] = replace(
                    offer,
                    gpu_usd_per_h=offer.gpu_usd_per_h * factor,
                    min_bid_usd_per_h=offer.min_bid_usd_per_h * factor,
                )

    def search(self, query: Mapping[str, Any], now_s: float) -> list[dict[str, Any]]:
        """The offers that pass, in the order asked for. Raises ValueError for an unknown field, operator or type."""
        kind = query.get("type", "on-demand")
        if kind not in SEARCH_TYPES:
            raise ValueError(f"type {kind!r}; allowed: {', '.join(SEARCH_TYPES)}")
        bid = kind in ("bid", "interruptible")
        allocated_gb = float(query.get("allocated_storage", 8.0))
        records = [offer.wire(now_s, bid, allocated_gb) for offer in self.offers.values()]
        filters = {name: wanted for name, wanted in query.items() if name not in ("order", "type", "limit")}
        filters.pop("allocated_storage", None)
        found = [record for record in records if matches(_searchable(record), filters)]
        for column, direction in reversed(query.get("order", [["score", "desc"]])):
            found.sort(key=lambda record: _searchable(record)[column], reverse=direction == "desc")
        limit = query.get("limit")
        return found if limit is None else found[: int(limit)]


def matches(record: Mapping[str, Any], filters: Mapping[str, Any]) -> bool:
    """Whether a record passes `{field: {op: value}}`. Raises ValueError for a field or operator that does not exist."""
    for name, conditions in filters.items():
        if name not in record:
            raise ValueError(f"unknown field {name!r}")
        if not isinstance(conditions, Mapping):
            raise ValueError(f"field {name!r}: a condition is an object of operators, not {conditions!r}")
        for sign, wanted in conditions.items():
            if sign not in OPERATORS:
                raise ValueError(f"unknown operator {sign!r}; allowed: {', '.join(OPERATORS)}")
            if not _holds(sign, record[name], wanted):
                return False
    return True


def _holds(sign: str, value: Any, wanted: Any) -> bool:
    try:
        return OPERATORS[sign](value, wanted)
    except TypeError:
        return False  # null has no order


def _searchable(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the names that exist only in a search; a driver is compared as one number there."""
    parts = record["driver_version"].split(".")
    return {
        **record,
        "verified": record["verification"] == "verified",
        "external": False,
        "cpu_cores_effective": record["cpu_cores_effective"],
        "driver_version": int("".join(part.zfill(3) for part in parts)),
    }
