"""`python -m trainer status DATA [--json]`: how far a set is, what it takes on disk, and what to do next. No torch."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from trainer.data.artefacts import FILES
from trainer.data.set_index import SetIndex, find_index
from trainer.errors import EXIT_DONE, DataError, UsageError
from trainer.prepare.manifest import whole_manifest
from trainer.prepare.pack import SHARDS, Survey, survey
from trainer.prepare.recipes import read_recipes
from trainer.prepare.records import Samples
from trainer.prepare.states import look_up_all

STATES = ("done", "missing", "stale", "failed")


@dataclass(frozen=True, slots=True)
class Status:
    """A prepared set: images, files that were rejected or are copies, images by artefact and state, what is packed.

    `out_of_date` says what is wrong with the shards, '' if nothing; sizes are in bytes; `next` is what to do.
    """

    photos: str
    images: int
    rejected: int
    copies: int
    passes: Mapping[str, Mapping[str, int]]
    labels: Mapping[str, str]
    samples_packed: int
    shards: int
    out_of_date: str
    samples_bytes: int
    shards_bytes: int
    next: str


def status_of(data: Path) -> Status:
    """Count everything. Raises DataError if it is no prepared set."""
    manifest, recipes = whole_manifest(data), read_recipes(data)
    states = list(look_up_all(Samples(data), manifest.images, recipes))
    counts = {
        artefact: Counter[str](state.states[artefact] for state in states) for artefact in FILES if artefact in recipes
    }
    passes = {artefact: {state: count[state] for state in STATES} for artefact, count in counts.items()}
    index, out_of_date = _index(data)
    found = survey(data, states, recipes, index.seed if index is not None else 0)
    out_of_date = out_of_date or _difference(index, found)
    unmade = [name for name, count in passes.items() if count["done"] < len(manifest.images)]
    prepare = f"python -m trainer prepare {manifest.photos} --out {data}"
    return Status(
        photos=manifest.photos,
        images=len(manifest.images),
        rejected=len(manifest.rejected),
        copies=len(manifest.copies),
        passes=passes,
        labels={artefact: recipes[artefact].label for artefact in passes if recipes[artefact].label},
        samples_packed=index.samples if index is not None else 0,
        shards=len(index.shards) if index is not None else 0,
        out_of_date=out_of_date,
        samples_bytes=_size_of(data / "samples"),
        shards_bytes=_size_of(data / SHARDS),
        next=_next(data, prepare, unmade, out_of_date),
    )


def main(argv: Sequence[str]) -> int:
    """Tell how far a set is."""
    given = _parser().parse_args(argv)
    if not given.data.is_dir():
        raise UsageError(f"{given.data} is no folder of a prepared set")
    status = status_of(given.data)
    if given.json:
        print(json.dumps(asdict(status), indent=1, ensure_ascii=False))
    else:
        tell(status, Console())
    return EXIT_DONE


def _index(data: Path) -> tuple[SetIndex | None, str]:
    """The index of the shards, and what is wrong with it."""
    try:
        index = find_index(data / SHARDS)
    except DataError as error:
        return None, str(error)
    return index, "" if index is not None else "nothing is packed yet"


def _difference(index: SetIndex | None, found: Survey) -> str:
    """What packing would change; '' if nothing."""
    if index is None or (missing := len(found.plans) - len(found.there)):
        return "" if index is None else f"{missing} of {len(found.plans)} shards have to be written"
    is_it = bool(found.plans) and found.index(found.there) == index
    return "" if is_it else "the index is not that of the artefacts that are there"


def _next(data: Path, prepare: str, unmade: Sequence[str], out_of_date: str) -> str:
    if unmade:
        return f"{prepare}, with the options it was made with: {', '.join(unmade)} are not all there"
    if out_of_date:
        return f"{prepare} --passes pack, with the options it was made with"
    return f"train with data.source: shards and data.path: {data / SHARDS}"


def _size_of(folder: Path) -> int:
    """Bytes of all files below a folder; 0 if there is none."""
    found = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                found += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # somebody prepares meanwhile
                continue
    return found


def tell(status: Status, console: Console) -> None:
    """A table on a terminal, plain columns anywhere else."""

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    say(f"{status.photos}: {status.images:,} images, {status.rejected:,} rejected, {status.copies:,} copies")
    head, rows = ("pass", *STATES, "total", "note"), list(_rows(status))
    if console.is_terminal:
        table = Table(head[0], *(Column(name, justify="right") for name in head[1:-1]), head[-1])
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
    else:
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        for row in (head, *rows):
            say(_columns(row, widths))
    say(f"shards: {status.samples_packed:,} samples in {status.shards:,}, {status.out_of_date or 'up to date'}")
    say(f"on disk: {_size(status.samples_bytes)} of artefacts, {_size(status.shards_bytes)} of shards")
    say(f"next: {status.next}")


def _rows(status: Status) -> Iterator[tuple[str, ...]]:
    for artefact, counts in status.passes.items():
        numbers = (f"{counts[state]:,}" for state in STATES)
        yield artefact, *numbers, f"{sum(counts.values()):,}", status.labels.get(artefact, "")


def _columns(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers, note = row
    aligned = (number.rjust(width) for number, width in zip(numbers, widths[1:-1], strict=True))
    return "  ".join((name.ljust(widths[0]), *aligned, note)).rstrip()


def _size(size_bytes: int) -> str:
    gib = size_bytes / 2**30
    return f"{gib:,.1f} GiB" if gib >= 1 else f"{size_bytes / 2**20:,.1f} MiB"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer status", description="How far a prepared set is, and what to do next."
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="the --out folder of prepare")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser
