"""Writes a report folder: text, data files and figures."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from reports.figures import draw
from reports.markdown import REPORT, render
from reports.study import StudyView


def write(study: StudyView, folder: Path) -> Path:
    """Write everything and return the path of report.md.

    All files are made in a hidden folder beside their targets first, so a failure leaves the report as it was; each
    then replaces its predecessor atomically, report.md last. Figures and data files that the study no longer has are
    removed; other files in the folder are left alone. Raises OSError when the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".report-", dir=folder))
    try:
        made = [*_write_text(study, staging), *(path.relative_to(staging) for path in draw(study, staging))]
        for name in sorted(made, key=lambda name: name == Path(REPORT)):
            (folder / name).parent.mkdir(exist_ok=True)
            os.replace(staging / name, folder / name)
        _remove_stale(folder, set(made))
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder / REPORT


def _write_text(study: StudyView, staging: Path) -> list[Path]:
    written = []
    for name, text in render(study).items():
        path = staging / name
        path.parent.mkdir(exist_ok=True)
        # Strings from hosts may hold lone surrogates, which have no UTF-8 form.
        path.write_bytes(text.encode("utf-8", "backslashreplace"))
        written.append(Path(name))
    return written


def _remove_stale(folder: Path, made: set[Path]) -> None:
    for pattern in ("figures/*.png", "data/*.csv"):
        for path in sorted(folder.glob(pattern)):
            if path.relative_to(folder) not in made:
                path.unlink()
