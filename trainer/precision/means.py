"""Whether this machine has what precision and compilation ask for, asked before a run touches anything."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator

import torch

from trainer.config import TrainerConfig
from trainer.errors import ConfigError, Issue
from trainer.precision.fp8 import missing_hardware


def require_means(config: TrainerConfig, device: torch.device) -> None:
    """Raise ConfigError for what is switched on and cannot run here; it names the way out."""
    found = [*_fp8(config, device), *_compile(config, device)]
    if found:
        raise ConfigError(found)


def _fp8(config: TrainerConfig, device: torch.device) -> Iterator[Issue]:
    fp8 = config.precision.fp8
    if not fp8.enabled:
        return
    if importlib.util.find_spec("torchao") is None:
        yield Issue("precision.fp8.enabled", "torchao is not installed", "false, or `pip install torchao` first")
    missing = None if fp8.emulate else missing_hardware(device)
    if missing is not None:
        allowed = "precision.fp8.emulate: true (the same numbers, slowly), or precision.fp8.enabled: false for bf16"
        yield Issue("precision.fp8.enabled", missing, allowed)


def _compile(config: TrainerConfig, device: torch.device) -> Iterator[Issue]:
    if not config.compile.enabled or config.compile.backend != "inductor":
        return
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        yield Issue("compile.enabled", "triton, which inductor writes GPU kernels in, is not installed", "false")
    if device.type == "cpu" and cpp_compiler() is None:
        allowed = "false, or install g++ or name a compiler in CXX first"
        yield Issue("compile.enabled", "inductor needs a C++ compiler for a CPU, and there is none", allowed)


def cpp_compiler() -> str | None:
    """The C++ compiler that inductor would use on a CPU: CXX, else g++."""
    return shutil.which(os.environ.get("CXX", "g++"))
