"""How much main memory processes here may use: what the machine has, or what its control groups allow."""

from __future__ import annotations

import os
from pathlib import Path

from provisioning.control_groups import CGROUPS, MEMBERSHIP, groups_with, numbers


def usable_memory_mib(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float:
    """MiB of main memory, the tightest limit that holds for us (memory.max, or memory.limit_in_bytes of version 1)."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [
        limit
        for group in groups_with("memory", cgroups, membership)
        for limit in numbers(group / "memory.max") + numbers(group / "memory.limit_in_bytes")
        if limit > 0
    ]
    return min([machine, *limits]) / 2**20
