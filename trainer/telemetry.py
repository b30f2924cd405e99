"""What a process says about itself: one JSON object a line in attempt-N/metrics.jsonl, and the same for TensorBoard.

    {"step": 500, "time": 1790000000.0, "kind": "train" | "val" | "event", "train/loss": 0.31, …}

Numbers that are not finite are the strings "nan", "inf" and "-inf". Every line is one write, so that a reader never
sees half of a line in front of a whole one.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter


def plain(value: Any) -> Any:
    """A JSON value for any number: floats that are not finite become the strings "nan", "inf" or "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


class Telemetry:
    """Writer of one attempt; use it as a context manager."""

    def __init__(self, attempt_dir: Path) -> None:
        attempt_dir.mkdir(parents=True, exist_ok=True)
        self._descriptor = _open_for_lines(attempt_dir / "metrics.jsonl")
        self._board = SummaryWriter(str(attempt_dir / "tensorboard"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._board.close()
        os.close(self._descriptor)

    def metrics(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics; `kind` is train or val. No metrics, no line."""
        if not metrics:
            return
        now = time.time()
        self._write(step, now, kind, {name: plain(value) for name, value in metrics.items()})
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step, walltime=now)

    def event(self, step: int, event: str, **fields: Any) -> None:
        """One line that announces something that happened at `step`."""
        self._write(step, time.time(), "event", {"event": event, **fields})

    def sync(self) -> None:
        """Return once all lines are on disk."""
        os.fsync(self._descriptor)
        self._board.flush()

    def _write(self, step: int, now: float, kind: str, fields: Mapping[str, Any]) -> None:
        line = json.dumps({"step": step, "time": now, "kind": kind, **fields}, allow_nan=False) + "\n"
        os.write(self._descriptor, line.encode())


def _open_for_lines(path: Path) -> int:
    """Open for appending; a line that an earlier process left unfinished is ended first."""
    unfinished = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    if unfinished:
        os.write(descriptor, b"\n")
    return descriptor
