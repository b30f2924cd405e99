"""Artefacts on disk: files of one image and the record of what they were made with and from. No torch.

Files are replaced atomically and the record is written last, so whatever has a record is whole. A record holds hashes
of its files and of the files it was made from: it knows when it is stale, and `verify` knows when a byte has changed.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.errors import DataError
from trainer.prepare.passes import Failed, JsonValue, Made
from trainer.prepare.recipe import Recipe, recipe_from_json

FORMAT = 1
UNFINISHED = ".part"
State = Literal["done", "missing", "stale", "failed"]


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one artefact of one image.

    `files` maps names to SHA-256 in hex, `inputs` names of files of other artefacts to theirs. `reason` says why it
    failed, '' if it did not; a failed artefact has no files. `beside` maps what was read beside the photograph to its
    SHA-256, as `LooksBeside` gives it.
    """

    recipe: Recipe
    inputs: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, JsonValue] = field(default_factory=dict)
    reason: str = ""
    beside: Mapping[str, str] = field(default_factory=dict)


class BrokenRecord(DataError):
    """A record that is no JSON of this format."""


class Samples:
    """The folders of all images below DATA/samples."""

    def __init__(self, data: Path) -> None:
        self.root = data / "samples"

    def folder(self, id: str) -> Path:
        """Where the artefacts of an image are."""
        return self.root / id[:2] / id

    def record(self, id: str, artefact: str) -> Record | None:
        """The record of an artefact; None if there is none. Raises BrokenRecord if it cannot be understood."""
        path = self._record_path(id, artefact)
        try:
            content = json.loads(path.read_bytes())
            if content["format"] != FORMAT:
                raise BrokenRecord(f"{path} has the format {content['format']!r}; this version writes {FORMAT}")
            return Record(
                recipe=recipe_from_json(content["recipe"]),
                inputs=dict(content["inputs"]),
                files=dict(content["files"]),
                facts=dict(content["facts"]),
                reason=str(content["reason"]),
                beside=dict(content["beside"]),
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BrokenRecord(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise BrokenRecord(f"{path} is no record of an artefact: {error}") from error

    def state(
        self,
        id: str,
        artefact: str,
        recipe: Recipe,
        inputs: Mapping[str, str],
        beside: Mapping[str, str] | None = None,
    ) -> State:
        """Whether an artefact is what `recipe` makes of `inputs`. A record of another format is stale.

        `beside` None does not ask after the files beside the photograph, which need not be at hand.
        """
        try:
            record = self.record(id, artefact)
        except BrokenRecord:
            return "stale"
        if record is None:
            return "missing"
        if record.recipe.as_json() != recipe.as_json() or dict(record.inputs) != dict(inputs):
            return "stale"
        if beside is not None and dict(record.beside) != dict(beside):
            return "stale"
        return "failed" if record.reason else "done"

    def digests(self, id: str, artefacts: tuple[str, ...]) -> dict[str, str] | None:
        """SHA-256 of all files of these artefacts by name; None if one of them is not there."""
        found: dict[str, str] = {}
        for artefact in artefacts:
            try:
                record = self.record(id, artefact)
            except BrokenRecord:
                return None
            if record is None or record.reason:
                return None
            found |= record.files
        return found

    def keep(
        self,
        id: str,
        artefact: str,
        recipe: Recipe,
        inputs: Mapping[str, str],
        made: Made | Failed,
        beside: Mapping[str, str] | None = None,
    ) -> Record:
        """Write what was made, record last; of a failure the record alone. Raises DataError if the disk is full."""
        folder = self.folder(id)
        path = self._record_path(id, artefact)
        if isinstance(made, Failed):
            record = Record(recipe, dict(inputs), reason=made.reason, beside=dict(beside or {}))
        else:
            contents = {name: encoded(content) for name, content in made.files.items()}
            hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
            record = Record(recipe, dict(inputs), hashes, dict(made.facts), beside=dict(beside or {}))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # whoever is killed from here on leaves files that nobody believes
            if not isinstance(made, Failed):
                for name, content in contents.items():
                    replace_file(folder / name, content)
            replace_file(path, as_json(record))
        except OSError as error:
            raise cannot_write(folder, error) from error
        return record

    def read(self, id: str, name: str) -> bytes:
        """The content of one file of an image. Raises DataError if it cannot be read."""
        try:
            return (self.folder(id) / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.folder(id) / name} cannot be read: {error.strerror or error}") from error

    def drop(self, id: str, artefact: str) -> None:
        """Forget an artefact, so that the next run makes it again."""
        self._record_path(id, artefact).unlink(missing_ok=True)

    def _record_path(self, id: str, artefact: str) -> Path:
        return self.folder(id) / f"{artefact}.record.json"


def encoded(content: np.ndarray | str) -> bytes:
    """The bytes of a file: UTF-8 text, or the .npy format."""
    if isinstance(content, str):
        return content.encode()
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(content), allow_pickle=False)
    return file.getvalue()


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file atomically: it is the old one or the new one, never a part. Raises OSError."""
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically. Raises DataError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def as_json(record: Record) -> bytes:
    """The file of a record. It holds no time and no path, so the same work makes the same bytes."""
    content = {
        "format": FORMAT,
        "recipe": record.recipe.as_json(),
        "inputs": dict(sorted(record.inputs.items())),
        "files": dict(sorted(record.files.items())),
        "facts": dict(sorted(record.facts.items())),
        "reason": record.reason,
        "beside": dict(sorted(record.beside.items())),
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def cannot_write(path: Path, error: OSError) -> DataError:
    """What to say of a file that could not be written, with what to do if the disk is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(
            f"the disk is full: {path} could not be written. Everything made so far is kept and whole; free some space "
            "and give the same command again"
        )
    return DataError(f"{path} cannot be written: {error.strerror or error}")
