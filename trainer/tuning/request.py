"""What the process that measures a candidate is asked. No torch here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

HEADROOM = 0.9
"""Share of what is free that a candidate may take if nobody gives a limit: validation, unusual batches and neighbours
want some, too."""
LEAST_STEPS, MOST_STEPS, REHEARSED_STEPS = 3, 200, 10
"""Timed steps of a candidate; the last is the most where blocks are compiled and nobody says how many."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure. `config` is the candidate's trainer block as JSON; memory limits are in MiB, None for unknown.

    `warm_up` steps are made first and not timed. `steps` timed ones follow, or as many as take `seconds`; fewer if
    every one of the first is slower than `SLOW` times `best_s`, the seconds of a step of the best so far.
    """

    config: str
    seed: int
    run: str
    run_dir: str
    answer: str
    attempt: int
    synthetic: bool
    warm_up: int
    seconds: float
    steps: int | None
    best_s: float | None
    limit_mib: float | None

    def line(self) -> str:
        """The request as the trial reads it from its stdin."""
        return json.dumps(asdict(self)) + "\n"
