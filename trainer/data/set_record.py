"""What a set of shards says about how it was made: enough to ask a run that was trained on it something new. No torch.

Who packs a set writes `index.json` beside the folders of its buckets: `recipes` by artefact and `labels`. A run keeps a
copy of what counts in its checkpoints, so that the set itself need not be there when the run is asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.config import TrainerConfig
from trainer.data.shard_set import ShardSet, shards_of
from trainer.errors import DataError

INDEX_FILE = "index.json"


@dataclass(frozen=True, slots=True)
class SetRecord:
    """`side` in pixels is that of the stored square images, `buckets` are the names of those that have shards.

    `recipes` are plain JSON by the name of the artefact, as they stand in the index; `labels` say what must not be
    believed of the set. `missing` says why there are no recipes, '' if there are some.
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
        """What somebody who trains on the set should know."""
        if not self.missing:
            return self.labels
        return (*self.labels, f"{self.missing}: sample will know no encoder for words that are not in the set")


def set_record(config: TrainerConfig) -> SetRecord | None:
    """The record of the shards of a run; None where its source is another or its shards are not here."""
    if config.data.source != "shards":
        return None
    try:
        found = shards_of(config)
    except DataError:
        return None  # whoever opens the set says what is wrong with it
    return None if found is None else _recorded(found)


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
    path = found.root / INDEX_FILE
    try:
        content = json.loads(path.read_bytes())
        recipes, labels = content["recipes"], content.get("labels", [])
        if not isinstance(recipes, dict) or not all(isinstance(label, str) for label in labels):
            raise TypeError("recipes must be a mapping and labels a list of texts")
    except FileNotFoundError:
        return SetRecord(found.side, buckets, missing=f"the shards have no {INDEX_FILE}")
    except OSError as error:
        return SetRecord(found.side, buckets, missing=f"{path} cannot be read: {error.strerror or error}")
    except (ValueError, KeyError, TypeError) as error:
        return SetRecord(found.side, buckets, missing=f"{path} is no index of shards: {error!r}")
    missing = "" if recipes else f"{path} names no recipe"
    return SetRecord(found.side, buckets, recipes, tuple(labels), missing)
