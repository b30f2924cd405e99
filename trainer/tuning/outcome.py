"""What became of one candidate: its times and its memory, or why it has none. No torch here."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, replace
from statistics import median, quantiles
from typing import Literal

from trainer.tuning.candidate import Candidate

Kind = Literal["measured", "out_of_memory", "impossible", "failed", "skipped"]
"""Impossible: this machine lacks what it needs, a compiler for example. Skipped: not worth trying."""
LOSS_TOLERANCE = 0.01
"""Losses of the same steps may differ by this share: rounding, and what some steps make of it. Other mathematics shows
more: another batch or route changes a loss by several per cent."""

_NO_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|^(?:\w+\.)*_?(?:Array)?MemoryError\b"
    r"|CUDNN_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED|can't allocate memory|Cannot allocate memory|std::bad_alloc"
    # What oneDNN says when the host has no memory left.
    r"|could not create a (?:primitive|memory)"
    r"|MiB of shared memory",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A candidate and what became of it.

    `step_s` holds the seconds of every timed optimizer step, `losses` its total loss, `data_share` the share of the
    time that was waited for data, `peak_mib` the most memory that the process (CPU) or its tensors (GPU) ever had.
    """

    candidate: Candidate
    kind: Kind
    why: str = ""
    step_s: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    data_share: float = 0.0
    peak_mib: float | None = None

    @property
    def median_s(self) -> float:
        """Seconds of a typical step."""
        return median(self.step_s)

    @property
    def spread_s(self) -> float:
        """Half the distance between the quartiles of the steps; 0 of one step."""
        if len(self.step_s) < 2:
            return 0.0
        first, _, third = quantiles(self.step_s, n=4, method="inclusive")
        return (third - first) / 2

    def joined(self, later: Outcome) -> Outcome:
        """The faster of two turns, with the higher peak: what else a machine does only ever makes a step slower.

        A candidate that did not come through the second time does not count.
        """
        if later.kind != "measured":
            return replace(later, why=f"{later.why} (in a later turn; an earlier one passed)")
        peak_mib = max(self.peak_mib or 0.0, later.peak_mib or 0.0)
        return replace(min(self, later, key=lambda turn: turn.median_s), peak_mib=peak_mib)


def died(candidate: Candidate, code: int, errors: str) -> Outcome:
    """The outcome of a process that ended with this return code and left this on its standard error."""
    said = last_words(errors)
    if code == -signal.SIGKILL:
        why = "killed (SIGKILL), as the kernel does where memory is short"
        return Outcome(candidate, "out_of_memory", why)
    if found := _NO_MEMORY.search(errors):
        line = next(line for line in errors[found.start() :].splitlines() or [found[0]])
        return Outcome(candidate, "out_of_memory", (said if _NO_MEMORY.search(said) else line)[:300])
    how = f"ended by {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"exit code {code}"
    return Outcome(candidate, "failed", f"{how}: {said}" if said else how)


def last_words(errors: str) -> str:
    """The last line that says something; of a traceback that is the exception."""
    return next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), "")[:300]


def checked(outcome: Outcome, reference: Outcome | None) -> Outcome:
    """The outcome, or a failure if its losses are not those of `reference`, which made the same steps otherwise."""
    if reference is None or reference.candidate.compute != outcome.candidate.compute:
        return outcome
    for ours, theirs in zip(outcome.losses, reference.losses, strict=False):
        if not abs(ours - theirs) <= LOSS_TOLERANCE * abs(theirs):  # written so that nan is a difference
            why = f"its loss is {ours:.6g} where {reference.candidate} has {theirs:.6g}: it does not train the same"
            return replace(outcome, kind="failed", why=why)
    return outcome
