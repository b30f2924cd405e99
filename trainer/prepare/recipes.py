"""What the last run wanted every artefact to be made with: `status`, `verify` and `pack` compare with it. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from trainer.data.artefacts import FILES
from trainer.errors import DataError
from trainer.prepare.recipe import Recipe, recipe_from_json
from trainer.prepare.records import write_json

FILE = "recipes.json"
_REMOVE = (
    "remove it and prepare again, with the options it was made with; nothing is made twice that is there and right"
)
SIDE = "side"
"""The option of the image's recipe that says the side of the square bucket in pixels."""


def note_recipes(data: Path, recipes: Mapping[str, Recipe]) -> None:
    """Remember these recipes; those of other artefacts stay what they were."""
    known = read_recipes(data) if (data / FILE).exists() else {}
    write_json(data / FILE, {name: recipe.as_json() for name, recipe in sorted({**known, **recipes}.items())})


def read_recipes(data: Path) -> dict[str, Recipe]:
    """Recipes by artefact. Raises DataError if the set was never prepared or the file is broken."""
    path = data / FILE
    try:
        found = {name: recipe_from_json(content) for name, content in json.loads(path.read_bytes()).items()}
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): is {data} a prepared set?") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no list of recipes: {error}; {_REMOVE}") from error
    if "image" not in found:
        raise DataError(f"{path} has no recipe of images; {_REMOVE}")
    unknown = sorted(found.keys() - FILES.keys())
    if unknown:
        raise DataError(f"{path} names the artefact {unknown[0]!r}; this version knows {', '.join(FILES)}")
    return found


def side_of(recipe: Recipe) -> int:
    """The side of the square bucket in pixels that a recipe of images stores. Raises DataError if it has none."""
    side = recipe.options.get(SIDE)
    if not isinstance(side, int):
        raise DataError(f"a recipe of images says {side!r} under {SIDE!r}; needed: a number of pixels; prepare again")
    return side
