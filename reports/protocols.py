"""One metric under several protocols, restricted to the samples that all of them scored. Pure.

Averaged (EMA) or raw weights, the study's common sampler or the arm's native one; raw weights are scored on fewer
samples, so plain means of two protocols are means over different samples.
"""

from __future__ import annotations

import math

from reports.readings import PREFIXES, as_line, at, curve, mean, protocol, scores_at
from reports.study import RunView

Line = dict[int, float]


def protocols_of(metric: str) -> tuple[str, ...]:
    """A metric's full names under all four protocols, EMA with the common sampler first."""
    found = protocol(metric)
    if found is None:
        return ()
    order = (("ema", "common"), ("raw", "common"), ("ema", "native"), ("raw", "native"))
    return tuple(f"{PREFIXES[way]}/{found[2]}" for way in order)


def protocol_step(run: RunView, metric: str) -> int | None:
    """The last step at which a run has at least two protocols of a metric."""
    held = [set(curve(run, name).steps) for name in protocols_of(metric)]
    steps = [step for step in sorted(set().union(*held)) if sum(step in one for one in held) >= 2] if held else []
    # A native score exists at full validations only: prefer the last of those over a later light one.
    full = [step for step in steps if any(step in one for one in held[2:])]
    return max(full or steps, default=None)


def protocol_values(run: RunView, metric: str) -> tuple[list[float | None], int, int]:
    """(value per protocol, step, samples in common); on the samples that all of the run's protocols scored, where
    there are such, else the plain values with 0 samples in common."""
    step = protocol_step(run, metric)
    if step is None:
        return [], 0, 0
    names = protocols_of(metric)
    scores = {name: scores_at(run, name, step) for name in names if at(run, name, step) is not None}
    common = set.intersection(*(set(one) for one in scores.values()))
    if not common:
        return [at(run, name, step) for name in names], step, 0
    keys = sorted(common)
    return [mean([scores[n][key] for key in keys]) if n in scores else None for n in names], step, len(keys)


def averaged_and_raw(run: RunView, metric: str) -> tuple[Line, Line, int]:
    """(averaged weights, raw weights, samples in common) by step; restricted to the samples that both scored.

    Where a step has no per-sample scores of both, 0 samples are in common and the plain curves are given.
    """
    names = protocols_of(metric)[:2]
    if len(names) < 2:
        return as_line(curve(run, metric)), {}, 0
    averaged, raw = (as_line(curve(run, name)) for name in names)
    counts = []
    for step in sorted(averaged.keys() & raw.keys()):
        if not math.isfinite(averaged[step] + raw[step]):
            continue  # such a point is told apart as not finite; it says nothing of the samples in common
        scores = [scores_at(run, name, step) for name in names]
        common = sorted(scores[0].keys() & scores[1].keys())
        counts.append(len(common))
        if common:
            averaged[step], raw[step] = (mean([one[key] for key in common]) for one in scores)
    if not counts or min(counts) == 0:
        return as_line(curve(run, names[0])), as_line(curve(run, names[1])), 0
    return {step: value for step, value in averaged.items() if step in raw}, raw, min(counts)
