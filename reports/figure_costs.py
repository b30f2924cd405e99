"""The same curves over three budgets: optimizer steps, training samples, seconds of training alone.

A budget that no run can be read at has no panel; the line above the figure says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.budgets import samples_seen
from reports.contention import CONTENDED, NOT_REPORTED, Busyness, busyness
from reports.contrasts import Contrast, contrasts
from reports.figure_plan import arms_of
from reports.figure_style import arm_styles, late_limits, mark_end, metric_label, new_figure, samples_label
from reports.findings import MOST_NUMBERS, better_is, ended_early, short_ending, some
from reports.readings import as_line, curve, is_drawable, run_label, sample_counts, train_seconds
from reports.study import RunView, StudyView
from reports.whereabouts import hardware
from reports.wording import label, signed

STEPS, SAMPLES, SECONDS = "optimizer steps", "training samples (thousands)", "seconds of training"

Cost = Callable[[RunView, int], float | None]


def draw_costs(study: StudyView, question: str) -> Figure:
    """Up to three panels with one vertical axis; in the third only runs whose seconds may be compared."""
    primary = study.primary
    assert primary is not None, "planned only with a primary"
    busy = busyness(study)
    timed = _timed_runs(study, busy)
    columns = _legend_columns([label(arm, 16) for arm in arms_of(study)])
    legend_in = 0.2 * (len(arms_of(study)) // columns)
    panels = _panels(study, primary.metric, timed)
    figure = new_figure(question, _finding(study, timed, busy, [title for title, _ in panels]), 3.4 + legend_in)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, cost) in zip(row, panels, strict=True):
        _draw_panel(axes, study, primary.metric, title, cost)
    if any(ended_early(run) for run in study.runs):
        row[0].plot([], [], marker="X", color="black", linestyle="none", label="ended early")
    limits = late_limits([(run, as_line(curve(run, primary.metric))) for run in study.runs])
    if limits is not None:
        row[0].set_ylim(*limits)
    told = samples_label([(run, sample_counts(run, primary.metric)) for run in study.runs])
    lines = [metric_label(primary.metric, "\n"), *([told] if told else []), better_is(primary.direction)]
    row[0].set_ylabel("\n".join(lines))
    handles, names = row[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=columns)
    return figure


def _panels(study: StudyView, metric: str, timed: frozenset[str]) -> list[tuple[str, Cost]]:
    """The budgets at which some run has a value that an axis can show; steps always."""
    found: list[tuple[str, Cost]] = [
        (STEPS, lambda _run, step: float(step)),
        (SAMPLES, _thousands),
        (SECONDS, lambda run, step: train_seconds(run, step) if run.run in timed else None),
    ]
    return [
        (title, cost)
        for title, cost in found
        if title == STEPS or any(x > 0 for run in study.runs for x, _ in _costed(run, metric, cost))
    ]


def _thousands(run: RunView, step: int) -> float | None:
    samples = samples_seen(run, step)
    return None if samples is None else samples / 1000


def _timed_runs(study: StudyView, busy: Busyness) -> frozenset[str]:
    """Runs whose clock ran with equally busy neighbours, on the machine that most of them share."""
    kinds = [hardware(run) for run in study.runs if run.run in busy.whole_clock]
    if not kinds:
        return frozenset()
    usual = max(dict.fromkeys(kinds), key=kinds.count)
    return frozenset(run.run for run in study.runs if run.run in busy.whole_clock and hardware(run) == usual)


def _finding(study: StudyView, timed: frozenset[str], busy: Busyness, panels: Sequence[str]) -> str:
    found = [contrast for contrast in contrasts(study) if contrast.delta is not None]
    withheld = [label(run_label(run), 20) for run in study.runs if run.run not in timed]
    early = [f"{label(run_label(run), 20)} {label(short_ending(run), 40)}" for run in study.runs if ended_early(run)]
    ends = f" {some(early)}." if early else ""
    note = ends
    if SAMPLES not in panels:
        note += " No panel of samples: how many a step takes is not known."
    if SECONDS not in panels:
        note += f" No panel of seconds: {_why_untimed(study, busy)}."
    elif withheld:
        note += f" Seconds without {some(withheld)} ({CONTENDED})."
    if len(found) > MOST_NUMBERS:
        return f"The differences of all {len(found)} contrasts are in the table of budgets.{note}"
    told = " · ".join(_three(contrast) for contrast in found)
    return (f"Difference at equal steps / samples / seconds: {told}." if told else "") + note


def _why_untimed(study: StudyView, busy: Busyness) -> str:
    """Why no run's seconds may be compared."""
    notes = {busy.throughput[run.run].note for run in study.runs}
    return "training time not reported" if notes <= {NOT_REPORTED} else CONTENDED


def _legend_columns(names: list[str]) -> int:
    """As many columns as fit the width of the figure."""
    longest = max((len(name) for name in names), default=0)
    return max(1, min(7, 100 // (longest + 6)))


def _three(contrast: Contrast) -> str:
    readings = (contrast.equal_steps, contrast.equal_samples, contrast.equal_time)
    return f"{label(contrast.arm, 16)} {' / '.join(signed(reading.delta, 2) for reading in readings)}"


def _draw_panel(axes: Axes, study: StudyView, metric: str, title: str, cost: Cost) -> None:
    styles = arm_styles(study)
    named: set[str] = set()
    for run in study.runs:
        points = _costed(run, metric, cost)
        if not points:
            continue
        style = styles[run.arm]
        axes.plot(
            [x for x, _ in points], [y for _, y in points], color=style.colour, marker=style.marker, markersize=4,
            linewidth=1.5, alpha=1.0 if run.arm not in named else 0.55,
            label=label(run.arm, 16) if run.arm not in named else "_nolegend_",
        )  # fmt: skip
        named.add(run.arm)
        mark_end(axes, run, *points[-1], with_text=False)
    axes.set_xlabel(title)
    axes.set_xlim(left=0)


def _costed(run: RunView, metric: str, cost: Cost) -> list[tuple[float, float]]:
    found = curve(run, metric)
    points = [(cost(run, step), value) for step, value in zip(found.steps, found.values, strict=True)]
    return [(x, y) for x, y in points if x is not None and is_drawable(y)]
