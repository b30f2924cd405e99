"""What the records of one image say about all of its artefacts at once, without asking the passes. No torch.

A pass may look at fewer artefacts than it could, so what an artefact was made from is read from its own record: every
file in it that an artefact of the set consists of must still be the one that is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from trainer.data.artefacts import FILES, MAKERS
from trainer.prepare.manifest import ImageEntry
from trainer.prepare.recipe import Recipe
from trainer.prepare.records import BrokenRecord, Record, Samples, State

_READERS = 8  # records are small files: what takes long is waiting for them


@dataclass(frozen=True, slots=True)
class ImageState:
    """One image: its records by artefact, the state of every artefact that has a recipe, and the artefacts whose
    records cannot be understood (which are stale), with what is wrong with them."""

    entry: ImageEntry
    records: Mapping[str, Record]
    states: Mapping[str, State]
    broken: Mapping[str, str]

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of every file that has a record."""
        return files_of(self.records)

    @property
    def is_done(self) -> bool:
        """Whether all that has a recipe is there."""
        return all(state == "done" for state in self.states.values())


def look_up(samples: Samples, entry: ImageEntry, recipes: Mapping[str, Recipe]) -> ImageState:
    """Read the records of an image."""
    records: dict[str, Record] = {}
    broken: dict[str, str] = {}
    for artefact in FILES:
        try:
            record = samples.record(entry.id, artefact)
        except BrokenRecord as error:
            broken[artefact] = str(error)
            continue
        if record is not None:
            records[artefact] = record
    states = {
        artefact: "stale" if artefact in broken else state_of(records.get(artefact), recipe, files_of(records))
        for artefact, recipe in recipes.items()
    }
    return ImageState(entry, records, states, broken)


def look_up_all(samples: Samples, entries: Iterable[ImageEntry], recipes: Mapping[str, Recipe]) -> Iterator[ImageState]:
    """`look_up` of every image, in their order."""
    with ThreadPoolExecutor(_READERS, "records") as readers:
        yield from readers.map(lambda entry: look_up(samples, entry, recipes), entries)


def state_of(record: Record | None, recipe: Recipe, files: Mapping[str, str]) -> State:
    """The state of an artefact beside the files that are there: done, missing, stale or failed."""
    if record is None:
        return "missing"
    moved = any(name in MAKERS and files.get(name) != digest for name, digest in record.inputs.items())
    if moved or record.recipe.as_json() != recipe.as_json():
        return "stale"
    return "failed" if record.reason else "done"


def files_of(records: Mapping[str, Record]) -> dict[str, str]:
    """SHA-256 of the files of these records by name."""
    return {name: digest for record in records.values() for name, digest in record.files.items()}
