"""Figures: each is a PNG of a sane size that shows something, and a failing report leaves the old one alone."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import reports.figures
import reports.write
from reports.figure_costs import SAMPLES, SECONDS, STEPS
from reports.figure_curves import log_losses
from reports.figure_plan import figure_plan, sample_ids, sample_rows
from reports.figure_samples import read_image
from reports.figure_style import STYLE, samples_label
from reports.figures import DRAWN_BY, draw
from reports.markdown import render
from reports.study import StudyView
from reports.write import write
from tests.fakes.studies import PRIMARY, degenerate_studies, hostile_study, quickstart, seeded_study, with_curve

NAMES = ["primary", "contrasts", "curves", "costs", "protocols", "pairs", "samples"]


def check(path: Path) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 1100 <= image.width <= 1300
        assert 250 <= image.height <= 4000
        pixels = np.asarray(image.convert("L"))
    assert 0.005 < float((pixels < 128).mean()) < 0.6


def test_every_named_figure_is_drawn_and_the_whole_folder_written(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    study = quickstart(tmp_path / "images")
    folder = tmp_path / "report"
    assert write(study, folder) == folder / "report.md"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == set(render(study)) | {f"figures/{name}.png" for name in NAMES}
    for name in NAMES:
        check(folder / "figures" / f"{name}.png")
    assert (folder / "report.md").read_text() == render(study)["report.md"]
    assert dict(matplotlib.rcParams) == before


def test_plan_and_drawings_have_the_same_names() -> None:
    assert [planned.name for planned in figure_plan(quickstart())] == list(DRAWN_BY)


def draw_some(study: StudyView, names: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ...]:
    """Only the named figures, as far as the study can have them."""
    planned = tuple(figure for figure in figure_plan(study) if figure.name[len("figures/") : -len(".png")] in names)
    monkeypatch.setattr(reports.figures, "figure_plan", lambda _: planned)
    paths = draw(study, folder)
    expected = [figure.name for figure in planned if not figure.why_not]
    assert [path.relative_to(folder).as_posix() for path in paths] == expected
    return paths


# Where a study differs from the whole one in what a few figures show, only those are drawn again.
TOUCHED = {
    "loss explodes": ["curves"],
    "loss never finite": ["curves"],
    "images gone": ["samples"],
    "no scores": ["contrasts", "protocols"],
    "no metas": ["primary"],
    "no seed pair": ["primary", "contrasts"],
    "no baseline": ["primary", "costs"],
    "ends in nan": ["primary", "curves", "protocols"],
    "running": ["primary", "curves"],
    "primary explodes": ["primary", "curves", "costs"],
    "nothing finite": ["primary", "curves", "contrasts"],
    "primary never reported": ["primary", "curves", "samples"],
    "no primary": ["primary", "curves"],
    "many arms": ["primary", "costs"],
}


@pytest.mark.parametrize("name", sorted(degenerate_studies()))
def test_a_study_that_lacks_something_draws_what_it_planned(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = degenerate_studies()[name]
    for path in draw_some(study, TOUCHED.get(name, NAMES), tmp_path, monkeypatch):
        check(path)


def drawn(study: StudyView, name: str) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = DRAWN_BY[f"figures/{name}.png"](study, "?")
    FigureCanvasAgg(figure).draw()
    return figure


def test_all_panels_of_one_loss_have_one_kind_of_axis() -> None:
    study = quickstart()
    wide = with_curve(study.runs[3], "train/loss", {step: 1.0 + 900 * 0.98**step for step in range(1, 801, 10)})
    for runs, kind in ((study.runs, "linear"), ((*study.runs[:3], wide, *study.runs[4:]), "log")):
        losses = drawn(replace(study, runs=runs), "curves").axes[::2]
        assert [axes.get_yscale() for axes in losses] == [kind] * 4
        low_high = [axes.get_ylim() for axes in losses]
        shown = [
            sum(low <= tick <= high for tick in axes.get_yticks())
            for axes, (low, high) in zip(losses, low_high, strict=True)
        ]
        assert min(shown) >= 2  # or nobody could read a value
    zero = with_curve(study.runs[0], "train/loss", {1: 0.0, 2: 1.0})
    assert log_losses(replace(study, runs=(zero, wide))) == frozenset()


def test_a_budget_that_no_run_can_be_read_at_has_no_panel() -> None:
    study = quickstart()
    assert [axes.get_xlabel() for axes in drawn(study, "costs").axes] == [STEPS, SAMPLES, SECONDS]
    shared = [replace(run, attempts=(replace(run.attempts[0], shares_cores=True),)) for run in study.runs]
    figure = drawn(replace(study, runs=tuple(shared)), "costs")
    assert [axes.get_xlabel() for axes in figure.axes] == [STEPS, SAMPLES]
    assert "No panel of seconds: contended: n/a." in " ".join(text.get_text() for text in figure.texts)
    bare = [
        replace(run, config={}, curves={n: c for n, c in run.curves.items() if "sys/" not in n}) for run in study.runs
    ]
    figure = drawn(replace(study, runs=tuple(bare)), "costs")
    assert [axes.get_xlabel() for axes in figure.axes] == [STEPS]
    assert "training time not reported" in " ".join(text.get_text() for text in figure.texts)


def test_axes_say_how_many_samples_their_values_rest_on() -> None:
    study = quickstart()
    assert "mean of 16 samples" in drawn(study, "curves").axes[1].get_ylabel()
    assert "mean of 48 samples" in drawn(study, "costs").axes[0].get_ylabel()
    assert "mean of 48 samples" in drawn(study, "primary").axes[0].get_xlabel()
    run = study.runs[0]
    fewer = replace(run, scores=tuple(s for s in run.scores if s.step == 800 or int(s.sample_id[-4:]) < 20))
    told = drawn(replace(study, runs=(fewer,)), "costs").axes[0].get_ylabel()
    assert "mean of 20 (light) or 48 (full validation) samples" in told
    assert samples_label([(replace(run, metas={}), {1: 3, 2: 5, 3: 9})]) == "mean of 3 to 9 samples"
    assert samples_label([]) == ""


def test_no_empty_band_lies_under_the_last_arm() -> None:
    axes = drawn(quickstart(), "primary").axes[0]
    bottom, top = axes.get_ylim()
    places = [place for line in axes.get_lines() if line.get_markersize() == 8 for place in line.get_ydata()]
    assert 0.5 <= bottom - max(places) <= 1.5
    assert 0.5 <= min(places) - top <= 1.5


def test_command_arms_have_loss_curves_only() -> None:
    drawn = [figure.name for figure in figure_plan(degenerate_studies()["command arms"]) if not figure.why_not]
    assert drawn == ["figures/curves.png"]


def test_hostile_names_are_drawn_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in draw_some(hostile_study(), ["primary", "contrasts", "curves", "costs", "pairs"], tmp_path, monkeypatch):
        check(path)


def test_six_seeds_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in draw_some(seeded_study(6, -0.02), ["primary", "contrasts"], tmp_path, monkeypatch):
        check(path)


def test_samples_are_chosen_by_their_id_alone(tmp_path: Path) -> None:
    study = quickstart(tmp_path)
    rows = sample_rows(study)
    ids = sample_ids(rows)
    assert [row.run.arm for row in rows] == ["A", "B", "C", "D"]
    assert [row.run.seed for row in rows] == [0, 0, 0, 0]
    assert sample_ids(tuple(reversed(rows))) == ids
    assert list(ids) != sorted(ids)
    fewer = replace(rows[0], paths={key: path for key, path in rows[0].paths.items() if key in ids[2:5]})
    assert sample_ids((fewer, *rows[1:])) == ids[2:5]


def test_an_image_that_cannot_be_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.png").write_bytes(b"not an image")
    Image.new("RGB", (64, 48), (9, 8, 7)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    assert read_image(str(tmp_path / "text.png")) is None
    assert read_image(str(tmp_path / "half.png")) is None
    assert read_image(str(tmp_path / "missing.png")) is None
    whole = read_image(str(tmp_path / "whole.png"))
    assert whole is not None
    assert (whole.shape, whole[0, 0].tolist()) == ((48, 64, 3), [9, 8, 7])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read_image(str(tmp_path / "whole.png")) is None


def test_write_again_removes_what_the_study_no_longer_has(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    write(replace(quickstart(), primary=None), folder)
    (folder / "figures" / "primary.png").write_bytes(b"of an earlier study")
    (folder / "data" / "old.csv").write_text("a")
    (folder / "notes.txt").write_text("mine")
    write(degenerate_studies()["command arms"], folder)
    assert {path.name for path in (folder / "figures").iterdir()} == {"curves.png"}
    assert {path.name for path in (folder / "data").iterdir()} == {
        name[5:] for name in render(quickstart()) if "/" in name
    }
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_failure_leaves_the_report_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "report"
    write(degenerate_studies()["command arms"], folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(reports.write, "draw", full)
    with pytest.raises(OSError, match="no space left"):
        write(replace(quickstart(), primary=replace(PRIMARY, direction="max")), folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert sorted(os.listdir(folder)) == ["data", "figures", "report.md"]
