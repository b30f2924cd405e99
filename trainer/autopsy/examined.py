"""What one autopsy has looked at and found: all that its files, its table and its conclusion are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.autopsy.pair import Pair
from trainer.autopsy.passes import Passes
from trainer.autopsy.shares import Finding
from trainer.autopsy.weights import Averages


@dataclass(frozen=True, slots=True)
class Examined:
    """One autopsy. `finding` is None when the two checkpoints could not be compared (`pair.why_not`).

    `samples` of the `available` held-out ones were scored. `distances` holds, by step, how far the weight profile of a
    rebuilt ema_alt is from its target. `native` and `reason` are words for the arm's own guidance and for the choice of
    the metric. `not_measured` maps what is missing to the reason.
    """

    run: str
    pair: Pair
    metric: str
    reason: str
    direction: str
    native: str
    averages: Averages
    distances: Mapping[int, float]
    passes: Passes
    finding: Finding | None
    not_measured: Mapping[str, str]
    eval_set: str
    samples: int
    available: int
    eval_seeds: int
    seconds: float
