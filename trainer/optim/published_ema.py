"""The published average of the weights: decay 0.9999, which begins with a linear ramp of 500 steps.

It is a share of no run: after 5,000 steps nearly two thirds of it are weights of the first 500. Only a run that
reproduces the published protocol has it (reference_parity), beside an average of ours.
"""

from __future__ import annotations

DECAY = 0.9999
RAMP_STEPS = 500


def published_decay(step: int) -> float:
    """What the update after `step` optimizer steps, from 1 on, leaves of the average before it."""
    return DECAY * min(step / RAMP_STEPS, 1.0)
