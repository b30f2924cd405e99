"""Which validation scored what: the memory behind "best" and behind what a second validation of a step may add.

Kept in checkpoints/scores.json, replaced atomically after every validation, so that a resumed run knows its best step.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from trainer.config import TrainerConfig
from trainer.rules import is_validation_step
from trainer.telemetry import plain

BEST_FROM_SHARE = 0.10  # validations before this share of the run are never the best


class Scores:
    """Metrics of every validated step of one run."""

    def __init__(self, run_dir: Path, config: TrainerConfig) -> None:
        self._path = run_dir / "checkpoints" / "scores.json"
        self._config = config
        self._steps: dict[int, dict[str, float]] = {}

    def restore(self, until: int) -> None:
        """Read what earlier processes scored, up to and including step `until`."""
        if self._path.exists():
            stored = json.loads(self._path.read_bytes())
            self._steps = {int(step): _numbers(metrics) for step, metrics in stored.items() if int(step) <= until}

    def __contains__(self, step: int) -> bool:
        return step in self._steps

    def unknown(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics that this step does not have yet: a second validation of a step repeats nothing."""
        known = self._steps.get(step, {})
        return {name: value for name, value in metrics.items() if name not in known}

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Remember a validation, durably; values that are already known stay."""
        self._steps[step] = {**metrics, **self._steps.get(step, {})}
        self._store()

    def best(self, among: Collection[int]) -> int | None:
        """The step with the best value of checkpoint.keep.best, ties to the earlier; None if there is none yet.

        Only finite values of regular validations in the last 90 % of the run count, and only steps in `among`.
        """
        best = self._config.checkpoint.keep.best
        if best is None:
            return None
        sign = 1.0 if best.direction == "min" else -1.0
        values = {step: self._steps.get(step, {}).get(best.metric, math.nan) for step in among}
        found = [(sign * value, step) for step, value in values.items() if self._counts(step, value)]
        return min(found, default=(0.0, None))[1]

    def _counts(self, step: int, value: float) -> bool:
        late = step >= BEST_FROM_SHARE * self._config.steps
        return late and math.isfinite(value) and is_validation_step(self._config, step)

    def _store(self) -> None:
        content = {
            step: {name: plain(value) for name, value in metrics.items()} for step, metrics in self._steps.items()
        }
        unfinished = self._path.with_suffix(".tmp")
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._path)


def _numbers(metrics: Mapping[str, float | str]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
