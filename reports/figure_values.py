"""Two figures of the primary's last values: where each arm ends, and every arm's difference from its baseline."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.contrasts import Contrast, contrasts
from reports.figure_plan import arms_of, last_values
from reports.figure_style import (
    BAND,
    FAINT,
    ArmStyle,
    arm_styles,
    levels_outside,
    mark_levels,
    metric_label,
    new_figure,
    padded,
)
from reports.findings import better_is, ended_early, short_ending, short_findings
from reports.pairing import baseline_arms
from reports.readings import calibration, is_complete, last, run_label
from reports.study import RunView, StudyView
from reports.wording import label, number, signed

Ended = tuple[RunView, float]


def draw_primary(study: StudyView, question: str) -> Figure:
    """One dot per seed at its last value, a ring at its own best, the baseline's seeds as a grey band."""
    primary = study.primary
    assert primary is not None, "planned only with a primary"
    ended = last_values(study)
    arms = arms_of(study)
    low, high = padded(
        [value for _, value in ended] + [best for run, _ in ended if (best := _best(run)) is not None], 0.25
    )
    floors = next((found for run, _ in ended if (found := calibration(run, primary.metric))), {})
    figure = new_figure(question, short_findings(contrasts(study)) + levels_outside(floors, (low, high)), 3.6)
    axes = figure.add_subplot()
    axes.set_ylim(low, high)
    axes.set_xlim(-0.6, len(arms) - 0.4)
    mark_levels(axes, floors, (low, high), -math.inf)
    _band(axes, study, ended)
    styles = arm_styles(study)
    for place, arm in enumerate(arms):
        _dots(axes, place, [(run, value) for run, value in ended if run.arm == arm], styles[arm])
        _absent(axes, place, [run for run in study.runs if run.arm == arm], primary.metric)
    axes.set_xticks(range(len(arms)), [_arm_title(study, arm) for arm in arms])
    axes.set_ylabel(f"{metric_label(primary.metric, chr(10))}\n{better_is(primary.direction)}")
    axes.grid(visible=False, axis="x")
    _key(axes)
    return figure


def draw_contrasts(study: StudyView, question: str) -> Figure:
    """Differences from the baseline: a dot per seed, the interval as a line, the baseline's seed floor as a band."""
    primary = study.primary
    assert primary is not None, "planned only with a primary"
    found = [contrast for contrast in contrasts(study) if contrast.delta is not None]
    figure = new_figure(question, short_findings(found), 1.1 + 0.62 * len(found))
    axes = figure.add_subplot()
    styles = arm_styles(study)
    for place, contrast in enumerate(found):
        _difference(axes, place, contrast, styles[contrast.arm].colour, styles[contrast.arm].marker)
    axes.axvline(0.0, color="#3b3b3b", linewidth=1.2, zorder=2)
    axes.set_yticks(range(len(found)), [_contrast_title(contrast) for contrast in found])
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    arrow = "← better    worse →" if primary.direction == "min" else "← worse    better →"
    axes.set_xlabel(f"arm minus baseline, {metric_label(primary.metric)}\n{arrow}")
    kinds = {contrast.interval.kind for contrast in found if contrast.interval is not None}
    key = "grey: seeds of the baseline apart" + (f"; line: 95 % over {' or '.join(sorted(kinds))}" if kinds else "")
    axes.set_title(key, loc="right", fontsize=8.5, color=FAINT)
    return figure


def _best(run: RunView) -> float | None:
    return run.best[1] if run.best is not None and math.isfinite(run.best[1]) else None


def _band(axes: Axes, study: StudyView, ended: list[Ended]) -> None:
    for arm in baseline_arms(study):
        values = [value for run, value in ended if run.arm == arm and not ended_early(run)]
        if len(values) >= 2:
            apart = f"seeds of {label(arm, 16)}: {number(max(values) - min(values), 2)} apart"
            axes.axhspan(min(values), max(values), color=BAND, zorder=0, label=apart)


def _dots(axes: Axes, place: int, ended: list[Ended], style: ArmStyle) -> None:
    ended = sorted(ended, key=lambda one: one[0].seed)
    spread = min(0.16, 0.5 / max(len(ended), 1))
    for index, (run, value) in enumerate(ended):
        x = place + (index - (len(ended) - 1) / 2) * spread
        best = _best(run)
        if best is not None:
            axes.plot([x], [best], marker="o", markersize=9, markerfacecolor="none", color=FAINT, zorder=3)
        shown = "X" if ended_early(run) else style.marker
        axes.plot([x], [value], marker=shown, markersize=9, color=style.colour, markeredgecolor="white", zorder=4)
        text = f"{number(value, 3)} (s{run.seed})" if len(ended) <= 3 else ""
        if not is_complete(run):
            text = f"{number(value, 3)} (s{run.seed})\n{label(short_ending(run), 40)}"
        left = len(ended) == 2 and index == 0
        axes.annotate(
            text, (x, value), xytext=(-8 if left else 8, 0), textcoords="offset points", fontsize=9, va="center",
            ha="right" if left else "left",
        )  # fmt: skip


def _absent(axes: Axes, place: int, runs: list[RunView], metric: str) -> None:
    """Runs without a dot, told at the foot of their arm: why there is no value, or which one it is."""
    told = []
    for run in runs:
        value = last(run, metric)
        if value is None or value[0] == 0:
            told.append(f"s{run.seed}: {label(short_ending(run), 30)}")
        elif not math.isfinite(value[1]):
            told.append(f"s{run.seed}: {number(value[1])} at {value[0]}")
    axes.annotate(
        "\n".join(told[:4]), (place, 0.02), xycoords=("data", "axes fraction"), fontsize=9, ha="center", va="bottom"
    )


def _key(axes: Axes) -> None:
    axes.plot([], [], marker="o", linestyle="none", color="#3b3b3b", label="last value (dot per seed)")
    axes.plot([], [], marker="o", linestyle="none", markerfacecolor="none", color=FAINT, label="that run's own best")
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, borderaxespad=0.1, columnspacing=1.2, handletextpad=0.4
    )


def _arm_title(study: StudyView, arm: str) -> str:
    title = next((run.title for run in study.runs if run.arm == arm), "")
    return label(arm, 16) + (f"\n{label(title, 18)}" if title and title != arm else "")


def _contrast_title(contrast: Contrast) -> str:
    seeds = f"{contrast.paired_seeds} paired seed{'s' if contrast.paired_seeds != 1 else ''}"
    step = contrast.pairs[0].arm_step
    return f"{label(contrast.arm, 16)} - {label(contrast.baseline, 16)}\n{seeds}, step {step}"


def _difference(axes: Axes, place: int, contrast: Contrast, colour: str, marker: str) -> None:
    assert contrast.delta is not None, "only contrasts with a difference are drawn"
    if contrast.seed_floor is not None:
        axes.fill_betweenx(
            [place - 0.45, place + 0.45], -contrast.seed_floor, contrast.seed_floor, color=BAND, zorder=0, linewidth=0
        )
    if contrast.interval is not None:
        axes.plot(
            [contrast.interval.low, contrast.interval.high], [place, place], color=colour, linewidth=2.2, zorder=3
        )
    for pair in contrast.pairs:
        axes.plot(
            [pair.delta], [place], marker=marker, color=colour, markersize=8, markeredgecolor="white", zorder=4,
            label=run_label(pair.arm),
        )  # fmt: skip
    if len(contrast.pairs) > 1:
        axes.plot([contrast.delta], [place], marker="|", color="black", markersize=22, zorder=5)
    axes.annotate(
        signed(contrast.delta), (contrast.delta, place), xytext=(0, 10), textcoords="offset points", ha="center",
        fontsize=9, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}, zorder=6,
    )  # fmt: skip
