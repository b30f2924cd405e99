"""How much memory a process may still get, and how much it ever had: main memory on a CPU, the device's on a GPU."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

MIB = 2**20
_CGROUPS = Path("/sys/fs/cgroup")


def available_mib(device: torch.device) -> float:
    """What this process could have in all, what it has already included."""
    if device.type == "cuda":
        return (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)) / MIB
    return (min([psutil.virtual_memory().available, *_left_in_groups()]) + psutil.Process().memory_info().rss) / MIB


def peak_mib(device: torch.device) -> float:
    """The most memory that this process ever had; on a GPU, that its tensors had."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return _peak_resident_bytes() / MIB


def cap(device: torch.device, limit_mib: float) -> None:
    """Have the allocator of a GPU refuse more than the limit, as a smaller GPU would."""
    if device.type == "cuda":
        total_mib = torch.cuda.get_device_properties(device).total_memory / MIB
        number = torch.cuda.current_device() if device.index is None else device.index  # it takes no "cuda"
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_mib / total_mib), number)


def _peak_resident_bytes() -> int:
    """VmHWM, where there is /proc: the maximum of getrusage may be that of the process that started this one."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    found = next(line for line in lines if line.startswith("VmHWM:"))
    return int(found.split()[1]) * 1024


def _left_in_groups() -> Iterator[int]:
    """Bytes that the control groups (version 2) around this process leave; file pages they would drop count as left."""
    try:
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return
    group = _CGROUPS / own[3:].lstrip("/")
    while group.is_relative_to(_CGROUPS):
        try:
            most, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except OSError:
            most, used, statistics = "max", 0, {}
        if most != "max":
            yield max(0, int(most) - used + int(statistics.get("inactive_file", 0)))
        group = group.parent
