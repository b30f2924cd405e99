"""From artefacts to shards: DATA/shards/bucket_<W>x<H>/shard-NNNNNN.tar, as `data.source: shards` reads them. No torch.

What a set of shards is follows from the artefacts and the seed alone. A shard of the same plan that is there already
stays, so packing again after a few new photographs, or after a kill, writes only what is not there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.artefacts import FILES
from trainer.data.set_index import INDEX, UNFINISHED_INDEX, IndexedBucket, SetIndex, Shard, index_of
from trainer.data.split import split
from trainer.errors import DataError
from trainer.prepare.manifest import Manifest
from trainer.prepare.progress import bar
from trainer.prepare.recipe import Recipe
from trainer.prepare.recipes import read_recipes, side_of
from trainer.prepare.records import UNFINISHED, Samples, cannot_write, replace_file
from trainer.prepare.shard_plan import Packable, ShardPlan, plan_shards
from trainer.prepare.shard_tar import write_shard, written_shard
from trainer.prepare.states import ImageState, look_up_all

SHARDS = "shards"
_OURS = re.compile(rf"shard-\d+\.tar|\.shard-\d+\.json|\.+shard-\d+\.(tar|json){re.escape(UNFINISHED)}")


@dataclass(frozen=True, slots=True)
class Packed:
    """What packing did: shards `written` now, `kept` from before and `removed`, and (id, reason) of every image that
    was `left_out`: the first artefact that is not there, and its state."""

    index: SetIndex
    written: int
    kept: int
    removed: int
    left_out: tuple[tuple[str, str], ...]

    @property
    def summary(self) -> str:
        """One line for a person."""
        buckets = len(self.index.buckets)
        text = (
            f"pack: {self.index.samples:,} samples of {buckets} bucket{'s' * (buckets != 1)}, "
            f"{self.written:,} shards written, {self.kept:,} were there"
        )
        text += f", {self.removed:,} removed that no longer belong" if self.removed else ""
        return text + (f"; {told(self.left_out)}" if self.left_out else "")


@dataclass(frozen=True, slots=True)
class Survey:
    """What would be packed: every shard with its entry if it is there already, and what has to be left out."""

    recipes: Mapping[str, Recipe]
    side: int
    seed: int
    plans: tuple[ShardPlan, ...]
    there: Mapping[str, Shard]
    left_out: tuple[tuple[str, str], ...]

    def index(self, entries: Mapping[str, Shard]) -> SetIndex:
        """The index of the set whose shards, by path, are these. Raises DataError if there are none."""
        ids = [image.id for plan in self.plans for image in plan.samples]  # as training sees them
        sides = split(ids)
        recipes = dict(sorted(self.recipes.items()))
        return index_of(
            side=self.side,
            seed=self.seed,
            recipes={name: recipe.as_json() for name, recipe in recipes.items()},
            labels=tuple(dict.fromkeys(recipe.label for recipe in recipes.values() if recipe.label)),
            buckets=tuple(_buckets(self.plans, entries)),
            held_out=sides.held_out,
            probe=sides.probe,
        )


def pack(data: Path, manifest: Manifest, seed: int) -> Packed:
    """Bring the shards of a set up to date; whoever calls holds the set.

    Raises DataError if there is nothing to pack, if a file is not what its record says, and if the disk is full: what
    was packed until then is kept.
    """
    recipes, samples = read_recipes(data), Samples(data)
    found = survey(data, look_up_all(samples, manifest.images, recipes), recipes, seed)
    if not found.plans:
        raise DataError(f"there is nothing to pack in {data}: {told(found.left_out) or 'it has no images'}")
    root = data / SHARDS
    try:
        removed = _begin(root, found)
        todo = [plan for plan in found.plans if plan.path not in found.there]
        entries = dict(found.there)
        if todo:
            total = sum(len(plan.samples) for plan in found.plans)
            with bar("pack", total, total - sum(len(plan.samples) for plan in todo)) as advance:
                for plan in todo:
                    entries[plan.path] = write_shard(root, plan, samples, advance)
        index = found.index(entries)
        if not _holds(root, index.content):
            replace_file(root / INDEX, index.content)
    except OSError as error:
        raise cannot_write(Path(error.filename or root), error) from error
    return Packed(index, len(todo), len(found.there), removed, found.left_out)


def survey(data: Path, states: Iterable[ImageState], recipes: Mapping[str, Recipe], seed: int) -> Survey:
    """What packing these images would do."""
    packable, left_out = [], []
    for state in states:
        if state.is_done:
            packable.append(_packable(state, recipes))
        else:
            left_out.append((state.entry.id, _lacks(state)))
    side = side_of(recipes["image"])
    plans = plan_shards(packable, side, seed)
    there = {plan.path: entry for plan in plans if (entry := written_shard(data / SHARDS, plan)) is not None}
    return Survey(recipes, side, seed, plans, there, tuple(left_out))


def told(left_out: Sequence[tuple[str, str]]) -> str:
    """How many images are left out, and how many for which reason; '' for none."""
    if not left_out:
        return ""
    counts = Counter(reason for _, reason in left_out)
    listed = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items(), key=lambda one: -one[1]))
    return f"{len(left_out):,} image{'s' * (len(left_out) != 1)} left out: {listed}"


def _packable(state: ImageState, recipes: Mapping[str, Recipe]) -> Packable:
    names = {name for artefact in recipes for name in FILES[artefact]}
    files = tuple(sorted((name, digest) for name, digest in state.files.items() if name in names))
    return Packable(state.entry.id, state.entry.path, state.entry.bucket, files)


def _lacks(state: ImageState) -> str:
    """The first thing that is not there: what is made from it cannot be, either."""
    artefact = next(artefact for artefact in FILES if state.states.get(artefact, "done") != "done")
    return f"{artefact} {state.states[artefact]}"


def _begin(root: Path, found: Survey) -> int:
    """Take back the index if anything changes, and remove what no longer belongs; the number of shards of those."""
    strangers = list(_strangers(root, found.plans))
    if len(found.there) < len(found.plans) or strangers:
        root.mkdir(parents=True, exist_ok=True)
        if not _holds(root, UNFINISHED_INDEX):
            replace_file(root / INDEX, UNFINISHED_INDEX)
    for path in strangers:
        path.unlink(missing_ok=True)
    for folder in sorted({*_bucket_folders(root)} - {root / plan.folder for plan in found.plans}):
        _remove_empty(folder)
    return sum(path.suffix == ".tar" for path in strangers)


def _strangers(root: Path, plans: Sequence[ShardPlan]) -> Iterator[Path]:
    """Shards, notes beside them and unfinished files that no plan has."""
    wanted = {root / plan.folder / name for plan in plans for name in (plan.name, f".{Path(plan.name).stem}.json")}
    for folder in _bucket_folders(root):
        yield from (path for path in sorted(folder.iterdir()) if _OURS.fullmatch(path.name) and path not in wanted)


def _bucket_folders(root: Path) -> list[Path]:
    return [folder for folder in sorted(root.glob("bucket_*")) if folder.is_dir()]


def _remove_empty(folder: Path) -> None:
    left = sorted(path.name for path in folder.iterdir())
    if left:
        raise DataError(f"{folder} no longer belongs to the set, and {left[0]} in it is no shard: move it elsewhere")
    folder.rmdir()


def _holds(root: Path, content: bytes) -> bool:
    path = root / INDEX
    return path.exists() and path.read_bytes() == content


def _buckets(plans: Sequence[ShardPlan], entries: Mapping[str, Shard]) -> Iterator[IndexedBucket]:
    """Plans come bucket by bucket."""
    for bucket in dict.fromkeys(plan.bucket for plan in plans):
        own = [plan for plan in plans if plan.bucket == bucket]
        yield IndexedBucket(bucket, *own[0].size, tuple(entries[plan.path] for plan in own))
