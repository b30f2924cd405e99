"""How every figure looks: 8 inches wide, readable at 800 pixels, colours that colour-blind readers can tell apart.

Titles carry the question and, below it, what was found. All text from outside goes through `label`; mathematics is
switched off, so a dollar sign is a dollar sign.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.figure_plan import arms_of
from reports.findings import ended_early, short_ending
from reports.pairing import baseline_arms
from reports.readings import is_drawable
from reports.study import RunView, StudyView
from reports.wording import label, number

WIDTH_IN = 8.0
DOTS_PER_INCH = 150
BAND = "#d9d9d9"
FAINT = "#767676"
ON_WHITE: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "figure.dpi": DOTS_PER_INCH,
    "savefig.dpi": DOTS_PER_INCH,
    "axes.unicode_minus": True,
    "agg.path.chunksize": 20000,
}

# Okabe and Ito's palette without its yellow, which is too light for lines; baselines are dark grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("s", "^", "D", "v", "P", "h")
_BASELINE = ("#3b3b3b", "o")
_TEXT_COLUMNS = 110
_LINE_IN = 0.19


@dataclass(frozen=True, slots=True)
class ArmStyle:
    """Colour and marker of one arm, the same in every figure."""

    colour: str
    marker: str


def arm_styles(study: StudyView) -> dict[str, ArmStyle]:
    """A style for each arm; colours repeat after six arms, with another marker."""
    baselines = baseline_arms(study) or arms_of(study)[:1]
    styles = {arm: ArmStyle(*_BASELINE) for arm in baselines}
    others = [arm for arm in arms_of(study) if arm not in styles]
    for index, arm in enumerate(others):
        turn = index // len(_COLOURS)
        styles[arm] = ArmStyle(_COLOURS[index % len(_COLOURS)], _MARKERS[(index + turn) % len(_MARKERS)])
    return styles


def new_figure(question: str, finding: str, height_in: float) -> Figure:
    """An empty figure with its question in bold and its finding below, and room left for both."""
    lines = textwrap.wrap(finding, _TEXT_COLUMNS, max_lines=4, placeholder=" …")
    head_in = 0.36 + _LINE_IN * len(lines)
    figure = Figure(figsize=(WIDTH_IN, height_in + head_in), layout="constrained")
    total_in = height_in + head_in
    figure.text(0.012, 1 - 0.08 / total_in, question, fontsize=12, fontweight="bold", va="top")
    figure.text(0.012, 1 - 0.33 / total_in, "\n".join(lines), fontsize=9.5, va="top", color="#333333")
    engine = figure.get_layout_engine()
    assert engine is not None, "the figure was made with a layout"
    engine.set(rect=(0.0, 0.0, 1.0, 1 - head_in / total_in))  # type: ignore[call-arg]
    return figure


def metric_label(metric: str, join: str = " ") -> str:
    """A metric with its unit, as an axis says it; `join` stands between the two."""
    units = {"rmse": "RMSE, pixels -1…1", "lpips": "LPIPS distance, no unit", "loss": "loss, no unit"}
    unit = next((text for ending, text in units.items() if metric.endswith(ending)), "")
    return label(metric) + (f"{join}({unit})" if unit else "")


def samples_label(counted: Sequence[tuple[RunView, Mapping[int, int]]]) -> str:
    """`mean of 48 samples` from the number of samples behind each value, by run and step; what light and full
    validations have is told apart where they differ; empty where nothing is known."""
    kinds: dict[str, set[int]] = {}
    for run, counts in counted:
        for step, count in counts.items():
            kinds.setdefault(str(run.metas.get(step, {}).get("kind", "")), set()).add(count)
    every = set().union(*kinds.values()) if kinds else set()
    if len(every) < 2:
        return "".join(f"mean of {count} samples" for count in every)
    light, full = kinds.get("light", set()), kinds.get("full", set())
    if len(light) == len(full) == 1 and len(every) == 2:
        return f"mean of {min(light)} (light) or {min(full)} (full validation) samples"
    return f"mean of {min(every)} to {max(every)} samples"


def mark_end(axes: Axes, run: RunView, x: float, y: float, with_text: bool = True) -> None:
    """Where and why a run ended early; nothing for a run that did not. With text, `x` is a step."""
    if not ended_early(run):
        return
    axes.plot([x], [y], marker="X", color="black", markersize=9, markeredgecolor="white", linestyle="none", zorder=6)
    if with_text:
        late = x > 0.5 * run.steps_total
        axes.annotate(
            label(short_ending(run), 40), (x, y), xytext=(-6 if late else 8, 7), textcoords="offset points",
            fontsize=8.5, ha="right" if late else "left",
        )  # fmt: skip


def warn_inside(axes: Axes, text: str, x: float, align: str) -> None:
    """A short warning inside the upper edge of a panel; `x` is a share of its width."""
    axes.text(x, 0.95, text, transform=axes.transAxes, ha=align, va="top", color="#b00000", fontsize=8.5, bbox=ON_WHITE)


def mark_levels(axes: Axes, levels: Mapping[str, float], limits: tuple[float, float], left_below: float) -> None:
    """Draw the calibration levels inside the limits; a level below `left_below` has its name on the left, where it
    is out of the way of curves that fall."""
    low, high = limits
    for name, value in levels.items():
        if low <= value <= high:
            side = 0.0 if value < left_below else 1.0
            axes.axhline(value, color=FAINT, linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
            axes.annotate(
                label(name.replace("_", " ")), (side, value), xycoords=("axes fraction", "data"),
                xytext=(2 - 4 * side, 2), textcoords="offset points", fontsize=8.5, color="#555555",
                ha="right" if side else "left", va="bottom",
            )  # fmt: skip


def levels_outside(levels: Mapping[str, float], limits: tuple[float, float]) -> str:
    """The calibration levels that the limits leave out, as a sentence; empty when there are none."""
    outside = {name: value for name, value in levels.items() if not limits[0] <= value <= limits[1]}
    named = [f"{label(name.replace('_', ' '))} {number(value, 3)}" for name, value in outside.items()]
    return f"Reference images off the axis: {', '.join(named)}." if named else ""


def late_limits(lines: Sequence[tuple[RunView, Mapping[int, float]]]) -> tuple[float, float] | None:
    """Limits for all points of the lines from a tenth of the run on, so that the start does not flatten the end;
    for all points where there are fewer than two such; None without any finite value."""
    finite = [(run, step, value) for run, line in lines for step, value in line.items() if is_drawable(value)]
    late = [value for run, step, value in finite if step >= 0.1 * run.steps_total]
    values = late if len(late) >= 2 else [value for _, _, value in finite]
    return padded(values, 0.1) if values else None


def padded(values: Sequence[float], share: float = 0.12) -> tuple[float, float]:
    """Limits around some finite values with a margin; a little room around a single one."""
    low, high = min(values), max(values)
    margin = (high - low) * share or abs(high) * 0.1 or 0.1
    return low - margin, high + margin
