"""Which throughput may be compared: only that from windows in which the other slots were equally busy. Pure.

Between two train lines of a run the number of other processes on its host either stayed the same or not. The study's
level is the number of busy neighbours that most runs have windows for; what was measured at another level is left
out, and a run without enough windows says "contended: n/a" instead of a number.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from reports.readings import curve
from reports.study import Curve, RunView, StudyView
from reports.whereabouts import hardware

CONTENDED = "contended: n/a"
NOT_REPORTED = "not reported"
FEWEST_WINDOWS = 3
LEAST_SHARE = 0.8  # share of a run's windows that must be at the level before its clock is compared as a whole


@dataclass(frozen=True, slots=True)
class Throughput:
    """Median speed of a run at the study's level; None with the reason in `note`. `windows` of `of` were used."""

    images_per_s: float | None
    steps_per_s: float | None
    windows: int
    of: int
    note: str


@dataclass(frozen=True, slots=True)
class Busyness:
    """The study's level (how many neighbours were busy; None when nothing was measured) and each run's windows."""

    level: int | None
    throughput: dict[str, Throughput]
    whole_clock: frozenset[str]

    def clock_note(self, run: RunView, other: RunView) -> str:
        """Why the seconds of two runs must not be compared; empty when they may be."""
        if hardware(run) != hardware(other):
            return "different hardware: n/a"
        if NOT_REPORTED in (self.throughput[run.run].note, self.throughput[other.run].note):
            return "training time not reported"
        return "" if {run.run, other.run} <= self.whole_clock else CONTENDED


def busyness(study: StudyView) -> Busyness:
    """Sort every run's windows by how many neighbours were busy, and choose the level that serves most runs."""
    levels = {run.run: _window_levels(study, run) for run in study.runs}
    level = _common_level(list(levels.values()))
    throughput = {run.run: _throughput(run, levels[run.run], level) for run in study.runs}
    whole = {name for name, found in throughput.items() if not found.note and found.windows >= LEAST_SHARE * found.of}
    return Busyness(level, throughput, frozenset(whole))


def _window_levels(study: StudyView, run: RunView) -> list[int | None]:
    """For each point of sys/images_per_s: busy neighbours during its window, None when that number changed."""
    busy = _neighbours(study, run)
    starts = sorted(start for start, _ in busy)
    ends = sorted(end for _, end in busy)
    edges = sorted([*starts, *ends])
    speed = curve(run, "sys/images_per_s")
    levels: list[int | None] = []
    for index, time in enumerate(speed.times):
        opened = speed.times[index - 1] if index and speed.attempts[index - 1] == speed.attempts[index] else time
        changed = bisect_right(edges, time) - bisect_left(edges, opened)
        levels.append(None if changed else bisect_right(starts, time) - bisect_right(ends, time))
    return levels


def _neighbours(study: StudyView, run: RunView) -> list[tuple[float, float]]:
    hosts = {attempt.host for attempt in run.attempts}
    inside = [
        (attempt.started, math.inf if attempt.ended is None else attempt.ended)
        for other in study.runs
        if other.run != run.run
        for attempt in other.attempts
        if attempt.started is not None and attempt.host in hosts
    ]
    outside = [
        (neighbour.started, math.inf if neighbour.ended is None else neighbour.ended)
        for neighbour in study.neighbours
        if neighbour.host in hosts
    ]
    return inside + outside


def _common_level(levels: Sequence[list[int | None]]) -> int | None:
    counts = [Counter(level for level in run if level is not None) for run in levels]
    known = sorted({level for run in counts for level in run})
    if not known:
        return None

    def serves(level: int) -> tuple[int, int]:
        return sum(run[level] >= FEWEST_WINDOWS for run in counts), sum(run[level] for run in counts)

    return max(known, key=serves)


def _throughput(run: RunView, levels: list[int | None], level: int | None) -> Throughput:
    if not levels or level is None:
        return Throughput(None, None, 0, 0, NOT_REPORTED)
    if any(attempt.shares_cores for attempt in run.attempts):
        return Throughput(None, None, 0, len(levels), f"{CONTENDED} (slots share cores)")
    speed = curve(run, "sys/images_per_s")
    chosen = [step for step, found in zip(speed.steps, levels, strict=True) if found == level]
    if len(chosen) < FEWEST_WINDOWS:
        return Throughput(None, None, len(chosen), len(levels), CONTENDED)
    steps = set(chosen)
    images = _median(speed, steps)
    note = "" if images is not None else "not finite"
    return Throughput(images, _median(curve(run, "sys/iter_per_s"), steps), len(chosen), len(levels), note)


def _median(values: Curve, steps: set[int]) -> float | None:
    finite = [v for s, v in zip(values.steps, values.values, strict=True) if s in steps and math.isfinite(v)]
    return median(finite) if finite else None
