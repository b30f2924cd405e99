"""The curves of each arm: training loss with its raw points visible, and the primary with averaged and raw weights.

Train losses of different objectives say nothing about each other, so every arm has its own panel and its own range, but
all panels of one loss are linear or all are logarithmic; validation panels share their range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from reports.contrasts import contrasts
from reports.figure_plan import arms_of, loss_name
from reports.figure_style import (
    FAINT,
    ArmStyle,
    arm_styles,
    late_limits,
    levels_outside,
    mark_end,
    mark_levels,
    metric_label,
    new_figure,
    samples_label,
    warn_inside,
)
from reports.findings import ended_early, short_ending, short_findings
from reports.pairing import baseline_arms, baseline_of
from reports.protocols import Line, averaged_and_raw
from reports.readings import as_line, calibration, curve, is_drawable, mean, sample_counts
from reports.study import RunView, StudyView
from reports.wording import counted, label

_SMOOTH_SHARE = 20  # the moving mean spans a twentieth of the points
_REFERENCE = "#a0a0a0"
_LOG_RATIO = 30.0
_LOG_TICKS = ((12.0, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)), (120.0, (1.0, 2.0, 5.0)), (math.inf, (1.0,)))  # by the span shown
_EVENTS = ("repa_off", "routing_off", "resumed")
_PANEL_IN = 1.75


def draw_curves(study: StudyView, question: str) -> Figure:
    """One row per arm: training loss on the left, validation of the primary on the right where there is one."""
    metric = study.primary.metric if study.primary is not None else ""
    arms = [arm for arm in arms_of(study) if any(_has_curves(run, metric) for run in study.runs if run.arm == arm)]
    on_log = log_losses(study)
    validated = any(curve(run, metric).steps for run in study.runs)
    told = _validation_label(study, metric) if validated else ""
    limits, outside = _validation_limits(study, metric) if validated else ((0.0, 1.0), "")
    figure = new_figure(question, _finding(study, validated, outside), 0.35 + _PANEL_IN * len(arms))
    grid = figure.subplots(len(arms), 2 if validated else 1, squeeze=False, sharex=True)
    styles = arm_styles(study)
    for row, arm in zip(grid, arms, strict=True):
        runs = [run for run in study.runs if run.arm == arm]
        _draw_loss(row[0], runs, styles[arm], on_log)
        if validated:
            row[1].set_ylim(*limits)
            _draw_validation(row[1], study, runs, metric, styles[arm], limits)
            row[1].set_ylabel(told)
    for axes in grid[-1]:
        axes.set_xlabel("optimizer step")
    if grid[0][0].get_legend_handles_labels()[0]:
        grid[0][0].legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.1, fontsize=8.5)
    if validated:
        if len(arms) > 1 and baseline_arms(study):
            grid[0][1].plot([], [], color=_REFERENCE, linewidth=2.6, label="baseline EMA")
        grid[0][1].legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=3, borderaxespad=0.1, fontsize=8.5)
    return figure


def finite(line: Mapping[int, float]) -> Line:
    """The points of a line that an axis can show, in the order of steps."""
    return {step: line[step] for step in sorted(line) if is_drawable(line[step])}


def smoothed(line: Mapping[int, float]) -> Line:
    """Centred moving mean over a twentieth of the points."""
    steps = list(line)
    half = max(1, len(steps) // _SMOOTH_SHARE // 2)
    return {
        step: mean([line[near] for near in steps[max(0, index - half) : index + half + 1]])
        for index, step in enumerate(steps)
    }


def _has_curves(run: RunView, metric: str) -> bool:
    return loss_name(run) is not None or bool(curve(run, metric).steps)


def _finding(study: StudyView, validated: bool, outside: str) -> str:
    early = [
        f"{label(run.arm, 16)}-s{run.seed} {label(short_ending(run), 40)}" for run in study.runs if ended_early(run)
    ]
    parts = [
        short_findings(contrasts(study)).strip(),
        f"{' · '.join(early)}." if early else "",
        "Train losses have their own ranges: not comparable between arms.",
    ]
    if validated:
        counts = [averaged_and_raw(run, study.primary.metric)[2] for run in study.runs if study.primary is not None]
        common = min((count for count in counts if count), default=0)
        parts.append(f"EMA and raw on the {common} samples that both were scored on." if common else "")
    return " ".join(part for part in [*parts, outside] if part)


def _validation_limits(study: StudyView, metric: str) -> tuple[tuple[float, float], str]:
    lines = [(run, line) for run in study.runs for line in averaged_and_raw(run, metric)[:2]]
    limits = late_limits(lines) or (0.0, 1.0)
    levels = next((found for run in study.runs if (found := calibration(run, metric))), {})
    return limits, levels_outside(levels, limits)


def log_losses(study: StudyView) -> frozenset[str]:
    """The losses that are drawn on a log axis, in all of their panels: one panel spans so much, and none reaches 0."""
    spans: dict[str, list[list[float]]] = {}
    for run in study.runs:
        name = loss_name(run)
        values = list(finite(as_line(curve(run, name))).values()) if name is not None else []
        if name is not None and values:
            spans.setdefault(name, []).append(values)
    return frozenset(
        name
        for name, panels in spans.items()
        if min(map(min, panels)) > 0 and any(max(values) / min(values) > _LOG_RATIO for values in panels)
    )


def _draw_loss(axes: Axes, runs: list[RunView], style: ArmStyle, on_log: frozenset[str]) -> None:
    names = set()
    for index, run in enumerate(runs):
        name = loss_name(run)
        if name is None:
            continue
        line = finite(as_line(curve(run, name)))
        names.add(name)
        missing = len(curve(run, name).steps) - len(line)
        axes.plot(
            list(line), list(line.values()), color=style.colour, alpha=0.28, linewidth=0.9, label=_once(index, "raw")
        )
        smooth = smoothed(line)
        axes.plot(
            list(smooth), list(smooth.values()), color=style.colour, linewidth=1.7, label=_once(index, "moving mean")
        )
        if missing:
            warn_inside(axes, f"{counted(missing, 'value')} not finite (or beyond 1e100)", 0.98, "right")
        if line and ended_early(run):
            axes.axvline(run.step, color="black", linewidth=1, linestyle=":")
        _mark_events(axes, run)
        axes.set_ylabel(f"{label(runs[0].arm, 16)}\n{label(name)}")
    if names and names <= on_log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=next(subs for most, subs in _LOG_TICKS if high < most * low)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_validation(
    axes: Axes, study: StudyView, runs: list[RunView], metric: str, style: ArmStyle, limits: tuple[float, float]
) -> None:
    baseline = baseline_of(study, runs[0])
    if baseline is not None and baseline.arm != runs[0].arm:
        reference = finite(averaged_and_raw(baseline, metric)[0])
        axes.plot(
            list(reference),
            list(reference.values()),
            color=_REFERENCE,
            linewidth=2.6,
        )
    for index, run in enumerate(runs):
        averaged, raw, _ = averaged_and_raw(run, metric)
        for line, dash, name in ((raw, (0, (3, 2)), "raw"), (averaged, "-", "EMA")):
            shown = finite(line)
            axes.plot(
                list(shown), list(shown.values()), color=style.colour, linestyle=dash, linewidth=1.5, markersize=4,
                marker=style.marker if name == "EMA" else None, label=_once(index, name),
            )  # fmt: skip
        if shown:
            mark_end(axes, run, max(shown), shown[max(shown)])
        lost = len(averaged) - len(finite(averaged))
        if lost:
            warn_inside(axes, f"{counted(lost, 'validation')} not finite", 0.6, "center")
    ends = [shown[max(shown)] for run in runs if (shown := finite(averaged_and_raw(run, metric)[0]))]
    mark_levels(axes, calibration(runs[0], metric), limits, left_below=max(ends, default=limits[1]))


def _validation_label(study: StudyView, metric: str) -> str:
    """The metric with its unit, and on how many samples its values in these panels rest."""
    counted_by_run = []
    for run in study.runs:
        averaged, _, common = averaged_and_raw(run, metric)
        counted_by_run.append((run, dict.fromkeys(averaged, common) if common else sample_counts(run, metric)))
    told = samples_label(counted_by_run)
    return metric_label(metric, "\n") + (f"\n{told}" if told else "")


def _mark_events(axes: Axes, run: RunView) -> None:
    for event in run.events:
        if event.what in _EVENTS and event.step is not None:
            axes.axvline(event.step, color=FAINT, linewidth=1, linestyle="--")
            axes.annotate(
                label(event.what), (event.step, 0.97), xycoords=("data", "axes fraction"), xytext=(3, 0),
                textcoords="offset points", fontsize=8.5, color="#555555", va="top",
            )  # fmt: skip


def _once(index: int, text: str) -> str:
    """A legend entry for the first line of its kind only."""
    return text if index == 0 else "_nolegend_"
