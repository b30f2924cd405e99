"""The command that launches the arms of a study again, as far as their provenance tells. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from reports.study import StudyView
from reports.wording import LONGEST, counted

MOST_FILES = 12


@dataclass(frozen=True, slots=True)
class Relaunch:
    """Lines of a command for a code block, in which nothing can be escaped, and what to know about them."""

    command: str
    note: str


def relaunch(study: StudyView) -> Relaunch:
    """The arm files by name when they are few and plain, else how many there are and where they stand."""
    files = list(dict.fromkeys(_arm_files(study)))
    if not files:
        return Relaunch("runner launch ARM.yaml ...", "No run says which arm file it came from.")
    if len(files) > MOST_FILES or not all(_is_plain(name) for name in files):
        told = counted(len(files), "arm file")
        return Relaunch("runner launch ARM.yaml ...", f"The {told} stand in data/provenance.csv under arm_files.")
    quoted = [shlex.quote(name) for name in files]
    command = " \\\n    ".join(["runner launch", *quoted]) if len(quoted) > 1 else f"runner launch {quoted[0]}"
    return Relaunch(command, "The paths are those of the launch.")


def _arm_files(study: StudyView) -> Iterator[str]:
    """The first file of each run's list is the arm itself, the others are its bases."""
    for run in study.runs:
        sources = run.provenance.get("arm_files")
        if isinstance(sources, list | tuple) and sources and isinstance(sources[0], str):
            yield sources[0]


def _is_plain(name: str) -> bool:
    return 0 < len(name) <= LONGEST and name.isprintable()
