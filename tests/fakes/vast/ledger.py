"""What each instance has cost so far: seconds and bytes, and the USD they make at the prices of their time.

GPU seconds count only while running or frozen; storage from creation to destruction in every online state; an offline
host is not billed; traffic counts per byte both ways (the provider's published billing rules).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.fakes.vast.machine import Instance

BYTES_PER_GB = 1e9


@dataclass
class Line:
    """The bill of one instance. `exists_s` is how long it has existed at all, billed or not."""

    exists_s: float = 0.0
    gpu_s: float = 0.0
    storage_s: float = 0.0
    up_bytes: int = 0
    down_bytes: int = 0
    gpu_usd: float = 0.0
    storage_usd: float = 0.0
    up_usd: float = 0.0
    down_usd: float = 0.0

    @property
    def usd(self) -> float:
        """Everything together."""
        return self.gpu_usd + self.storage_usd + self.up_usd + self.down_usd


def gpu_is_billed(instance: Instance) -> bool:
    """Whether the GPUs of an instance cost anything in its present state."""
    return instance.gone_s is None and instance.actual in ("running", "frozen")


def storage_is_billed(instance: Instance) -> bool:
    """Whether its disk costs anything in its present state."""
    return instance.gone_s is None and instance.actual != "offline"


def usd_per_h(instance: Instance) -> float:
    """What it costs an hour in its present state, without traffic."""
    gpu = instance.gpu_usd_per_h if gpu_is_billed(instance) else 0.0
    return gpu + (instance.storage_usd_per_h if storage_is_billed(instance) else 0.0)


class Ledger:
    """One line for each instance that ever existed."""

    def __init__(self) -> None:
        self.lines: dict[int, Line] = {}

    def accrue(self, instance: Instance, for_s: float) -> float:
        """Add a span in which nothing about the instance changed; the USD of it."""
        if instance.gone_s is not None:
            return 0.0
        line = self.lines.setdefault(instance.id, Line())
        line.exists_s += for_s
        before = line.usd
        if gpu_is_billed(instance):
            line.gpu_s += for_s
            line.gpu_usd += instance.gpu_usd_per_h * for_s / 3600
        if storage_is_billed(instance):
            line.storage_s += for_s
            line.storage_usd += instance.storage_usd_per_h * for_s / 3600
        return line.usd - before

    def traffic(self, instance: Instance, up_bytes: int, down_bytes: int) -> float:
        """Add bytes out of and into the instance; the USD of them. Raises ValueError when it is gone."""
        if instance.gone_s is not None:
            raise ValueError(f"instance {instance.id} is gone and moves no bytes")
        line = self.lines.setdefault(instance.id, Line())
        up_usd = up_bytes / BYTES_PER_GB * instance.offer.inet_up_usd_per_gb
        down_usd = down_bytes / BYTES_PER_GB * instance.offer.inet_down_usd_per_gb
        line.up_bytes += up_bytes
        line.down_bytes += down_bytes
        line.up_usd += up_usd
        line.down_usd += down_usd
        return up_usd + down_usd

    def usd(self, instances: Mapping[int, Instance]) -> float:
        """The bill of these instances together."""
        return sum(self.lines[number].usd for number in instances if number in self.lines)
