"""The sample grid: one row per arm, the same held-out samples and the same noise in every row, references on top."""

from __future__ import annotations

import warnings

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from reports.figure_plan import SampleRow, reference_paths, sample_ids, sample_rows
from reports.figure_style import new_figure
from reports.findings import ended_early, short_ending
from reports.readings import at, run_label
from reports.study import StudyView
from reports.wording import label, number

_MOST_PIXELS = 512  # on a side; larger images are reduced before they are drawn
_CELL_IN = 0.84


def draw_samples(study: StudyView, question: str) -> Figure:
    """References, then every arm's averaged weights with the common sampler. A missing image is said to be missing."""
    rows = sample_rows(study)
    ids = sample_ids(rows)
    references = reference_paths(rows)
    lines = [("reference", references), *((_row_title(study, row), row.paths) for row in rows)]
    finding = (
        "Columns are chosen by the hash of the sample id alone, never by look. EMA weights, common sampler, all "
        "conditions; the lowest seed of each arm at its last images."
    )
    figure = new_figure(question, finding, 0.3 + (_CELL_IN + 0.05) * len(lines))
    grid = figure.subplots(len(lines), len(ids), squeeze=False)
    for axes_row, (title, paths) in zip(grid, lines, strict=True):
        axes_row[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        for axes, sample_id in zip(axes_row, ids, strict=True):
            _draw_cell(axes, paths.get(sample_id))
    for axes, sample_id in zip(grid[0], ids, strict=True):
        axes.set_title(label(sample_id[-10:]), fontsize=8.5)
    return figure


def read_image(path: str) -> NDArray[np.uint8] | None:
    """Height x width x 3 bytes of an image, at most 512 on a side; None when it cannot be read."""
    try:
        with warnings.catch_warnings():
            # An image far larger than anything that we write is refused rather than unpacked.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
                return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None


def _row_title(study: StudyView, row: SampleRow) -> str:
    value = at(row.run, study.primary.metric, row.step) if study.primary is not None else None
    score = f"\n{label(study.primary.metric.rpartition('/')[2], 14)} {number(value, 3)}" if study.primary else ""
    title = f"{label(run_label(row.run), 16)}\nstep {row.step}{score}"
    return title + (f"\n{label(short_ending(row.run), 24)}" if ended_early(row.run) else "")


def _draw_cell(axes: Axes, path: str | None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    pixels = read_image(path) if path is not None else None
    if pixels is None:
        axes.text(0.5, 0.5, "n/a", transform=axes.transAxes, ha="center", va="center", color="#767676")
        axes.set_aspect("equal")
        return
    axes.imshow(pixels, interpolation="nearest" if max(pixels.shape[:2]) <= 64 else "antialiased")
