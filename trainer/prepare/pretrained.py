"""Where the files of a transformers model are, and what identifies them. No torch, and no weights are loaded.

A model is a folder, or an id on the hub: then it is looked for in the hub's own cache and fetched only if it is not
there, so that a set goes on with the revision that it began with.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainer.errors import DataError, UsageError

CONFIG = "config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
_WEIGHTS_PATTERN = "model*.safetensors"
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Kind:
    """What a pass needs of a model: its `model_type` in config.json, and the option that names its folder or id.

    `files` it must have beside config.json and weights in safetensors; `extra_files` are taken where they are.
    """

    option: str
    model_type: str
    files: tuple[str, ...]
    extra_files: tuple[str, ...] = ()

    @property
    def patterns(self) -> list[str]:
        """What is fetched, in the hub's notation."""
        return [CONFIG, *self.files, *self.extra_files, _WEIGHTS_PATTERN, WEIGHTS_INDEX]


@dataclass(frozen=True, slots=True)
class Source:
    """Files of a model that are on this machine and complete.

    `name` is the id on the hub or the folder's own name, `revision` the commit of the hub or SHA-256 over names and
    contents of the files. `config` is what config.json says.
    """

    name: str
    revision: str
    folder: Path
    config: Mapping[str, Any]


def locate(named: str, kind: Kind) -> Source:
    """The files of a folder or of an id on the hub, which may have to be fetched.

    Raises UsageError if transformers is not installed; DataError if there is no such model, if it cannot be reached,
    if files are missing, or if it is a model of another kind.
    """
    require_transformers()
    folder = Path(named).expanduser()
    if folder.is_dir():
        return read_folder(folder, folder.resolve().name, kind)
    if not folder.is_absolute() and named.count("/") < 2 and not named.startswith((".", "~")):
        folder = _snapshot(named, kind)
        return Source(named, folder.name, folder, _config(folder, kind))
    raise DataError(f"{kind.option} {named}: there is no such folder, and it is no id on the hub. {_manual(kind)}")


def require_transformers() -> None:
    """Raise UsageError if the package is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise UsageError("text and image encoders need transformers: pip install 'armature[prepare]'")


def read_folder(folder: Path, name: str, kind: Kind) -> Source:
    """The model in a folder. Raises DataError as `locate` does."""
    config = _config(folder, kind)
    return Source(name, content_hash(folder, kind), folder, config)


def content_hash(folder: Path, kind: Kind) -> str:
    """SHA-256 over names and contents of a model's files, in hex. Raises DataError if one cannot be read."""
    others = (folder / name for name in (CONFIG, WEIGHTS_INDEX, *kind.files, *kind.extra_files))
    digest = hashlib.sha256()
    try:
        for path in sorted({path for path in others if path.is_file()} | set(folder.glob(_WEIGHTS_PATTERN))):
            stat = path.stat()
            digest.update(f"{path.name} {_file_hash(path, stat.st_size, stat.st_mtime_ns)}\n".encode())
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _file_hash(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 in hex; a file is read once in a process unless its size or time changes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _config(folder: Path, kind: Kind) -> Mapping[str, Any]:
    """What config.json says, of a folder of this kind that has everything else too."""
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {"model_type": kind.model_type}
    if config.get("model_type") != kind.model_type:
        raise DataError(
            f"{kind.option}: {folder} is a model of the type {config.get('model_type')!r}; needed: {kind.model_type!r}"
        )
    missing = missing_files(folder, kind)
    if missing:
        raise DataError(
            f"{kind.option}: {folder} holds no {' and no '.join(missing)}; needed: {_listed(kind)}. {_manual(kind)}"
        )
    return config


def missing_files(folder: Path, kind: Kind) -> list[str]:
    """Names of the files that a model needs and a folder lacks."""
    missing = [name for name in (CONFIG, *kind.files) if not (folder / name).is_file()]
    return missing + [name for name in _weight_files(folder) if not (folder / name).is_file()]


def _weight_files(folder: Path) -> Iterable[str]:
    if not (folder / WEIGHTS_INDEX).is_file():
        return (WEIGHTS,)
    parts = read_json(folder / WEIGHTS_INDEX).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise DataError(f"{folder / WEIGHTS_INDEX} names no files of weights")
    return sorted({str(part) for part in parts.values()})


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises DataError if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object")
    return content


def _snapshot(id: str, kind: Kind) -> Path:
    """The folder of a model in the hub's cache, complete. HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN count as ever."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(id, allow_patterns=kind.patterns, local_files_only=True))
        if not missing_files(folder, kind):
            return folder
    except errors.LocalEntryNotFoundError:
        pass
    except errors.HFValidationError as error:
        raise DataError(f"{kind.option} {id}: no folder, and no id on the hub: {error}. {_manual(kind)}") from error
    try:
        return Path(snapshot_download(id, allow_patterns=kind.patterns))
    except errors.GatedRepoError as error:
        raise _not_fetched(
            id, kind, f"its licence must be accepted at https://huggingface.co/{id}, then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise _not_fetched(
            id, kind, "the hub has no such model, or shows it only to those who are logged in"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _not_fetched(id, kind, "the hub cannot be reached (or HF_HUB_OFFLINE is set)") from error
    except (errors.HTTPError, OSError) as error:  # HTTPError is that of the HTTP client which the hub's package uses
        raise _not_fetched(id, kind, f"fetching it failed: {error}") from error


def _not_fetched(id: str, kind: Kind, reason: str) -> DataError:
    from huggingface_hub.constants import HF_HUB_CACHE

    return DataError(f"{kind.option} {id} is not whole in {HF_HUB_CACHE}, and {reason}. {_manual(kind, id)}")


def _manual(kind: Kind, id: str = "ID") -> str:
    return (
        f'Where there is a network: hf download {id} --include "*.json" --include "{_WEIGHTS_PATTERN}" --local-dir '
        f"FOLDER; then give the folder: {kind.option} FOLDER"
    )


def _listed(kind: Kind) -> str:
    return ", ".join((CONFIG, *kind.files, f"{WEIGHTS} (or its parts and their index)"))
