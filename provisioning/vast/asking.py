"""What we ask of Vast.ai, checked before it is sent: searches and creates. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["on-demand", "bid"]

MOST_LABEL = 256
MOST_ONSTART = 4096
MOST_IMAGE = 1024
MOST_ENV_VALUE = 256
MOST_ENV = 32768
LEAST_DISK_GB = 8.0
BID_USD_PER_H = (0.001, 128.0)

DIRECT_SSH = "ssh_direc ssh_proxy"
"""The words, spelt so, that give an sshd reachable directly and through the gateway; they replace the image's entry
point."""

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class OfferQuery:
    """What a machine must have; None does not filter.

    GPU memory is in MB of 10**6 bytes, bandwidth in Mbit/s, durations in seconds, disk in GB, reliability 0 to 1;
    `max_usd_per_h` is the whole price of an hour with `storage_gb` of disk. For a `bid` it bounds the least bid.
    """

    kind: Kind = "on-demand"
    gpu_names: tuple[str, ...] = ()
    min_gpus: int = 1
    max_gpus: int | None = None
    min_gpu_ram_mb: float | None = None
    min_cuda: float | None = None
    min_reliability: float | None = None
    min_inet_down_mbit_per_s: float | None = None
    min_inet_up_mbit_per_s: float | None = None
    min_disk_gb: float | None = None
    min_cpu_cores: float | None = None
    min_cpu_ram_mb: float | None = None
    min_duration_s: float | None = None
    min_direct_ports: int | None = None
    max_usd_per_h: float | None = None
    is_verified: bool | None = True
    is_datacenter: bool | None = None
    storage_gb: float = 10.0
    limit: int = 200

    def to_wire(self) -> dict[str, Any]:
        """The body of a search. GPU names get their spaces: with underscores the service finds nothing."""
        names = sorted({name.replace("_", " ").strip() for name in self.gpu_names})
        price = "min_bid" if self.kind == "bid" else "dph_total"
        least: dict[str, float | None] = {
            "num_gpus": self.min_gpus,
            "gpu_ram": self.min_gpu_ram_mb,
            "cuda_max_good": self.min_cuda,
            "reliability": self.min_reliability,
            "inet_down": self.min_inet_down_mbit_per_s,
            "inet_up": self.min_inet_up_mbit_per_s,
            "disk_space": self.min_disk_gb,
            "cpu_cores_effective": self.min_cpu_cores,
            "cpu_ram": self.min_cpu_ram_mb,
            "duration": self.min_duration_s,
            "direct_port_count": self.min_direct_ports,
        }
        exact: dict[str, bool | None] = {
            "rentable": True,
            "external": False,
            "verified": self.is_verified,
            "datacenter": self.is_datacenter,
        }
        filters: dict[str, dict[str, Any]] = {
            name: {"gte": value} for name, value in least.items() if value is not None
        }
        filters |= {name: {"eq": value} for name, value in exact.items() if value is not None}
        for name, most in (("num_gpus", self.max_gpus), (price, self.max_usd_per_h)):
            if most is not None:
                filters.setdefault(name, {})["lte"] = most
        if names:
            filters["gpu_name"] = {"eq": names[0]} if len(names) == 1 else {"in": names}
        order = [[price, "asc"], ["id", "asc"]]
        return {
            **filters,
            "type": self.kind,
            "order": order,
            "limit": self.limit,
            "allocated_storage": self.storage_gb,
        }


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """An instance to be made. `env` and `onstart` may hold secrets and are not shown.

    `disk_gb` is fixed for ever; `onstart` runs at every start of the container; `bid_usd_per_h` makes it interruptible
    (None = on demand). With `cancel_unavail` a create that cannot start leaves nothing behind; without it, a stopped
    instance whose disk is paid for. Raises ValueError for what the service would refuse.
    """

    image: str
    disk_gb: float
    label: str
    onstart: str = field(default="", repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    bid_usd_per_h: float | None = None
    cancel_unavail: bool = True

    def __post_init__(self) -> None:
        low, high = BID_USD_PER_H
        wrong_env = [
            name for name, value in self.env.items() if not _ENV_NAME.fullmatch(name) or len(value) > MOST_ENV_VALUE
        ]
        for is_wrong, problem in (
            (not 0 < len(self.image) <= MOST_IMAGE, f"image: 1 to {MOST_IMAGE} characters"),
            (not (self.disk_gb >= LEAST_DISK_GB and math.isfinite(self.disk_gb)), f"disk_gb: from {LEAST_DISK_GB:g}"),
            (not 0 < len(self.label) <= MOST_LABEL, f"label: 1 to {MOST_LABEL} characters"),
            (len(self.onstart) > MOST_ONSTART, f"onstart: at most {MOST_ONSTART:,} characters; it has more"),
            (
                bool(wrong_env),
                f"env {wrong_env}: names of letters, digits, _; values to {MOST_ENV_VALUE} characters",
            ),
            (sum(len(name) + len(value) for name, value in self.env.items()) > MOST_ENV, f"env: at most {MOST_ENV:,}"),
            (self.bid_usd_per_h is not None and not low <= self.bid_usd_per_h <= high, f"bid: {low} to {high} USD/h"),
        ):
            if is_wrong:
                raise ValueError(f"a create request is refused here: {problem}")

    def to_wire(self) -> dict[str, Any]:
        """The body of a create; a price only for a bid."""
        body: dict[str, Any] = {
            "client_id": "me",
            "image": self.image,
            "env": dict(self.env),
            "disk": self.disk_gb,
            "label": self.label,
            "onstart": self.onstart,
            "runtype": DIRECT_SSH,
            "target_state": "running",
            "cancel_unavail": self.cancel_unavail,
        }
        return body if self.bid_usd_per_h is None else {**body, "price": self.bid_usd_per_h}
