"""Every arm's difference from its baseline: a dot per seed, an interval, and the baseline's seed floor as a band."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.contrasts import Contrast, contrasts
from reports.figure_style import BAND, FAINT, ON_WHITE, ArmStyle, arm_styles, metric_label, new_figure
from reports.findings import short_findings
from reports.readings import is_drawable
from reports.study import StudyView
from reports.wording import counted, label, signed


def draw_contrasts(study: StudyView, question: str) -> Figure:
    """A row per contrast of the primary, zero in the middle of the bands."""
    primary = study.primary
    assert primary is not None, "planned only with a primary"
    found = [contrast for contrast in contrasts(study) if contrast.delta is not None and is_drawable(contrast.delta)]
    figure = new_figure(question, short_findings(found), 1.1 + 0.62 * len(found))
    axes = figure.add_subplot()
    styles = arm_styles(study)
    for place, contrast in enumerate(found):
        _draw_contrast(axes, place, contrast, styles[contrast.arm])
    axes.axvline(0.0, color="#3b3b3b", linewidth=1.2, zorder=2)
    axes.set_yticks(range(len(found)), [_title(contrast) for contrast in found])
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    arrow = "← better    worse →" if primary.direction == "min" else "← worse    better →"
    axes.set_xlabel(f"arm minus baseline, {metric_label(primary.metric)}\n{arrow}")
    axes.set_title(_key(found), loc="right", fontsize=8.5, color=FAINT)
    return figure


def _draw_contrast(axes: Axes, place: int, contrast: Contrast, style: ArmStyle) -> None:
    assert contrast.delta is not None, "only contrasts with a difference are drawn"
    if contrast.seed_floor is not None and is_drawable(contrast.seed_floor):
        edges = [place - 0.45, place + 0.45]
        axes.fill_betweenx(edges, -contrast.seed_floor, contrast.seed_floor, color=BAND, zorder=0, linewidth=0)
    if contrast.interval is not None:
        bounds = [contrast.interval.low, contrast.interval.high]
        axes.plot(bounds, [place, place], color=style.colour, linewidth=2.2, zorder=3)
    several = len(contrast.pairs) > 1
    for index, pair in enumerate(contrast.pairs):
        # Seeds are spread a little below the line, or equal ones would cover each other.
        below = 0.12 + 0.26 * index / (len(contrast.pairs) - 1) if several else 0.0
        axes.plot(
            [pair.delta], [place + below], marker=style.marker, color=style.colour, markersize=6 if several else 8,
            markeredgecolor="white", linestyle="none", zorder=4,
        )  # fmt: skip
    if several:
        axes.plot([contrast.delta], [place], marker="|", color="black", markersize=14, zorder=5)
    axes.annotate(
        signed(contrast.delta), (contrast.delta, place), xytext=(0, 10), textcoords="offset points", ha="center",
        fontsize=9, bbox=ON_WHITE, zorder=6,
    )  # fmt: skip


def _title(contrast: Contrast) -> str:
    steps = sorted({pair.arm_step for pair in contrast.pairs})
    told = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    arms = f"{label(contrast.arm, 24)} - {label(contrast.baseline, 12)}"
    return f"{arms}\n{counted(contrast.paired_seeds, 'paired seed')}, {told}"


def _key(found: list[Contrast]) -> str:
    kinds = sorted({contrast.interval.kind for contrast in found if contrast.interval is not None})
    return "grey: seeds of the baseline apart" + (f"; line: 95 % over {' or '.join(kinds)}" if kinds else "")
