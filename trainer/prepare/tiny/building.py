"""A stand-in is built once on a machine, into the cache."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from trainer.cache import cache_folder
from trainer.errors import DataError
from trainer.prepare.pretrained import Kind, Source, read_folder, require_transformers

SEED = 0


def stand_in(name: str, version: int, kind: Kind, build: Callable[[Path], None]) -> Source:
    """The stand-in `name`, which `build` writes into an empty folder if this version of it is not there.

    torch's generator is seeded while it is built, and is what it was afterwards. Several processes may build at once:
    the first to be ready wins. Raises DataError if the cache cannot be written or its content is broken.
    """
    require_transformers()
    folder = cache_folder() / f"{name}-{version}"
    try:
        if not folder.is_dir():
            _build(folder, build)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or error}; XDG_CACHE_HOME moves it") from error
    try:
        return read_folder(folder, name, kind)
    except DataError as error:
        raise DataError(f"the stand-in in {folder} is broken, remove that folder: {error}") from error


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True) as own:
        content = Path(own) / folder.name
        content.mkdir()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(SEED)
            build(content)
        try:
            content.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first: its bytes are the same
                raise
