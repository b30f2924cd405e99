"""How many CPU cores this process may really use: its affinity and the limits of its control groups."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores() -> tuple[int, ...]:
    """Numbers of the cores that slots may be cut from, ascending; at least one."""
    return limited(os.sched_getaffinity(0), cpu_limit())


def limited(affinity: Iterable[int], limit: float | None) -> tuple[int, ...]:
    """As many of the cores as a limit (in cores; None = none) fills: a process with 2.5 cores of 8 fills two."""
    cores = tuple(sorted(affinity))
    return cores if limit is None else cores[: max(1, int(limit))]


def cpu_limit(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """The tightest CPU limit of our control groups and all groups above them, in cores; None when there is none.

    Reads cpu.max (version 2) and cpu.cfs_quota_us with cpu.cfs_period_us (version 1). Inside a container the paths of
    /proc/self/cgroup may be those of the host, which do not exist here; the top of the mount is then what limits us.
    """
    limits = [
        limit
        for hierarchy, path in _memberships(membership)
        for group in _group_and_above(_mounts(cgroups, hierarchy), path)
        if (limit := _limit_of(group)) is not None
    ]
    return min(limits, default=None)


def _memberships(membership: Path) -> Iterator[tuple[str, str]]:
    """(controllers, path) of each hierarchy that may limit the CPU; '' stands for version 2."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            yield controllers, path


def _mounts(cgroups: Path, hierarchy: str) -> tuple[Path, ...]:
    """Where a hierarchy may be mounted: at the top or beside version 1, or in a folder named like its controllers."""
    return (cgroups, cgroups / "unified") if hierarchy == "" else (cgroups / hierarchy, cgroups / "cpu")


def _group_and_above(mounts: Iterable[Path], path: str) -> Iterator[Path]:
    for mount in mounts:
        group = mount / path.lstrip("/")
        yield group
        for above in group.parents:
            if not above.is_relative_to(mount):
                break
            yield above


def _limit_of(group: Path) -> float | None:
    found = _numbers(group / "cpu.max") or (
        _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")
    )
    if len(found) != 2 or found[0] <= 0 or found[1] <= 0:
        return None
    return found[0] / found[1]


def _numbers(path: Path) -> list[int]:
    """Whole numbers in a file; [] when it is not there or says `max`."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []
