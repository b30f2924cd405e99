"""How many CPU cores this process may really use: its affinity and the limits of its control groups."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from provisioning.control_groups import CGROUPS, MEMBERSHIP, groups_with, numbers


def usable_cores() -> tuple[int, ...]:
    """Numbers of the cores that slots may be cut from, ascending; at least one."""
    return limited(os.sched_getaffinity(0), cpu_limit())


def limited(affinity: Iterable[int], limit: float | None) -> tuple[int, ...]:
    """As many of the cores as a limit (in cores; None = none) fills: a process with 2.5 cores of 8 fills two."""
    cores = tuple(sorted(affinity))
    return cores if limit is None else cores[: max(1, int(limit))]


def cpu_limit(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """The tightest CPU limit of our control groups and all groups above them, in cores; None when there is none.

    Reads cpu.max (version 2) and cpu.cfs_quota_us with cpu.cfs_period_us (version 1).
    """
    limits = [limit for group in groups_with("cpu", cgroups, membership) if (limit := _limit_of(group)) is not None]
    return min(limits, default=None)


def _limit_of(group: Path) -> float | None:
    found = numbers(group / "cpu.max") or numbers(group / "cpu.cfs_quota_us") + numbers(group / "cpu.cfs_period_us")
    if len(found) != 2 or found[0] <= 0 or found[1] <= 0:
        return None
    return found[0] / found[1]
