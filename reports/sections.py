"""The tables of a report as rows of plain text, a function for each. Pure; escaping happens when they are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from reports.budgets import QualityTime, Reading
from reports.completeness import remarks, steps_read
from reports.conditioning import Manipulation, StreamUse
from reports.contention import Busyness
from reports.contrasts import Contrast
from reports.differences import Difference, differences, ineffective
from reports.findings import better_is, ending, reading
from reports.intervals import Interval
from reports.lineage import origin, rescue, rescue_label
from reports.overlap import Overlap
from reports.protocols import protocol_values, protocols_of
from reports.readings import calibration, curve, last, run_label
from reports.study import RunView, StudyView, VerdictView
from reports.wording import NOT_AVAILABLE, counted, number, seconds, signed

Row = Sequence[str]
_SAYS_NOTHING = frozenset({NOT_AVAILABLE, "not reported", "0 of 0", ""})


@dataclass(frozen=True, slots=True)
class Table:
    """A header and its rows, all plain text."""

    header: Row
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class ArmDifference:
    """What an arm claims and what its resolved configuration changes against its baseline."""

    arm: str
    title: str
    baseline: str
    hypothesis: str
    table: Table
    ineffective: str


def runs_table(study: StudyView) -> Table:
    """Last and best value of the primary side by side, the last one first."""
    metric = study.primary.metric if study.primary is not None else ""
    values = [f"last {metric}", "its own best"] if metric else []
    header = ["run", "id", "title", "state", "health", "step", *values, "parameters", "points", "rejected lines"]
    rows = [
        [
            run_label(run), run.run, run.title, told_state(study, run), run.health, steps_read(run),
            *([_last_text(run, metric), _best_text(run)] if metric else []),
            f"{run.parameters:,}" if run.parameters is not None else NOT_AVAILABLE, str(run.points),
            str(run.rejected_lines),
        ]
        for run in study.runs
    ]  # fmt: skip
    return _without_empty(Table(header, rows), {"parameters"})


def told_state(study: StudyView, run: RunView) -> str:
    """How a run ended, with what a reader must know beside it."""
    return "; ".join(text for text in (ending(run), origin(run), rescue(study, run), *remarks(run)) if text)


def reference_levels(study: StudyView) -> str:
    """What reference images score on the primary, in one line; empty when nothing was calibrated."""
    if study.primary is None:
        return ""
    metric = study.primary.metric
    levels = next((found for run in study.runs if (found := calibration(run, metric))), {})
    told = ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in levels.items())
    return f"Reference images on {metric} ({better_is(study.primary.direction)}): {told}." if told else ""


def arm_differences(study: StudyView) -> list[ArmDifference]:
    """For every arm: its claim, and each resolved key in which it differs from its baseline."""
    found = []
    for arm in dict.fromkeys(run.arm for run in study.runs):
        run = next(run for run in study.runs if run.arm == arm)
        baseline = run.baseline if run.baseline != arm else None
        changed = differences(study, arm, baseline) if baseline is not None else ()
        rows = [[one.key, one.baseline_value, one.arm_value, _declared(one)] for one in changed]
        table = Table(["key", f"{baseline or ''}", arm, "declared by the arm"], rows)
        useless = ", ".join(ineffective(study, arm, baseline)) if baseline is not None and changed else ""
        found.append(ArmDifference(arm, run.title, baseline or "", run.hypothesis, table, useless))
    return found


def _declared(one: Difference) -> str:
    if one.declared:
        return "yes"
    return "no: set for one of the two launches" if one.was_set else "no"


def contrasts_table(found: Sequence[Contrast]) -> Table:
    """The primary of each arm against its baseline with all that limits it."""
    header = ["arm", "against", "difference", "95 % interval", "over", "seed floor", "paired seeds", "reading",
              "p, sign-flip", "p, Holm", "notes"]  # fmt: skip
    rows = [
        [
            c.arm, c.baseline, signed(c.delta), interval_text(c.interval), _over(c.interval),
            number(c.seed_floor, 3), str(c.paired_seeds), reading(c), number(c.p, 3), number(c.p_holm, 3),
            "; ".join(c.notes),
        ]
        for c in found
    ]  # fmt: skip
    return Table(header, rows)


def budgets_table(found: Sequence[Contrast]) -> Table:
    """The same difference at equal steps, samples and seconds."""
    rows = [
        [contrast.arm, contrast.baseline, *map(_reading_text, (c.equal_steps, c.equal_samples, c.equal_time))]
        for contrast in found
        for c in (contrast,)
        if contrast.delta is not None
    ]
    return Table(["arm", "against", "equal steps", "equal samples", "equal time"], rows)


def quality_table(found: Sequence[QualityTime]) -> Table:
    """How soon each run was as good as its baseline in the end."""
    rows = [
        [
            run_label(one.run), run_label(one.baseline), number(one.target),
            "never" if one.step is None else str(one.step),
            "never" if one.step is None else one.note or _duration(one.train_s),
        ]
        for one in found
    ]  # fmt: skip
    return Table(["run", "baseline", "to reach", "at step", "seconds of training"], rows)


def protocols_table(study: StudyView) -> Table:
    """Averaged and raw weights, common and native sampler, on the samples that a run's protocols share."""
    metrics = _protocol_metrics(study)
    header = ["run", "metric", "step", "EMA common", "raw common", "EMA native", "raw native", "samples in common"]
    rows = []
    for run in study.runs:
        for metric in metrics:
            values, step, count = protocol_values(run, metric)
            if values:
                shared = str(count) if count else "not restricted"
                rows.append([run_label(run), metric.rpartition("/")[2], str(step), *map(number, values), shared])
    return Table(header, rows)


def streams_table(uses: Sequence[StreamUse]) -> Table:
    """What each condition is worth to each run."""
    rows = [
        [run_label(use.run), use.stream, str(use.step), signed(use.cost), interval_text(use.interval), use.finding]
        for use in uses
    ]
    return Table(["run", "stream", "step", "cost of shuffling", "95 % interval", "finding"], rows)


def manipulation_table(found: Sequence[Manipulation]) -> Table:
    """Edits of the caption against paraphrases of it, with the hit rate."""
    header = ["run", "step", "delta - floor", "95 % interval", "delta", "floor", "spread", "hit", "finding"]
    rows = [
        [
            run_label(m.run), str(m.step), signed(m.above_floor), interval_text(m.interval), number(m.delta),
            number(m.floor), number(m.spread), _percent(m.hit), m.finding,
        ]
        for m in found
    ]  # fmt: skip
    return Table(header, rows)


def throughput_table(study: StudyView, busy: Busyness) -> Table:
    """Speed from comparable windows only, time apart for evaluation, memory; only what some run has reported."""
    rows = []
    for run in study.runs:
        speed = busy.throughput[run.run]
        images = speed.note or f"{number(speed.images_per_s)}"
        train, evaluation = (last(run, f"sys/{kind}_s") for kind in ("train", "eval"))
        rows.append(
            [
                run_label(run), images, speed.note or number(speed.steps_per_s), f"{speed.windows} of {speed.of}",
                _seconds(train), _seconds(evaluation), _newest(run, "sys/active_tokens"), _memory(run),
            ]
        )  # fmt: skip
    header = ["run", "images/s", "steps/s", "windows used", "in training steps", "in evaluation", "active tokens",
              "memory, peak"]  # fmt: skip
    return _without_empty(Table(header, rows), {*header[1:]})


def verdicts_table(study: StudyView) -> Table:
    """What the judge concluded, with its evidence; of an overruled rule first the abort, then what it still said.

    A conclusion that stood while only what came with it changed (the cadence of probes, a further warning) is one row.
    """
    rows = [
        [
            run_label(run), str(verdict.attempt or NOT_AVAILABLE), str(verdict.step), verdict.rule,
            _action(study, run, index), verdict.reason, _evidence(verdict),
        ]
        for run in study.runs
        for index, verdict in enumerate(run.verdicts)
        if index == 0 or not _says_the_same(run.verdicts[index - 1], verdict)
    ]  # fmt: skip
    return Table(["run", "attempt", "step", "rule", "action", "reason", "evidence"], rows)


def _says_the_same(before: VerdictView, verdict: VerdictView) -> bool:
    return replace(before, step=verdict.step) == verdict


def overruled_rules(study: StudyView) -> str:
    """`nan-s0: non_finite; hot-s0: explosion`, empty when no person overruled any."""
    return "; ".join(f"{run_label(run)}: {', '.join(run.overridden)}" for run in study.runs if run.overridden)


def attempts_table(study: StudyView) -> Table:
    """Every process execution."""
    header = ["run", "attempt", "kind", "host", "slot", "resumed from", "cause", "exit code", "peak memory"]
    rows = [
        [
            run_label(run), str(attempt.number), attempt.kind, attempt.host,
            attempt.slot + (" (shares cores)" if attempt.shares_cores else ""), _or_none(attempt.resumed_from),
            attempt.cause, _or_none(attempt.exit_code),
            NOT_AVAILABLE if attempt.max_rss_mib is None else f"{attempt.max_rss_mib} MiB",
        ]
        for run in study.runs
        for attempt in run.attempts
    ]  # fmt: skip
    return Table(header, rows)


def overlap_table(found: Sequence[Overlap]) -> Table:
    """How long the processes of each run and of the one that it is read against ran at the same time."""
    rows = [
        [
            run_label(one.run), run_label(one.baseline),
            "still running" if one.common_s is None else seconds(one.common_s), _percent(one.share),
        ]
        for one in found
    ]  # fmt: skip
    return Table(["run", "read against", "both processes ran", "of the shorter process"], rows)


def apart_text(one: Overlap) -> str:
    """`A-s0 and D-s0 (95 s apart)`, baseline first."""
    return f"{run_label(one.baseline)} and {run_label(one.run)} ({_duration(one.apart_s)} apart)"


def interval_text(interval: Interval | None) -> str:
    """`-0.05 to -0.04`, or n/a."""
    return NOT_AVAILABLE if interval is None else f"{signed(interval.low)} to {signed(interval.high)}"


def _over(interval: Interval | None) -> str:
    if interval is None:
        return NOT_AVAILABLE
    if interval.kind == "samples":
        return f"this checkpoint pair, these {interval.count} samples"
    return f"{counted(interval.count, 'seed')}, then samples"


def _reading_text(found: Reading) -> str:
    return found.note if found.delta is None else f"{signed(found.delta)} at {found.budget}"


def _last_text(run: RunView, metric: str) -> str:
    found = last(run, metric)
    return NOT_AVAILABLE if found is None else f"{number(found[1])} (step {found[0]})"


def _best_text(run: RunView) -> str:
    return NOT_AVAILABLE if run.best is None else f"{number(run.best[1])} (step {run.best[0]})"


def _protocol_metrics(study: StudyView) -> list[str]:
    """The primary, then the other reconstruction metric where it was scored."""
    names = [] if study.primary is None else [study.primary.metric]
    bare = {metric.rpartition("/")[2] for metric in names}
    names += [f"val/{name}" for name in ("recon_rmse", "recon_lpips") if name not in bare]
    return [name for name in names if any(curve(run, one).steps for run in study.runs for one in protocols_of(name))]


def _percent(share: float | None) -> str:
    return number(share) if share is None or not math.isfinite(share) else f"{100 * share:.0f} %"


def _seconds(found: tuple[int, float] | None) -> str:
    return NOT_AVAILABLE if found is None else seconds(found[1])


def _duration(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else seconds(value)


def _without_empty(table: Table, optional: Set[str]) -> Table:
    """The table without those of its optional columns that say nothing for any run; no rows when nothing is left."""
    kept = [
        index
        for index, name in enumerate(table.header)
        if name not in optional or any(row[index] not in _SAYS_NOTHING for row in table.rows)
    ]
    if len(kept) < 2:
        return Table(table.header, [])
    return Table([table.header[index] for index in kept], [[row[index] for index in kept] for row in table.rows])


def _action(study: StudyView, run: RunView, index: int) -> str:
    """What became of a verdict; one of an overruled rule says so, or the same verdict would seem to stand twice."""
    verdict = run.verdicts[index]
    if verdict.rule not in run.overridden:
        follower = rescue_label(study, run) if verdict.action == "rescue" else ""
        return f"rescue, as {follower}" if follower else verdict.action
    if verdict.is_stop:
        return f"{verdict.action}, overruled by a person"
    aborted_before = any(one.rule == verdict.rule and one.is_stop for one in run.verdicts[:index])
    return f"{verdict.action} only: the rule was off" if aborted_before else verdict.action


def _newest(run: RunView, name: str) -> str:
    found = last(run, name)
    return NOT_AVAILABLE if found is None else number(found[1])


def _memory(run: RunView) -> str:
    peaks = []
    for name in sorted(run.curves):
        finite = [value for value in run.curves[name].values if math.isfinite(value)]
        if name.startswith("memory/") and finite:
            peaks.append(f"{name.removeprefix('memory/')} {number(max(finite))}")
    return ", ".join(peaks) or NOT_AVAILABLE


def _evidence(verdict: VerdictView) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in sorted(verdict.evidence.items()))


def _plain(value: Any) -> str:
    if value is None or isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} {_plain(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_plain(one) for one in value) + "]"
    return str(value)


def _or_none(value: int | None) -> str:
    return "" if value is None else str(value)
