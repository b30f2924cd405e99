"""The data files of a report: everything that its text and figures were made from, as CSV. Pure, sorted, exact.

Numbers are written with every bit (bounds of intervals with 12 digits), non-finite values as nan, inf and -inf,
missing ones as nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from reports.conditioning import Manipulation, StreamUse
from reports.contention import Busyness
from reports.contrasts import Contrast
from reports.findings import reading
from reports.intervals import Interval
from reports.readings import last, samples_per_step
from reports.study import RunView, StudyView
from reports.wording import exact

POINTS = ("run", "attempt", "name", "step", "value", "time")
SCORES = ("run", "step", "weights", "sampler", "metric", "sample_id", "eval_seed", "value", "valid", "reason")
RUNS = (
    "run", "arm", "seed", "generation", "baseline", "kind", "state", "reason", "health", "step", "steps_total",
    "final_step", "final", "best_step", "best", "parameters", "flops_per_sample", "samples_per_step",
    "images_per_s", "steps_per_s", "throughput_note", "points", "rejected_lines", "attempts", "code_hash",
    "parent", "parent_step",
)  # fmt: skip
CONTRASTS = (
    "arm", "baseline", "metric", "direction", "paired_seeds", "arm_steps", "baseline_steps", "delta", "low", "high",
    "interval", "seed_floor", "within_seed_spread", "word", "reading", "p_sign_flip", "p_holm", "equal_steps",
    "equal_steps_budget", "equal_samples", "equal_samples_budget", "equal_time", "equal_time_budget",
    "equal_time_note", "why_not", "notes",
)  # fmt: skip
PROVENANCE = ("what", "value", "runs")
STREAMS = ("run", "stream", "step", "cost", "low", "high", "samples", "finding")
MANIPULATION = ("run", "step", "delta", "floor", "above_floor", "low", "high", "spread", "hit", "finding")
AUTOPSY = (
    "run", "part", "weights", "pass", "cause", "w", "best_step", "stop_step", "metric", "best", "stop", "delta", "low",
    "high", "samples", "blamed",
)  # fmt: skip


def points_csv(study: StudyView) -> str:
    """Every point of every series, in the view of attempts that judge and report share."""
    return _csv(
        POINTS,
        (
            (run.run, attempt, name, step, exact(value), exact(time))
            for run in study.runs
            for name, found in sorted(run.curves.items())
            for step, value, time, attempt in zip(found.steps, found.values, found.times, found.attempts, strict=True)
        ),
    )


def scores_csv(study: StudyView) -> str:
    """Every held-out sample's score."""
    return _csv(
        SCORES,
        (
            (
                run.run, score.step, score.weights, score.sampler, score.metric, score.sample_id, score.eval_seed,
                exact(score.value), int(score.valid), score.reason,
            )
            for run in study.runs
            for score in run.scores
        ),
    )  # fmt: skip


def runs_csv(study: StudyView, busy: Busyness) -> str:
    """One line per run."""
    return _csv(RUNS, (_run_row(study, run, busy) for run in study.runs))


def contrasts_csv(found: Sequence[Contrast]) -> str:
    """One line per contrast of the primary."""
    return _csv(CONTRASTS, (_contrast_row(contrast) for contrast in found))


def streams_csv(uses: Sequence[StreamUse]) -> str:
    """One line per run and stream."""
    rows = ((use.run.run, use.stream, use.step, exact(use.cost), *_bounds(use.interval), use.finding) for use in uses)
    return _csv(STREAMS, rows)


def manipulation_csv(found: Sequence[Manipulation]) -> str:
    """One line per run with text manipulation."""
    return _csv(
        MANIPULATION,
        (
            (
                one.run.run, one.step, exact(one.delta), exact(one.floor), exact(one.above_floor),
                *_bounds(one.interval)[:2], exact(one.spread), exact(one.hit), one.finding,
            )
            for one in found
        ),
    )  # fmt: skip


def autopsy_csv(rows: Iterable[Sequence[Any]]) -> str:
    """What autopsies measured: one line per cell, strength of guidance, share and sum, part by part."""
    return _csv(AUTOPSY, rows)


def provenance_csv(rows: Sequence[tuple[str, str, str]]) -> str:
    """Where the runs came from: entry, value, and the runs that have this value."""
    return _csv(PROVENANCE, rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _bounds(interval: Interval | None) -> tuple[str, str, str]:
    return ("", "", "") if interval is None else (_bound(interval.low), _bound(interval.high), str(interval.count))


def _bound(value: float) -> str:
    """Twelve digits: the last bits of a bound depend on the machine's mathematical library."""
    return f"{value:.12g}"


def _run_row(study: StudyView, run: RunView, busy: Busyness) -> tuple[Any, ...]:
    final = last(run, study.primary.metric) if study.primary is not None else None
    speed = busy.throughput[run.run]
    return (
        run.run, run.arm, run.seed, run.generation, run.baseline or "", run.kind, run.state, run.reason, run.health,
        run.step, run.steps_total, "" if final is None else final[0], "" if final is None else exact(final[1]),
        "" if run.best is None else run.best[0], "" if run.best is None else exact(run.best[1]),
        "" if run.parameters is None else run.parameters, exact(run.flops_per_sample),
        "" if (samples := samples_per_step(run)) is None else samples, exact(speed.images_per_s),
        exact(speed.steps_per_s), speed.note, run.points, run.rejected_lines, len(run.attempts), run.code_hash,
        *(("", "") if run.parent is None else (run.parent.run, run.parent.step)),
    )  # fmt: skip


def _contrast_row(contrast: Contrast) -> tuple[Any, ...]:
    within = contrast.within_seed_spread
    low, high, _ = _bounds(contrast.interval)
    return (
        contrast.arm, contrast.baseline, contrast.metric, contrast.direction, contrast.paired_seeds,
        _joined(pair.arm_step for pair in contrast.pairs), _joined(pair.baseline_step for pair in contrast.pairs),
        exact(contrast.delta), low, high, "" if contrast.interval is None else contrast.interval.kind,
        exact(contrast.seed_floor), "" if within is None else int(within), contrast.word, reading(contrast),
        exact(contrast.p), exact(contrast.p_holm), exact(contrast.equal_steps.delta), contrast.equal_steps.budget,
        exact(contrast.equal_samples.delta), contrast.equal_samples.budget, exact(contrast.equal_time.delta),
        contrast.equal_time.budget, contrast.equal_time.note, contrast.why_not, "; ".join(contrast.notes),
    )  # fmt: skip


def _joined(steps: Iterable[int]) -> str:
    return " ".join(str(step) for step in steps)
