"""What every detector is given: the curves of one run and the little that is known around them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.records import DeclaredEvent, Primary, Series

# Declared events after which a metric may jump for a good reason. Others (a checkpoint, a resume) excuse nothing.
REGIME_CHANGES = frozenset({"repa_off", "routing_off", "resolution", "lr_restart"})


@dataclass(frozen=True, slots=True)
class Curves:
    """One run as the judge sees it. Shares of the budget are 0 to 1; `steps_total` is None when nobody said.

    `loss_name` names the loss of a command arm whose series is called neither `train/loss` nor `loss`.
    """

    series: Mapping[str, Series]
    steps_total: int | None
    primary: Primary | None
    events: Sequence[DeclaredEvent]
    loss_name: str | None = None

    def has_passed(self, share: float, step: int) -> bool:
        """Whether `step` lies at or beyond this share of the budget; always true without a budget."""
        return self.steps_total is None or step >= share * self.steps_total

    def regime_changes(self) -> list[int]:
        """The steps of declared changes of regime, ascending."""
        return sorted({event.step for event in self.events if event.event in REGIME_CHANGES})

    def loss(self) -> Series | None:
        """The training loss: `train/loss`, else `loss`, else the series the arm file names."""
        for name in ("train/loss", "loss", self.loss_name):
            if name is not None and name in self.series:
                return self.series[name]
        return None


def json_numbers(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """The evidence as plain JSON: a number that overflowed is the string that non-finite values are everywhere."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in evidence.items()
    }
