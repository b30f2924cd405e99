"""What a reader must know of a run beside its state: rules that a person overruled, steps nobody saw. Pure.

A script may end with exit code 0 after half its steps, or print nothing that its arm's pattern matches: it is
`finished` all the same, because no exit code says otherwise.
"""

from __future__ import annotations

from reports.readings import is_complete
from reports.study import RunView
from reports.wording import counted, listed


def is_unread(run: RunView) -> bool:
    """Whether a run is finished and no point of it was ever read."""
    return is_complete(run) and run.points == 0 and not run.curves


def is_short(run: RunView) -> bool:
    """Whether a finished run's last step lies further below its budget than one interval of its records."""
    return _missing_steps(run) > _interval_steps(run)


def is_a_little_short(run: RunView) -> bool:
    """Whether a finished run's last step lies below its budget by one interval of its records at most.

    So it is with every script that counts its steps from 0 or logs every few of them.
    """
    return 0 < _missing_steps(run) <= _interval_steps(run)


def steps_read(run: RunView) -> str:
    """`11 of 40`, or `11` when no budget is known."""
    return f"{run.step} of {run.steps_total}" if run.steps_total else str(run.step)


def overruled(run: RunView) -> str:
    """`a person overrode non_finite; the rule was off for its later attempts`; empty when nobody did."""
    if not run.overridden:
        return ""
    off = "rule was" if len(run.overridden) == 1 else f"{counted(len(run.overridden), 'rule')} were"
    return f"a person overrode {listed(list(run.overridden))}; the {off} off for its later attempts"


def unseen(run: RunView) -> str:
    """What is missing of a finished run: `the last step read is 11 of 40`; empty when nothing is."""
    if is_unread(run):
        return "no metric of it was ever read"
    return f"the last step read is {steps_read(run)}" if is_short(run) else ""


def remarks(run: RunView) -> tuple[str, ...]:
    """What to tell wherever the run stands in a comparison."""
    return tuple(text for text in (overruled(run), unseen(run)) if text)


def _missing_steps(run: RunView) -> int:
    return max(0, run.steps_total - run.step) if is_complete(run) and run.curves else 0


def _interval_steps(run: RunView) -> int:
    """Steps between the last two records of the densest series that reached the last step; at least 1."""
    reached = [found.steps for found in run.curves.values() if found.steps and found.steps[-1] == run.step]
    return max(1, min((steps[-1] - steps[-2] for steps in reached if len(steps) > 1), default=1))
