"""Which processes train together, and on which device each of them.

There are two ways to start several: `--processes N`, whose process becomes the leader and starts the others, and
torchrun, which starts all. Both put the same variables into the environment; torchrun turns every exit code into 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from trainer.config import TrainerConfig
from trainer.device import choose_device
from trainer.errors import ConfigError, Issue, UsageError
from trainer.rules.distributed import shared_by


@dataclass(frozen=True, slots=True)
class Membership:
    """Number `rank` (from 0, the leader) of `size` processes; `is_started` means that somebody else started all."""

    rank: int
    size: int
    is_started: bool


def membership(processes: int | None, environment: Mapping[str, str] = os.environ) -> Membership:
    """What --processes (None: not given) and the environment say. Raises UsageError when they contradict each other."""
    size = int(environment.get("WORLD_SIZE", "1"))
    if size == 1:
        if processes is not None and processes < 1:
            raise UsageError(f"--processes {processes}: at least 1")
        return Membership(0, processes or 1, False)
    if processes not in (None, size):
        raise UsageError(f"--processes {processes}, and the environment says WORLD_SIZE={size}; give one of them")
    local_size = int(environment.get("LOCAL_WORLD_SIZE", str(size)))
    if local_size != size:
        raise UsageError(f"{size} processes on several hosts ({local_size} here); allowed: one host")
    return Membership(int(environment["RANK"]), size, True)


def device_of(config: TrainerConfig, member: Membership) -> torch.device:
    """The device of one process: GPU `rank` of those that it sees, or the CPU.

    Raises ConfigError when there are fewer GPUs than processes, or when the micro-batches cannot be dealt evenly.
    """
    device = choose_device(config)
    if member.size == 1:
        return device
    if issues := list(shared_by(config, member.size)):
        raise ConfigError(issues)
    if config.device == "cpu":
        return device
    found = torch.cuda.device_count() if device.type == "cuda" else 0
    if found < member.size:
        message = f"{member.size} processes need a GPU each, and this process sees {found}"
        raise ConfigError([Issue("device", message, f"at most {max(found, 1)} processes, or device: cpu")])
    device = torch.device("cuda", member.rank)
    torch.cuda.set_device(device)
    return device
