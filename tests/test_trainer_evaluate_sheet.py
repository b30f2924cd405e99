"""Contact sheets: what stands where, what is said of images that cannot be shown, and when a run draws one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fakes.trainer_runs import metrics_at, trained
from trainer.document import parse_config
from trainer.errors import ConfigError
from trainer.evaluate.pictures import to_image
from trainer.evaluate.sheet import CELL, LARGEST_CELL, Row, cell_size, contact_sheet, enlarged, save_sheet

RED, BLUE = (torch.tensor(colour)[:, None, None].expand(3, 16, 16) for colour in ((1.0, -1, -1), (-1.0, -1, 1)))


def share_of(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(sheet) == colour).all(axis=2).sum())


def test_every_image_is_there_in_the_order_of_the_columns() -> None:
    sheet = contact_sheet("title", ("left", "right"), [Row((RED, BLUE), "one"), Row((BLUE, RED), "two")])
    assert share_of(sheet, (255, 0, 0)) == share_of(sheet, (0, 0, 255)) == 2 * CELL * CELL
    first = np.argwhere((np.asarray(sheet) == (255, 0, 0)).all(axis=2))[0]
    second = np.argwhere((np.asarray(sheet) == (0, 0, 255)).all(axis=2))[0]
    assert first[0] == second[0]
    assert first[1] < second[1]


def test_what_cannot_be_shown_is_named() -> None:
    broken = RED.clone()
    broken[0, 0, 0] = math.nan
    whole = contact_sheet("t", ("a", "b"), [Row((RED, RED), "c")])
    other = [contact_sheet("t", ("a", "b"), [Row((RED, image), "c")]) for image in (broken, None)]
    assert share_of(whole, (255, 0, 0)) == 2 * CELL * CELL
    assert [share_of(sheet, (255, 0, 0)) for sheet in other] == [CELL * CELL] * 2
    assert np.asarray(other[0]).tobytes() != np.asarray(other[1]).tobytes(), "not finite is not the same as not drawn"


def test_long_words_are_wrapped_and_cut_and_change_the_height_only() -> None:
    short, long = (contact_sheet("t", ("a",), [Row((RED,), text)]) for text in ("word", "many words " * 30 + "w" * 300))
    assert short.width == long.width
    assert long.height > short.height
    assert contact_sheet("t" * 400, ("c" * 400,), [Row((RED,), "")]).width == short.width


@pytest.mark.parametrize(
    ("size", "cell"),
    [
        ((16, 16), (128, 128)),
        ((48, 48), (96, 96)),
        ((24, 32), (128, 96)),
        ((1024, 512), (128, 256)),
        ((99, 99), (99, 99)),
    ],
)
def test_small_images_grow_by_whole_factors_and_large_ones_shrink(size: tuple[int, int], cell: tuple[int, int]) -> None:
    assert cell_size(*size) == cell
    assert enlarged(torch.zeros(3, *size)).size == cell
    assert max(cell) <= LARGEST_CELL
    if size == (16, 16):
        noise = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
        np.testing.assert_array_equal(np.asarray(enlarged(noise))[::8, ::8], np.asarray(to_image(noise)))


def test_a_sheet_is_written_whole(tmp_path: Path) -> None:
    sheet = contact_sheet("t", ("a",), [Row((RED,), "c")])
    save_sheet(tmp_path / "new" / "s.png", sheet)
    with Image.open(tmp_path / "new" / "s.png") as image:
        assert image.size == sheet.size
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["s.png"]


# ---- the cadence of a run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run without and with contact sheets at every second validation."""
    root = tmp_path_factory.mktemp("runs")
    validation = {"every": 2, "samples": 6, "sampler_steps": 2}
    return (
        trained(root / "without", validation=validation),
        trained(root / "with", validation={**validation, "grid": {"every": 4, "samples": 2}}),
    )


def test_a_run_draws_sheets_only_when_asked_and_at_its_end(runs: tuple[Path, Path]) -> None:
    assert not (runs[0] / "validation" / "grids").exists()
    names = sorted(path.name for path in (runs[1] / "validation" / "grids").iterdir())
    assert names[:2] == ["step_000000.png", "step_000004.png"]
    assert names[-1] == "step_000006.png"
    with Image.open(runs[1] / "validation" / "grids" / names[-1]) as image:
        assert image.width > 5 * CELL, "real, EMA, raw, text only, native"


def test_sheets_change_no_number(runs: tuple[Path, Path]) -> None:
    for step in (0, 2, 4, 6):
        without, with_sheets = (metrics_at(run, step) for run in runs)
        assert without == with_sheets
    weights = [run / "checkpoints" / "step_000006" for run in runs]
    assert (weights[0] / "model.safetensors").read_bytes() == (weights[1] / "model.safetensors").read_bytes()


def test_a_run_without_captions_and_guidance_has_no_column_for_them(tmp_path: Path) -> None:
    validation = {"every": 6, "samples": 6, "sampler_steps": 1, "grid": {"every": 6, "samples": 1}}
    off = dict.fromkeys(("text", "patches", "pose"), "off")
    run = trained(tmp_path / "cls", validation=validation, streams=off, sampler={}, steps=6)
    with Image.open(run / "validation" / "grids" / "step_000006.png") as image:
        assert image.width < 4 * CELL, "real, EMA and raw"


@pytest.mark.parametrize(
    ("grid", "path"),
    [({"every": 150}, "validation.grid.every"), ({"every": 100, "samples": 17}, "validation.grid.samples")],
)
def test_sheets_that_cannot_be_made_are_refused(grid: dict, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"steps": 300, "validation": {"grid": grid}})
    assert [issue.path for issue in caught.value.issues] == [path]
    assert all(issue.allowed for issue in caught.value.issues)
