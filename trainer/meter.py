"""Sums over the optimizer steps since the last line of metrics, kept on the device until the line is due."""

from __future__ import annotations

import math
from typing import Any

import psutil
import torch
from torch import Tensor

from trainer.config import TrainerConfig
from trainer.indicators.reading import Reading
from trainer.step import StepResult

_GIB = 2**30


class Meter:
    """Turns step results into train metrics, and counts the seconds of training and of evaluation.

    Losses are means over all micro-batches since the last line, gradient norm, rate and indicators those of the last
    step. Times are cumulative over the attempts of a run; evaluation and checkpoints are in no speed.
    """

    def __init__(self, config: TrainerConfig, device: torch.device) -> None:
        self._config = config
        self._device = device
        self.train_s = 0.0
        self.eval_s = 0.0
        self._clear()

    def add(self, result: StepResult, seconds: float) -> None:
        """Take in one finished optimizer step that took `seconds`."""
        self.train_s += seconds
        self._seconds += seconds
        self._data_s += result.data_s
        self._steps += 1
        self._timed_steps += 1
        self._sums += result.losses.double()
        self._aligned_steps += result.aligned
        self._cosine = self._cosine if result.repa_cosine is None else result.repa_cosine
        self._reading = self._reading if result.reading is None else result.reading
        self._last = result

    def line(self) -> dict[str, float]:
        """The metrics of the steps since the last line; starts a new window. Only here the device is waited for."""
        loss, flow, repa, velocity_square = (self._sums / self._steps).tolist()
        last = self._last
        assert last is not None, "a line needs at least one step"
        metrics = {
            "train/loss": loss,
            "train/flow_loss": flow,
            "train/grad_norm": float(last.grad_norm),
            "train/velocity_rms": math.sqrt(velocity_square) if velocity_square >= 0 else velocity_square,
            "train/lr": last.lr,
        }
        if self._aligned_steps:
            metrics["train/repa_loss"] = repa * self._steps / self._aligned_steps
        if self._cosine is not None:
            metrics["train/repa_cosine"] = self._cosine
        if self._reading is not None:
            metrics.update(self._reading.metrics())
        metrics.update(self._system(last))
        self._clear()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The open window, for a checkpoint; `load_state_dict` restores it exactly."""
        counts = {"steps": self._steps, "aligned_steps": self._aligned_steps, "cosine": self._cosine}
        return {"sums": self._sums, **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore an open window."""
        self._sums = state["sums"].to(self._device)
        self._steps, self._aligned_steps, self._cosine = state["steps"], state["aligned_steps"], state["cosine"]

    def _system(self, last: StepResult) -> dict[str, float]:
        steps_per_s = self._timed_steps / max(self._seconds, 1e-9)
        return {
            "sys/images_per_s": steps_per_s * self._config.samples_per_step,
            "sys/iter_per_s": steps_per_s,
            "sys/active_tokens": last.active_tokens,
            "sys/data_wait_frac": self._data_s / max(self._seconds, 1e-9),
            "sys/train_s": self.train_s,
            "sys/eval_s": self.eval_s,
            **self._memory(),
        }

    def _memory(self) -> dict[str, float]:
        if self._device.type == "cuda":
            return {"memory/peak_vram_gib": torch.cuda.max_memory_allocated(self._device) / _GIB}
        return {"memory/rss_gib": psutil.Process().memory_info().rss / _GIB}

    def _clear(self) -> None:
        self._sums: Tensor = torch.zeros(4, dtype=torch.float64, device=self._device)
        self._steps = self._timed_steps = self._aligned_steps = 0
        self._cosine: float | None = None
        self._seconds = self._data_s = 0.0
        self._reading: Reading | None = None
        self._last: StepResult | None = None
