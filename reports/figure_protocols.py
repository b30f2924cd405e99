"""Two figures that ask how robust a ranking is: over protocols (averaged or raw weights, common or native sampler)
and over samples (paired scatter)."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.contrasts import Contrast, contrasts
from reports.figure_plan import arms_of, contrast_scores
from reports.figure_style import ArmStyle, arm_styles, metric_label, new_figure, padded
from reports.findings import better_is, ended_early
from reports.protocols import protocol_step, protocol_values
from reports.readings import is_drawable, run_label
from reports.study import RunView, StudyView
from reports.wording import label, number, signed

_NAMES = ("EMA, common sampler", "raw, common sampler", "EMA, native sampler", "raw, native sampler")
_SHAPES = (("o", True), ("o", False), ("D", True), ("D", False))
_MOST_PAIRS = 6


def draw_protocols(study: StudyView, question: str) -> Figure:
    """A row per run and a mark per protocol."""
    primary = study.primary
    assert primary is not None, "planned only with a primary"
    runs = [run for arm in arms_of(study) for run in study.runs if run.arm == arm]
    found = [
        (run, *protocol_values(run, primary.metric)) for run in runs if protocol_step(run, primary.metric) is not None
    ]
    figure = new_figure(question, _order_finding(study, found, primary.direction), 1.2 + 0.42 * len(found))
    axes = figure.add_subplot()
    styles = arm_styles(study)
    for place, (run, values, _, _) in enumerate(found):
        for value, (marker, filled) in zip(values, _SHAPES, strict=True):
            if value is not None and is_drawable(value):
                # Native marks stand a little below the common ones, so that equal values do not cover each other.
                _mark(axes, value, place + (0.14 if marker == "D" else -0.14), marker, filled, styles[run.arm].colour)
    titles = [
        f"{label(run_label(run), 20)}, step {step}{' (ended early)' if ended_early(run) else ''}"
        for run, _, step, _ in found
    ]
    axes.set_yticks(range(len(found)), titles)
    axes.set_ylim(len(found) - 0.5, -0.5)
    bare = primary.metric.rpartition("/")[2]
    axes.set_xlabel(f"{metric_label(bare)}, {better_is(primary.direction)}")
    for name, (marker, filled) in zip(_NAMES, _SHAPES, strict=True):
        axes.plot(
            [], [], marker=marker, linestyle="none", color="#3b3b3b", fillstyle="full" if filled else "none", label=name
        )
    figure.legend(loc="outside lower center", ncols=4, columnspacing=1.0, handletextpad=0.2)
    return figure


def draw_pairs(study: StudyView, question: str) -> Figure:
    """A panel per contrast: each held-out sample's score under the arm against that under its baseline."""
    found = [c for c in contrasts(study) if c.pairs and contrast_scores(c)[0]][:_MOST_PAIRS]
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    told = " · ".join(f"{label(c.arm, 16)} lower on {_share_lower(c)}" for c in found)
    figure = new_figure(question, f"{told}. One pair of checkpoints each; a dot is a sample.", 3.0 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    styles = arm_styles(study)
    for place, axes in enumerate(grid.flat):
        if place < len(found):
            _draw_pair(axes, found[place], styles[found[place].arm])
        else:
            axes.set_visible(False)
    return figure


def _mark(axes: Axes, x: float, y: float, marker: str, filled: bool, colour: str) -> None:
    axes.plot(
        [x], [y], marker=marker, markersize=8, color=colour, markerfacecolor=colour if filled else "white",
        markeredgewidth=1.6, linestyle="none", zorder=3,
    )  # fmt: skip


def _order_finding(study: StudyView, found: list[tuple[RunView, list[float | None], int, int]], direction: str) -> str:
    """The order of the arms (lowest seed) under each protocol that all of them have."""
    orders: dict[str, str] = {}
    firsts = {run.arm: (run, values) for run, values, _, _ in reversed(found) if not ended_early(run)}
    for index, name in enumerate(_NAMES):
        pairs = [(values[index], arm) for arm, (_, values) in firsts.items()]
        scored = [(value, arm) for value, arm in pairs if value is not None and is_drawable(value)]
        if len(scored) == len(firsts) >= 2:
            ordered = sorted(scored, reverse=direction == "max")
            orders[name] = " ".join(label(arm, 16) for _, arm in ordered)
    if not orders:
        return "Fewer than two complete arms have the same protocols: no order to compare."
    counts = [count for *_, count in found if count]
    samples = f" On the {min(counts)} samples common to a run's protocols." if counts else ""
    if len(set(orders.values())) == 1:
        return f"Same order under {len(orders)} protocols, best first: {next(iter(orders.values()))}.{samples}"
    told = "; ".join(f"{name}: {order}" for name, order in orders.items())
    return f"The order changes, best first: {told}.{samples}"


def _share_lower(contrast: Contrast) -> str:
    arm, baseline = contrast_scores(contrast)
    return f"{sum(arm[key] < baseline[key] for key in arm)} of {len(arm)} samples"


def _draw_pair(axes: Axes, contrast: Contrast, style: ArmStyle) -> None:
    arm, baseline = contrast_scores(contrast)
    pair = contrast.pairs[0]
    limits = padded([*arm.values(), *baseline.values()], 0.06)
    axes.plot(limits, limits, color="#3b3b3b", linewidth=1)
    axes.plot(
        list(baseline.values()), [arm[key] for key in baseline], linestyle="none", marker=style.marker, markersize=4.5,
        color=style.colour, alpha=0.75,
    )  # fmt: skip
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_aspect("equal")
    axes.set_xlabel(f"{label(run_label(pair.baseline), 18)}, step {pair.baseline_step}")
    axes.set_ylabel(f"{label(run_label(pair.arm), 18)}, step {pair.arm_step}")
    axes.set_title(f"mean {signed(contrast.delta)}, samples {number(float(len(arm)))}", loc="left")
