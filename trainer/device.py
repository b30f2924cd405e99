"""Which device a process computes on, and which GPUs it really sees."""

from __future__ import annotations

import os

import torch

from trainer.config import TrainerConfig
from trainer.errors import ConfigError, Issue


def choose_device(config: TrainerConfig) -> torch.device:
    """The device that `device` asks for. Raises ConfigError for cuda where there is none."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ConfigError([Issue("device", "this process sees no CUDA device", ("auto", "cpu"))])
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


def cap_threads() -> None:
    """As many CPU threads as OMP_NUM_THREADS says, else one."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def gpu_uuids() -> list[str]:
    """UUIDs of the GPUs that this process sees, in its own order."""
    if not torch.cuda.is_available():
        return []
    properties = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return [f"GPU-{device.uuid}" for device in properties]
