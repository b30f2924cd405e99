"""Which runs may be opened up when a person asks for it, and how long that may take. Pure.

An autopsy compares two checkpoints of one run, the best and the last, and says what became worse between them. It reads
the run's folder and never changes what the run is.
"""

from __future__ import annotations

from runner.errors import UsageError
from runner.records import Policy, RunState

CHECKPOINTS_NEEDED = 2
DEFAULT_S = 900.0
"""Seconds for an autopsy that a person asks for where the policy has none after an abort."""

AUTOPSY_ENDED = "autopsy_ended"
"""The event that says what became of an autopsy that a person asked for; its data: ok."""

MAY = (RunState.FINISHED, RunState.ABORTED, RunState.FAILED, RunState.CANCELLED)
"""A run that was lost may be alive, out of sight: two processes must never share a run."""


def refuse_autopsy(run: str, state: RunState, *, is_trainer: bool, checkpoints: int | None = None) -> None:
    """Raises UsageError when a run, named by its id, cannot be opened up. `checkpoints` is how many complete ones it
    has, None where that is not known yet."""
    allowed = f"an ended run ({', '.join(MAY)}) of our trainer with at least {CHECKPOINTS_NEEDED} checkpoints"
    if not is_trainer:
        raise UsageError(f"{run} runs a command, whose checkpoints nobody here can read; allowed: {allowed}")
    if state not in MAY:
        raise UsageError(f"{run} is {state}; allowed: {allowed}")
    if checkpoints is not None and checkpoints < CHECKPOINTS_NEEDED:
        kept = "1 is" if checkpoints == 1 else f"{checkpoints} are"
        raise UsageError(f"{run}: an autopsy compares two checkpoints, and {kept} there; allowed: {allowed}")


def limit_s(policy: Policy, left_s: float | None) -> float:
    """Seconds that an autopsy may take: what the policy gives, no more than the budget has left, and never none."""
    wanted_s = policy.autopsy_s or DEFAULT_S
    return wanted_s if left_s is None else max(1.0, min(wanted_s, left_s))
