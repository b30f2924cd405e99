"""Where each arm ends: a row per run, a dot at its last value, a ring at its own best, and what to measure it by."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.contrasts import contrasts
from reports.figure_plan import arms_of, last_values
from reports.figure_style import (
    BAND,
    FAINT,
    ON_WHITE,
    ArmStyle,
    arm_styles,
    levels_outside,
    metric_label,
    new_figure,
    padded,
    samples_label,
)
from reports.findings import better_is, ended_early, short_ending, short_findings
from reports.pairing import baseline_arms
from reports.readings import calibration, is_complete, is_drawable, last, sample_counts
from reports.study import RunView, StudyView
from reports.wording import label, number

_ROW_IN = 0.24
_GAP_ROWS = 0.9  # between arms
_EDGE_ROWS = 0.95  # from the first and the last row to the frame


def draw_primary(study: StudyView, question: str) -> Figure:
    """Dots, never bars; the baseline's seeds as a grey band; reference images as dashed lines."""
    primary = study.primary
    assert primary is not None, "planned only with a primary"
    ended = last_values(study)
    limits = padded([value for _, value in ended] + [best for run, _ in ended if (best := _best(run)) is not None], 0.2)
    floors = next((found for run, _ in ended if (found := calibration(run, primary.metric))), {})
    places, ticks, bottom = _places(study)
    finding = short_findings(contrasts(study)) + levels_outside(floors, limits)
    figure = new_figure(question, finding, 1.0 + _ROW_IN * max(bottom, 5.0))
    axes = figure.add_subplot()
    axes.set_xlim(*limits)
    axes.set_ylim(bottom, -_EDGE_ROWS)
    _mark_floors(axes, floors, limits)
    _band(axes, study, ended)
    styles = arm_styles(study)
    for run in study.runs:
        _draw_run(axes, run, primary.metric, places[run.run], styles[run.arm])
    axes.set_yticks(list(ticks.values()), [_arm_title(study, arm) for arm in ticks])
    told = samples_label([(run, _samples_at_end(run, primary.metric)) for run, _ in ended])
    axes.set_xlabel(f"{metric_label(primary.metric)}, {f'{told}, ' if told else ''}{better_is(primary.direction)}")
    axes.grid(visible=False, axis="y")
    _key(figure, axes)
    return figure


def _best(run: RunView) -> float | None:
    return run.best[1] if run.best is not None and is_drawable(run.best[1]) else None


def _places(study: StudyView) -> tuple[dict[str, float], dict[str, float], float]:
    """(row of each run, middle of each arm's rows, foot of the last row), counted downwards in rows."""
    places: dict[str, float] = {}
    ticks: dict[str, float] = {}
    row = 0.0
    for arm in arms_of(study):
        runs = sorted((run for run in study.runs if run.arm == arm), key=lambda run: run.seed)
        # A title of two lines needs two rows, even beside a single run.
        start = row + (0.5 if len(runs) == 1 else 0.0)
        places |= {run.run: start + index for index, run in enumerate(runs)}
        ticks[arm] = start + (len(runs) - 1) / 2
        row += max(len(runs), 2) + _GAP_ROWS
    return places, ticks, row - _GAP_ROWS - 1.0 + _EDGE_ROWS if places else 1.0


def _draw_run(axes: Axes, run: RunView, metric: str, place: float, style: ArmStyle) -> None:
    end = last(run, metric)
    if end is None or end[0] == 0 or not is_drawable(end[1]):
        told = short_ending(run) if end is None or end[0] == 0 else f"{number(end[1])} at step {end[0]}"
        text = f"s{run.seed}: {label(told, 40)}"
        axes.annotate(text, (0.5, place), xycoords=("axes fraction", "data"), fontsize=9, ha="center", va="center")
        return
    best = _best(run)
    if best is not None:
        axes.plot([best], [place], marker="o", markersize=10, markerfacecolor="none", color=FAINT, zorder=3)
    shown = "X" if ended_early(run) else style.marker
    axes.plot([end[1]], [place], marker=shown, markersize=8, color=style.colour, markeredgecolor="white", zorder=4)
    text = f"{number(end[1], 3)} (s{run.seed})" + ("" if is_complete(run) else f" {label(short_ending(run), 40)}")
    low, high = axes.get_xlim()
    left = end[1] > low + 0.6 * (high - low)
    marks = [end[1]] if best is None else [end[1], best]
    axes.annotate(
        text, (min(marks) if left else max(marks), place), xytext=(-9 if left else 9, 0), textcoords="offset points",
        fontsize=9, va="center", ha="right" if left else "left", bbox=ON_WHITE, zorder=2,
    )  # fmt: skip


def _mark_floors(axes: Axes, floors: Mapping[str, float], limits: tuple[float, float]) -> None:
    for name, value in floors.items():
        if limits[0] <= value <= limits[1]:
            axes.axvline(value, color=FAINT, linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
            axes.annotate(
                label(name.replace("_", " ")), (value, 1.0), xycoords=("data", "axes fraction"), xytext=(-3, 2),
                textcoords="offset points", fontsize=8.5, color="#555555", rotation=35, rotation_mode="anchor",
                ha="left", va="bottom",
            )  # fmt: skip


def _band(axes: Axes, study: StudyView, ended: list[tuple[RunView, float]]) -> None:
    for arm in baseline_arms(study):
        values = [value for run, value in ended if run.arm == arm and not ended_early(run)]
        if len(values) >= 2:
            apart = f"seeds of {label(arm, 16)}: {number(max(values) - min(values), 2)} apart"
            axes.axvspan(min(values), max(values), color=BAND, zorder=0, label=apart)


def _samples_at_end(run: RunView, metric: str) -> dict[int, int]:
    """How many samples stand behind the last value of a run, by its step."""
    end = last(run, metric)
    counts = sample_counts(run, metric)
    return {end[0]: counts[end[0]]} if end is not None and end[0] in counts else {}


def _key(figure: Figure, axes: Axes) -> None:
    axes.plot([], [], marker="o", linestyle="none", color="#3b3b3b", label="last value")
    axes.plot([], [], marker="o", linestyle="none", markerfacecolor="none", color=FAINT, label="that run's own best")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, columnspacing=1.2, handletextpad=0.4)


def _arm_title(study: StudyView, arm: str) -> str:
    title = next((run.title for run in study.runs if run.arm == arm), "")
    return label(arm, 22) + (f"\n{label(title, 22)}" if title and title != arm else "")
