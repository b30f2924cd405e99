"""The copy of a set on this machine: what is missing is fetched, several files at once, and nothing twice. No torch.

A shard gets its name only when it is whole and hashes to what the index says. `.verified.json` remembers size and time
of each, so that a file that was changed since is hashed again and fetched again if it is wrong. One process at a time
fetches; others that want the same set wait for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event

from trainer.byte_progress import byte_bar, in_words
from trainer.data.remote.download import download, kept_bytes, sha256_of
from trainer.data.remote.look_up import RemoteSet, remember
from trainer.data.set_index import Shard
from trainer.errors import DataError

FILES_AT_ONCE = 4
SPARE_BYTES = 256 * 2**20
"""Left free for whatever else is written to that disk."""
_VERIFIED = ".verified.json"
_LOCK = ".lock"

Stamp = list[int]
"""Size in bytes and time of the last change in ns."""


def local_copy(found: RemoteSet) -> Path:
    """The folder of a whole copy. Raises DataError that says what is kept."""
    try:
        remember(found)
        with _alone(found.folder):
            missing = [shard for shard in found.index.shards if not _is_right(found.folder, shard)]
            if missing:
                _require_space(found.folder, missing)
                _fetch(found, missing)
    except OSError as error:
        raise DataError(f"{error.filename or found.folder} cannot be used: {error.strerror or error}") from error
    return found.folder


def missing_bytes(found: RemoteSet) -> int:
    """How much is still to be fetched. Looks at names, sizes and times alone."""
    stamps = _stamps(found.folder)
    return sum(
        _left_bytes(found.folder, shard)
        for shard in found.index.shards
        if stamps.get(shard.path) is None or stamps[shard.path] != _stamp(found.folder / shard.path)
    )


def _left_bytes(folder: Path, shard: Shard) -> int:
    """How much of a shard that is not here has not come yet."""
    return shard.size_bytes - min(kept_bytes(folder / shard.path), shard.size_bytes)


def _is_right(folder: Path, shard: Shard) -> bool:
    """Whether a shard is here and right; one that is wrong is removed."""
    path = folder / shard.path
    now = _stamp(path)
    if now is None:
        return False
    if _stamps(folder).get(shard.path) == now and now[0] == shard.size_bytes:
        return True
    if now[0] == shard.size_bytes and sha256_of(path) == shard.sha256:
        _note(folder, shard)
        return True
    print(f"{path} is not what the index says: removed, and fetched again", file=sys.stderr, flush=True)
    path.unlink()
    return False


def _fetch(found: RemoteSet, missing: Sequence[Shard]) -> None:
    """All at once, few at a time; the first that fails stops the others, which keep what they have."""
    from trainer.data.remote.http import get

    total = sum(shard.size_bytes for shard in missing)
    here = sum(kept_bytes(found.folder / shard.path) for shard in missing)
    given_up = Event()
    said = f"fetching {len(missing)} shards ({in_words(total - here)}) of {found.address.text} to {found.folder}"
    print(said, file=sys.stderr, flush=True)
    with byte_bar("shards", total, here) as advance, ThreadPoolExecutor(FILES_AT_ONCE, "fetch") as threads:
        fetched = {}
        for shard in missing:
            source = partial(get, found.address, shard.path, found.revision)
            target = found.folder / shard.path
            fetched[threads.submit(download, source, shard, target, advance, given_up)] = shard
        try:
            for future in as_completed(fetched):
                future.result()
                _note(found.folder, fetched[future])
        finally:  # a person who interrupts, too, waits for the threads
            given_up.set()
            threads.shutdown(cancel_futures=True)


def _require_space(folder: Path, missing: Sequence[Shard]) -> None:
    needed = SPARE_BYTES + sum(_left_bytes(folder, shard) for shard in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{in_words(needed)} are needed in {folder} and {in_words(free)} are free: free some space, or let "
            "XDG_CACHE_HOME name a folder on a larger disk; nothing was fetched"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the copy; the lock ends with the process."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process fetches {folder}: waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _stamps(folder: Path) -> dict[str, Stamp]:
    """Size and time of every shard when it was found right; a file that cannot be read says nothing."""
    try:
        stamps = json.loads((folder / _VERIFIED).read_bytes())
    except (OSError, ValueError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _note(folder: Path, shard: Shard) -> None:
    stamps = {**_stamps(folder), shard.path: _stamp(folder / shard.path)}
    unfinished = folder / f"{_VERIFIED}.part"
    unfinished.write_text(json.dumps(stamps, indent=1))
    unfinished.replace(folder / _VERIFIED)
