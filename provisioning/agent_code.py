"""How a host gets the code that it is to run: an archive of ours in pieces, unpacked beside its place, then renamed.

Runs on a host, as a part of its agent, which keeps nothing in memory: the part of an archive that has arrived lies in
`.<archive>.part`, what is being unpacked in `.new-<archive>`, and `.<name>.json` beside a folder says that it is whole
and what each of its files must hold. A folder without that was never run from, and may be replaced.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any

STEP_FILES = 200
STEP_BYTES = 16 * 2**20
"""One question unpacks at most so many files, and goes no further once it has written so much."""

TORN = "torn"
"""The problem of an archive, or of what was unpacked, that is not what was sent: it is removed; send it again."""

BUSY = "busy"
"""The problem while an agent whose connection was lost still writes or unpacks: ask again."""

_READ = 2**20


def code_state(folder: str, name: str, archive: str) -> dict[str, Any]:
    """What of the code `name` is in `folder`: `is_there` when it is whole; `changed` names files that are not as they
    were unpacked; `received` counts the bytes of the archive (known by its SHA-256) that have arrived."""
    try:
        with open(_mark(folder, name), encoding="utf-8") as file:
            files: Mapping[str, str] | None = json.load(file)
    except (OSError, ValueError):
        files = None
    root = os.path.join(folder, name)
    if files is not None and os.path.isdir(root):
        changed = [path for path, digest in files.items() if _digest_of(os.path.join(root, path)) != digest]
        return {"is_there": not changed, "changed": changed[:20], "received": 0}
    try:
        return {"is_there": False, "changed": [], "received": os.stat(_part(folder, archive)).st_size}
    except OSError:
        return {"is_there": False, "changed": [], "received": 0}


def code_piece(folder: str, archive: str, offset: int, data: str) -> dict[str, Any]:
    """Put bytes (base64) of an archive where they belong, unless some before them are missing. Returns how many have
    arrived, and the `problem` if they could not be written. The same piece twice does no harm."""
    piece = memoryview(base64.b64decode(data))
    received = 0
    try:
        _make_folders(folder)
        with _held(_part(folder, archive)) as file:
            received = os.fstat(file.fileno()).st_size
            while piece and offset <= received:
                written = os.pwrite(file.fileno(), piece, offset)
                piece, offset = piece[written:], offset + written
                received = max(received, offset)
    except OSError as error:
        return {"received": received, "problem": _said(error)}
    return {"received": received, "problem": ""}


def code_unpack(folder: str, name: str, archive: str, begin: int) -> dict[str, Any]:
    """Unpack the next entries of an archive that has arrived, from entry `begin` on. `following` is the entry to go on
    with; None when the folder stands in its place, whole and on the disk."""
    new = os.path.join(folder, f".new-{archive}")
    try:
        with _held(_part(folder, archive)) as file:
            if _digest(file) != archive:
                os.unlink(file.name)
                return {"following": 0, "problem": TORN}
            with zipfile.ZipFile(file) as packed:
                if begin == 0:
                    shutil.rmtree(new, ignore_errors=True)
                    os.mkdir(new, 0o700)
                following = _unpack(packed, begin, new)
                if following is not None:
                    return {"following": following, "problem": ""}
                files = _verified(packed, new)
            if files is None:
                shutil.rmtree(new, ignore_errors=True)
                return {"following": 0, "problem": TORN}
            _put_in_place(folder, name, new, files)
            os.unlink(file.name)
    except OSError as error:
        if not isinstance(error, BlockingIOError):
            shutil.rmtree(new, ignore_errors=True)  # the archive stays; half a folder is of no use on a full disk
        return {"following": 0, "problem": _said(error)}
    return {"following": None, "problem": ""}


def file_in_place(folder: str, archive: str, name: str) -> str:
    """Give bytes that have arrived (known by their SHA-256) the path `name` below `folder`. Returns the problem, TORN
    for bytes that are not what was sent: they are removed."""
    target = os.path.normpath(os.path.join(folder, name))
    if not target.startswith(folder + os.sep):
        return f"{name} leads out of its folder"
    try:
        with _held(_part(folder, archive)) as file:
            if _digest(file) != archive:
                os.unlink(file.name)
                return TORN
            os.fsync(file.fileno())
            _make_folders(os.path.dirname(target))
            os.replace(file.name, target)
    except OSError as error:
        return _said(error)
    return ""


def folder_in_place(folder: str, target: str) -> str:
    """Give a folder whose files are all in place its name; one of that name is left as it is. Returns the problem."""
    try:
        if not os.path.isdir(target):
            os.rename(folder, target)
        else:
            shutil.rmtree(folder)
        _sync_folder(os.path.dirname(target))
    except OSError as error:
        return _said(error)
    return ""


def _unpack(packed: zipfile.ZipFile, begin: int, new: str) -> int | None:
    entries, written = packed.infolist(), 0
    for index in range(begin, len(entries)):
        if index - begin >= STEP_FILES or written >= STEP_BYTES:
            return index
        entry = entries[index]
        path = os.path.join(new, entry.filename)
        if entry.is_dir():
            os.makedirs(path, mode=0o700, exist_ok=True)
            continue
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        mode = entry.external_attr >> 16 & 0o700
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode), "wb") as file:
            file.write(packed.read(entry))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(path, mode)  # whatever the umask took away
        written += entry.file_size
    return None


def _verified(packed: zipfile.ZipFile, new: str) -> dict[str, str] | None:
    """SHA-256 of every file; None when what was unpacked is not what the archive holds."""
    found = {}
    for entry in packed.infolist():
        if not entry.is_dir():
            found[entry.filename] = hashlib.sha256(packed.read(entry)).hexdigest()
            if _digest_of(os.path.join(new, entry.filename)) != found[entry.filename]:
                return None
    return found


def _put_in_place(folder: str, name: str, new: str, files: Mapping[str, str]) -> None:
    root, mark = os.path.join(folder, name), _mark(folder, name)
    with suppress(FileNotFoundError):
        os.unlink(mark)
    with suppress(FileNotFoundError):
        shutil.rmtree(root)
    os.rename(new, root)
    _sync_folder(folder)
    part = f"{mark}.part"
    with open(part, "w", encoding="utf-8") as file:
        json.dump(files, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, mark)
    _sync_folder(folder)


@contextmanager
def _held(path: str) -> Iterator[IO[bytes]]:
    """An archive that nobody else writes or unpacks meanwhile: an agent whose connection was lost may still be at it.
    Raises BlockingIOError then."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(path, "r+b", opener=lambda name, _: os.open(name, flags, 0o600)) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file


def _digest(file: IO[bytes]) -> str:
    whole = hashlib.sha256()
    file.seek(0)
    while data := file.read(_READ):
        whole.update(data)
    return whole.hexdigest()


def _digest_of(path: str) -> str:
    """SHA-256 of a file; '' when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return _digest(file)
    except OSError:
        return ""


def _part(folder: str, archive: str) -> str:
    return os.path.join(folder, f".{archive}.part")


def _mark(folder: str, name: str) -> str:
    return os.path.join(folder, f".{name}.json")


def _make_folders(folder: str) -> None:
    """Like makedirs, but every new folder is private."""
    if not os.path.isdir(folder):
        _make_folders(os.path.dirname(folder))
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _said(error: OSError) -> str:
    if isinstance(error, BlockingIOError):
        return BUSY
    return f"{error.filename or 'the archive'}: {error.strerror or error}"
