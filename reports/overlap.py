"""Which runs trained at the same time as the run that they are read against, and for how long. Pure.

Only the first wave of a study starts together; later runs take whatever slot comes free. Runs that trained at different
times met a machine in different states, so a reader must know which they are. What counts here is the life of the
training processes, from start to end: loading, validation and checkpoints are in it, so it is longer than the seconds
of training and evaluation that the same run reports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reports.pairing import baseline_of
from reports.study import RunView, StudyView

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Overlap:
    """A run and the baseline's run of its seed. `common_s` is how many seconds the training processes of both ran,
    `shorter_s` how long those of the shorter run did; None while one of them still does. `apart_s` is the pause between
    them, None if they met.
    """

    run: RunView
    baseline: RunView
    common_s: float | None
    shorter_s: float | None
    apart_s: float | None

    @property
    def share(self) -> float | None:
        """The common time as a share of the shorter life (0 to 1); None when that is not known or took no time."""
        if self.common_s is None or not self.shorter_s:
            return None
        return self.common_s / self.shorter_s


def overlaps(study: StudyView) -> tuple[Overlap, ...]:
    """Every run that is read against another of its seed, in the order of the study; both must have started."""
    found = []
    for run in study.runs:
        baseline = baseline_of(study, run)
        if baseline is None or baseline.arm == run.arm or baseline.seed != run.seed:
            continue
        mine, theirs = _spans(run), _spans(baseline)
        if mine and theirs:
            found.append(_overlap(run, baseline, mine, theirs))
    return tuple(found)


def apart(found: Sequence[Overlap]) -> tuple[Overlap, ...]:
    """Those that never trained at the same time."""
    return tuple(one for one in found if one.apart_s is not None)


def _overlap(run: RunView, baseline: RunView, mine: list[Span], theirs: list[Span]) -> Overlap:
    common_s = math.fsum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in mine for b in theirs)
    shorter_s = min(math.fsum(end - start for start, end in spans) for spans in (mine, theirs))
    gap_s = min(max(a[0], b[0]) - min(a[1], b[1]) for a in mine for b in theirs)
    is_over = all(math.isfinite(end) for spans in (mine, theirs) for _, end in spans)
    return Overlap(
        run,
        baseline,
        common_s=common_s if is_over or gap_s >= 0 else None,
        shorter_s=shorter_s if is_over else None,
        apart_s=gap_s if gap_s >= 0 else None,
    )


def _spans(run: RunView) -> list[Span]:
    """When each training process ran; a live one has no end. A clock that was set back makes no time negative."""
    return [
        (attempt.started, math.inf if attempt.ended is None else max(attempt.started, attempt.ended))
        for attempt in run.attempts
        if attempt.started is not None and attempt.kind == "train"
    ]
