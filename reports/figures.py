"""Draws the figures of a study into PNG files: the edge of this package that touches files and matplotlib.

Which figures there are is decided by `figure_plan`; here each name has the function that draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reports.figure_contrasts import draw_contrasts
from reports.figure_costs import draw_costs
from reports.figure_curves import draw_curves
from reports.figure_plan import figure_plan
from reports.figure_primary import draw_primary
from reports.figure_protocols import draw_pairs, draw_protocols
from reports.figure_samples import draw_samples
from reports.figure_style import STYLE
from reports.study import StudyView

DRAWN_BY: Mapping[str, Callable[[StudyView, str], Figure]] = {
    "figures/primary.png": draw_primary,
    "figures/contrasts.png": draw_contrasts,
    "figures/curves.png": draw_curves,
    "figures/costs.png": draw_costs,
    "figures/protocols.png": draw_protocols,
    "figures/pairs.png": draw_pairs,
    "figures/samples.png": draw_samples,
}


def draw(study: StudyView, folder: Path) -> tuple[Path, ...]:
    """Draw every figure that the study can have into `folder`/figures and return the paths.

    Pixels may differ between machines; the report's text does not. Raises OSError when a file cannot be written.
    """
    written = []
    with matplotlib.rc_context(STYLE):
        for planned in figure_plan(study):
            if planned.why_not:
                continue
            path = folder / planned.name
            path.parent.mkdir(parents=True, exist_ok=True)
            figure = DRAWN_BY[planned.name](study, planned.question)
            FigureCanvasAgg(figure)
            figure.savefig(path, format="png", metadata={"Software": None})
            written.append(path)
    return tuple(written)
