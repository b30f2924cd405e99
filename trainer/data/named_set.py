"""The set of shards that a configuration names: a folder of this machine, or one that is elsewhere. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.byte_progress import in_words
from trainer.config import TrainerConfig
from trainer.data.artefacts import IMAGE_MEMBER, JSON_MEMBER, array_members
from trainer.data.buckets import BUCKETS
from trainer.data.naming import placed, placed_folder
from trainer.data.remote.address import is_address
from trainer.data.remote.faults import NotReachable
from trainer.data.remote.local_copy import local_copy, missing_bytes
from trainer.data.remote.look_up import look_up
from trainer.data.set_index import read_index
from trainer.data.shard_set import ShardFolder, ShardSet, describe_set
from trainer.errors import DataError


def shards_of(config: TrainerConfig) -> ShardSet | None:
    """The set that `data.path` names; None if its folder is not on this machine. Raises DataError if it is no set.

    Of a set that is elsewhere and not here yet, it is what the index says: no widths of features. None if it cannot be
    asked.
    """
    if config.data.path is None:
        return None
    if is_address(config.data.path):
        return _elsewhere(config.data.path, config.data.index)
    try:
        root = placed(config.data.path)
    except DataError:
        return None
    if not root.is_dir():
        return None
    require_index(root, config.data.index)
    return describe_set(root)


def opened_folder(config: TrainerConfig) -> Path:
    """The folder of the set that `data.path` names, fetched if it is elsewhere. Raises DataError."""
    if config.data.path is None or not is_address(config.data.path):
        root = placed_folder(config.data.path, "shards")
        require_index(root, config.data.index)
        return root
    return local_copy(look_up(config.data.path, config.data.index))


def require_index(root: Path, wanted: str | None) -> None:
    """Raise DataError unless index.json of a set has the SHA-256 that is wanted, if one is."""
    if wanted is not None and (found := read_index(root).digest) != wanted:
        raise DataError(
            f"{root} is not the set that this run was made for: its index is {found[:12]}…, data.index wants "
            f"{wanted[:12]}…; bring that set back, or start a run of its own for this one (data.index: null)"
        )


def _elsewhere(path: str, wanted: str | None) -> ShardSet | None:
    try:
        found = look_up(path, wanted)
    except NotReachable:
        return None
    if not missing_bytes(found):
        return describe_set(found.folder)
    folders = [
        ShardFolder(each.bucket, each.height, each.width, tuple(found.folder / shard.path for shard in each.shards))
        for each in found.index.buckets
    ]
    folders.sort(key=lambda folder: BUCKETS.index(folder.bucket))
    return ShardSet(
        root=found.folder,
        side=found.index.side,
        folders=tuple(folders),
        left_alone=(),
        suffixes=frozenset((JSON_MEMBER, IMAGE_MEMBER, *array_members(found.index.recipes))),
        widths={},
        text_length=0,
        index=found.index,
    )


def with_index(config: TrainerConfig) -> TrainerConfig:
    """The configuration with the digest of the index that stands at its address now, so that it names one set for ever.

    As it is for folders, where an index is given already, and where the address cannot be asked.
    """
    path = config.data.path
    if config.data.source != "shards" or path is None or not is_address(path) or config.data.index is not None:
        return config
    try:
        found = look_up(path)
    except DataError:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"index": found.index.digest})})


def remarks_on_set(config: TrainerConfig) -> Iterator[str]:
    """What a person should know of a set that is elsewhere."""
    path = config.data.path
    if config.data.source != "shards" or path is None or not is_address(path):
        return
    try:
        found = look_up(path, config.data.index)
    except NotReachable as error:
        yield f"data.path {path} could not be asked: {error}"
        return
    except DataError:
        return  # an error of its own, which trainer/rules/data.py reports
    if found.note:
        yield f"data.path {path} could not be asked: {found.note}"
    left, index = missing_bytes(found), found.index
    what = f"{index.samples:,} samples in {len(index.shards)} shards, {in_words(index.size_bytes)}"
    fetched = f"{in_words(left)} will be fetched to {found.folder} when a run opens it" if left else "all of it is here"
    yield f"data.path {path}: {what}; {fetched}"
    yield from (f"data.path {path}: {label}" for label in index.labels)
