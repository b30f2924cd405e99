"""What an artefact is made with. Where recipes differ, artefacts differ, and the old one is stale. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Recipe:
    """What makes an artefact: a model and its revision, and the version and options of what is done around it.

    `revision` is a hash of the model's files; '' where no model is involved. `preprocessing` grows whenever our own
    code gives another result for the same input. `options` hold everything else that the result depends on, as plain
    JSON values. `label` says to a reader what must not be believed of it, '' if nothing.
    """

    model: str = ""
    revision: str = ""
    preprocessing: int = 1
    options: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    label: str = ""

    def as_json(self) -> dict[str, object]:
        """Plain JSON values, options in the order of their names."""
        return {
            "model": self.model,
            "revision": self.revision,
            "preprocessing": self.preprocessing,
            "options": dict(sorted(self.options.items())),
            "label": self.label,
        }

    @property
    def hash(self) -> str:
        """16 hex digits of SHA-256 of the JSON."""
        text = json.dumps(self.as_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def recipe_from_json(content: Mapping[str, object]) -> Recipe:
    """The recipe that `as_json` wrote. Raises KeyError or TypeError for anything else."""
    return Recipe(
        model=str(content["model"]),
        revision=str(content["revision"]),
        preprocessing=int(content["preprocessing"]),  # type: ignore[call-overload]
        options=dict(content["options"]),  # type: ignore[call-overload]
        label=str(content["label"]),
    )
