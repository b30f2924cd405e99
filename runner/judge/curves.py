"""What every detector is given: the curves of one run and the little that is known around them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.records import DeclaredEvent, Primary, Series, Sibling

# Declared events after which a metric may jump for a good reason. Others (a checkpoint, a resume) excuse nothing.
REGIME_CHANGES = frozenset({"repa_off", "routing_off", "resolution", "lr_restart"})
# Regular validations after a declared change during which a bump is expected.
EVENT_WINDOW = 3


@dataclass(frozen=True, slots=True)
class Curves:
    """One run as the judge sees it. Shares of the budget are 0 to 1; `steps_total` is None when nobody said.

    `loss_name` names the loss of a command arm whose series is called neither `train/loss` nor `loss`. `siblings` are
    the other runs of the study whose primary may be compared with this one's. `paired` holds per-sample scores of the
    primary: step -> sample -> value; empty where they were not kept.
    """

    series: Mapping[str, Series]
    steps_total: int | None
    primary: Primary | None
    events: Sequence[DeclaredEvent]
    loss_name: str | None = None
    siblings: Sequence[Sibling] = ()
    paired: Mapping[int, Mapping[str, float]] = field(default_factory=dict)

    def has_passed(self, share: float, step: int) -> bool:
        """Whether `step` lies at or beyond this share of the budget; always true without a budget."""
        return self.steps_total is None or step >= share * self.steps_total

    def regime_changes(self) -> list[int]:
        """The steps of declared changes of regime, ascending."""
        return sorted({event.step for event in self.events if event.event in REGIME_CHANGES})

    def is_unsettled(self, step: int, regular_steps: Sequence[int]) -> bool:
        """Whether a declared change is so recent at `step` that a bump of the metrics is expected: for three regular
        validations after it. `regular_steps` are those so far, ascending."""
        past = [change for change in self.regime_changes() if change < step]
        return bool(past) and sum(past[-1] < one <= step for one in regular_steps) <= EVENT_WINDOW

    def probes(self) -> Series | None:
        """The primary metric on the judge's own samples, if it was measured there: regular validations and probes."""
        if self.primary is None:
            return None
        return self.series.get(f"val_probe/{self.primary.metric.rpartition('/')[2]}")

    def loss(self) -> Series | None:
        """The training loss: `train/loss`, else `loss`, else the series the arm file names."""
        for name in ("train/loss", "loss", self.loss_name):
            if name is not None and name in self.series:
                return self.series[name]
        return None


def json_numbers(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """The evidence as plain JSON: a number that overflowed is the string that non-finite values are everywhere."""
    return {key: _json_number(value) for key, value in evidence.items()}


def _json_number(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_number(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
