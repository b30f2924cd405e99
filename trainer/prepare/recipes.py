"""What the last run wanted every artefact to be made with: `status`, `verify` and `pack` compare with it. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import DataError
from trainer.prepare.ingest import image_recipe
from trainer.prepare.options import Options
from trainer.prepare.passes import Pass
from trainer.prepare.recipe import Recipe, recipe_from_json
from trainer.prepare.records import write_json

FILE = "recipes.json"


def note_recipes(data: Path, options: Options, passes: Sequence[Pass]) -> None:
    """Remember the recipes of these passes; those of others stay what they were."""
    known = read_recipes(data) if (data / FILE).exists() else {}
    known |= {"image": image_recipe(options.side), **{work.artefact: work.recipe for work in passes}}
    write_json(data / FILE, {name: recipe.as_json() for name, recipe in sorted(known.items())})


def read_recipes(data: Path) -> dict[str, Recipe]:
    """Recipes by artefact. Raises DataError if the set was never prepared or the file is broken."""
    path = data / FILE
    try:
        return {name: recipe_from_json(content) for name, content in json.loads(path.read_bytes()).items()}
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): is {data} a prepared set?") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no list of recipes: {error}; prepare the set again") from error
