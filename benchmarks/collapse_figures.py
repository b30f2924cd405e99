"""The two figures of docs/adamw_tread.md: every seed is a line, nothing is smoothed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.collapse_signs import SIGNS, WARM_SHARE
from reports.figure_style import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from benchmarks.collapse import Run

COLOURS = {"A": "#3b3b3b", "B": "#0072B2", "C": "#D55E00"}
NAMES = {"A": "A: AdamW", "B": "B: TREAD + AdamW", "C": "C: TREAD + Muon"}
SCORES = {
    "ema/dense": "average, dense (scored)",
    "raw/dense": "raw weights, dense",
    "ema/guided": "average, self-guidance 3",
    "long/dense": "published averaging, dense",
}
Studies = Mapping[str, Sequence["Run"]]


def draw(studies: Studies, folder: Path) -> list[Path]:
    """Draw both figures into `folder` and return their paths."""
    drawn: dict[str, Callable[[Studies], Figure]] = {
        "adamw_tread_scores.png": draw_scores,
        "adamw_tread_indicators.png": draw_indicators,
    }
    paths = []
    with matplotlib.rc_context({**STYLE, "font.size": 8, "axes.titlesize": 8, "savefig.dpi": 100}):
        for name, make in drawn.items():
            figure = make(studies)
            FigureCanvasAgg(figure)
            figure.savefig(folder / name, format="png", metadata={"Software": None})
            paths.append(folder / name)
    return paths


def draw_scores(studies: Studies) -> Figure:
    """Reconstruction RMSE over steps: a row per study, a column per cell."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots(len(studies), len(SCORES), sharex="row", sharey="row", squeeze=False)
    for row, (study, runs) in zip(axes, studies.items(), strict=True):
        for panel, (cell, title) in zip(row, SCORES.items(), strict=True):
            panel.set_title(title)
            for run in runs:
                curve = run.curve(cell)
                panel.plot(list(curve), list(curve.values()), color=COLOURS[run.arm], linewidth=1.1, alpha=0.85)
        row[0].set_ylabel(f"{study}\nRMSE on 24 held-out images")
        row[0].set_ylim(bottom=0)
    for panel in axes[-1]:
        panel.set_xlabel("step")
    _legend(figure, studies)
    return figure


def draw_indicators(studies: Studies) -> Figure:
    """The indicators of the first study over steps, behind the warm-up."""
    runs = next(iter(studies.values()))
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = list(figure.subplots(3, 4, sharex=True).flat)
    for empty in panels[len(SIGNS) :]:
        empty.set_axis_off()
    for panel, sign in zip(panels, SIGNS, strict=False):
        panel.set_title(sign.name)
        for run in runs:
            total = run.recorded.steps_total or 0
            curve = {
                at: value for at, value in sign.of(run.recorded.series, run.depth).items() if at >= WARM_SHARE * total
            }
            panel.plot(list(curve), list(curve.values()), color=COLOURS[run.arm], linewidth=0.9, alpha=0.8)
        if sign.name in ("I1 rms_ratio", "I4 gradient_noise") or "I2 second_moment," in sign.name:
            _logarithmic(panel)
    figure.supxlabel("step", fontsize=8)
    _legend(figure, studies)
    return figure


def _logarithmic(panel: Axes) -> None:
    """For what spans powers of ten."""
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # powers would need mathematics, which STYLE has off
    panel.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, studies: Studies) -> None:
    arms = sorted({run.arm for runs in studies.values() for run in runs})
    lines = [matplotlib.lines.Line2D([], [], color=COLOURS[arm], label=f"{NAMES[arm]}, three seeds") for arm in arms]
    figure.legend(handles=lines, loc="outside upper center", ncols=len(lines))
