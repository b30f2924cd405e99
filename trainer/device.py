"""Which device a process computes on, which GPUs it really sees, and with which software it works."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from trainer.config import TrainerConfig
from trainer.errors import ConfigError, Issue

PACKAGES = ("torch", "torchvision", "torchao", "numpy", "lpips", "safetensors", "transformers", "webdataset")
# From malloc.h: never give a large block a mapping of its own, never trim the heap, grow it by 64 MiB.
_KEEP_FREED = ((-4, 0), (-1, 2**31 - 1), (-2, 64 * 2**20))


def choose_device(config: TrainerConfig) -> torch.device:
    """The device that `device` asks for. Raises ConfigError for cuda where there is none."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ConfigError([Issue("device", "this process sees no CUDA device", ("auto", "cpu"))])
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


def cap_threads() -> None:
    """As many CPU threads as OMP_NUM_THREADS says, else one."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for the next step instead of giving it back to the kernel, if it is glibc.

    A step on a CPU frees and asks for hundreds of MiB; getting them back page by page costs 10 to 20 % of its time.
    Returns whether that worked. The process then holds the most it ever needed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(option, value) for option, value in _KEEP_FREED)


def gpu_uuids() -> list[str]:
    """UUIDs of the GPUs that this process sees, in its own order."""
    if not torch.cuda.is_available():
        return []
    properties = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return [f"GPU-{device.uuid}" for device in properties]


def surroundings() -> dict[str, Any]:
    """What a reader asks of the machine and the software that trained, as JSON values: names of the GPUs that are seen,
    CPU, usable cores, interpreter, packages. Nothing in it names a person or an address."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "gpus": [torch.cuda.get_device_name(index) for index in range(count)],
        "cuda": torch.version.cuda,
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": versions,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor())
