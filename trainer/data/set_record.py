"""What a set of shards says about how it was made: enough to ask a run that was trained on it something new. No torch.

The index of a set holds the recipes of everything in it. A run keeps them in its checkpoints, so that the set itself
need not be there when the run is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.config import TrainerConfig
from trainer.data.named_set import shards_of
from trainer.data.set_index import INDEX
from trainer.data.shard_set import ShardSet
from trainer.errors import DataError


@dataclass(frozen=True, slots=True)
class SetRecord:
    """`side` in pixels is that of the stored square images, `buckets` are the names of those that have shards.

    `recipes` are plain JSON by the name of the artefact, as they stand in the index; `labels` say what must not be
    believed of them. `missing` says why there are no recipes, '' if there are some.
    """

    side: int
    buckets: tuple[str, ...]
    recipes: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    missing: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "buckets": list(self.buckets), "labels": list(self.labels)}

    @property
    def notes(self) -> tuple[str, ...]:
        """What somebody who trains on the set should know; the labels are told with the data."""
        return (
            (f"{self.missing}: sample will know no encoder for words that are not in the set",) if self.missing else ()
        )


def set_record(config: TrainerConfig) -> SetRecord | None:
    """The record of the shards of a run; None where its source is another or its shards are not here."""
    if config.data.source != "shards":
        return None
    try:
        found = shards_of(config)
        return None if found is None else _recorded(found)
    except DataError:
        return None  # whoever opens the set says what is wrong with it


def record_from_json(content: Mapping[str, Any] | None) -> SetRecord | None:
    """The record that `as_json` wrote; None for None. Raises KeyError or TypeError for anything else."""
    if content is None:
        return None
    return SetRecord(
        side=content["side"],
        buckets=tuple(content["buckets"]),
        recipes=dict(content["recipes"]),
        labels=tuple(content["labels"]),
        missing=content["missing"],
    )


def _recorded(found: ShardSet) -> SetRecord:
    buckets = tuple(folder.bucket.name for folder in found.folders)
    index = found.index
    if index is None:
        return SetRecord(found.side, buckets, missing=f"the shards have no {INDEX}")
    missing = "" if index.recipes else f"the {INDEX} of the shards names no recipe"
    return SetRecord(found.side, buckets, index.recipes, index.labels, missing)
