"""Sums over the optimizer steps since the last line of metrics, kept on the device until the line is due.

Shapes: L losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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

    Losses are means over all samples since the last line that they cover, and absent where there was none; gradient
    norm, rate and indicators are those of the last step, the norm absent if that was skipped. Times are cumulative over
    the attempts of a run; evaluation and checkpoints are in no speed.
    """

    _sums_L: Tensor
    _counts: list[int]
    _steps: int
    _timed_steps: int
    _extra: dict[str, float]
    _seconds: float
    _data_s: float
    _flops: float
    _reading: Reading | None
    _last: StepResult | None

    def __init__(
        self,
        config: TrainerConfig,
        device: torch.device,
        loss_names: Sequence[str],
        peak_flops: float | None = None,
    ) -> None:
        """`peak_flops` is what all devices of the run can do in a second at most; None where that is not known."""
        self._config = config
        self._peak_flops = peak_flops
        self._names = tuple(loss_names)
        self._device = device
        self.train_s = 0.0
        self.eval_s = 0.0
        self._clear()

    def add(self, result: StepResult, seconds: float) -> None:
        """Take in one finished optimizer step that took `seconds`."""
        self.train_s += seconds
        self._seconds += seconds
        self._flops += result.flops
        self._data_s += result.data_s
        self._steps += 1
        self._timed_steps += 1
        self._sums_L += result.losses_L.double()
        self._counts = [total + count for total, count in zip(self._counts, result.counts, strict=True)]
        self._extra.update(result.extra)
        self._reading = self._reading if result.reading is None else result.reading
        self._last = result

    def line(self) -> dict[str, float]:
        """The metrics of the steps since the last line; starts a new window. Only here the device is waited for."""
        last = self._last
        assert last is not None, "a line needs at least one step"
        counted = zip(self._names, self._sums_L.tolist(), self._counts, strict=True)
        means = {name: total / count for name, total, count in counted if count}
        square = means.pop("velocity_square")
        metrics = {
            **{f"train/{name}": mean for name, mean in means.items()},
            **({} if last.grad_norm is None else {"train/grad_norm": float(last.grad_norm)}),
            "train/velocity_rms": math.sqrt(square) if square >= 0 else square,
            "train/lr": last.lr,
            **self._extra,
        }
        if self._reading is not None:
            metrics.update(self._reading.metrics())
        metrics.update(self._system(last))
        self._clear()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The open window, for a checkpoint; `load_state_dict` restores it exactly."""
        sums = dict(zip(self._names, self._sums_L.unbind(), strict=True))
        counts = dict(zip(self._names, self._counts, strict=True))
        return {"steps": self._steps, "sums": sums, "counts": counts, "extra": dict(self._extra)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore an open window; of a run with other losses only those that both have."""
        if "counts" not in state:
            return  # from before losses had names: its window is given up
        for index, name in enumerate(self._names):
            if name in state["sums"]:
                self._sums_L[index] = state["sums"][name].to(self._device)
                self._counts[index] = state["counts"][name]
        self._steps, self._extra = state["steps"], dict(state["extra"])

    def _system(self, last: StepResult) -> dict[str, float]:
        steps_per_s = self._timed_steps / max(self._seconds, 1e-9)
        return {
            "sys/images_per_s": steps_per_s * self._config.samples_per_step,
            "sys/iter_per_s": steps_per_s,
            "sys/active_tokens": last.active_tokens,
            "sys/data_wait_frac": self._data_s / max(self._seconds, 1e-9),
            "sys/train_s": self.train_s,
            "sys/eval_s": self.eval_s,
            **self._utilization(),
            **self._memory(),
        }

    def _utilization(self) -> dict[str, float]:
        """sys/mfu of the steps since the last line, on a device whose peak is known."""
        if self._peak_flops is None:
            return {}
        return {"sys/mfu": self._flops / max(self._seconds, 1e-9) / self._peak_flops}

    def _memory(self) -> dict[str, float]:
        if self._device.type == "cuda":
            return {"memory/peak_vram_gib": torch.cuda.max_memory_allocated(self._device) / _GIB}
        return {"memory/rss_gib": psutil.Process().memory_info().rss / _GIB}

    def _clear(self) -> None:
        self._sums_L = torch.zeros(len(self._names), dtype=torch.float64, device=self._device)
        self._counts = [0] * len(self._names)
        self._steps = self._timed_steps = 0
        self._extra = {}
        self._seconds = self._data_s = self._flops = 0.0
        self._reading = None
        self._last = None
