"""Brings frozen code to a host: one archive, sent once in pieces, unpacked there beside its place and renamed.

What is frozen never changes, so its hash names the folder on every host. A connection may be lost anywhere: the same
work, begun again, asks what has arrived and goes on from there.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import stat
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import NonNegativeInt, TypeAdapter

from provisioning.agent_code import BUSY, TORN
from provisioning.base import HostLost, StagingFailed
from provisioning.questions import PIECE_BYTES, Question, Steps

MOST_CODE_BYTES = 64 * 2**20
MOST_CODE_FILES = 5_000

CACHES = ("__pycache__",)
"""What running code leaves beside it; another host makes its own."""

_NAME = re.compile(r"[0-9A-Za-z]{8,64}")
_SAME_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class CodeArchive:
    """Frozen code as one file. `name` is its folder's, the hash of the code; `hash` is the SHA-256 of `data`."""

    name: str
    data: bytes
    hash: str
    files: int


@dataclass(frozen=True, slots=True)
class Staged:
    """Code that is whole on a host, in this folder there; `sent_bytes` is what had to travel this time."""

    folder: str
    sent_bytes: int


@dataclass(frozen=True, slots=True)
class State:
    """What a host has of some code."""

    is_there: bool
    changed: tuple[str, ...]
    received: NonNegativeInt


@dataclass(frozen=True, slots=True)
class Received:
    """What a host has of an archive after a piece."""

    received: NonNegativeInt
    problem: str


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The entry to go on with, None after the last."""

    following: NonNegativeInt | None
    problem: str


_STATE = TypeAdapter(State)
_RECEIVED = TypeAdapter(Received)
_UNPACKED = TypeAdapter(Unpacked)


def code_archive(folder: Path, names: Collection[str] | None = None) -> CodeArchive:
    """The frozen code of a folder, whose name is its hash; the same files give the same bytes. `names` are the files
    that were frozen (paths with /): what a run has left beside them then stays here. Without it everything goes but
    CACHES. Raises StagingFailed for a link or device, a file that is missing, and for more than MOST_CODE_BYTES or
    MOST_CODE_FILES."""
    if not _NAME.fullmatch(folder.name):
        raise StagingFailed(f"{folder}: {folder.name!r} is no hash of code; 8 to 64 letters and digits are")
    found = [(path.relative_to(folder).as_posix(), path, status) for path, status in _below(folder)]
    files = {name for name, _, status in found if stat.S_ISREG(status.st_mode)}
    if names is not None:
        if missing := sorted(set(names) - files):
            raise StagingFailed(f"{folder}: {missing[0]} is frozen code and not there")
        parents = {parent.as_posix() for name in names for parent in Path(name).parents}
        found = [one for one in found if one[0] in parents or one[0] in set(names)]
        files = set(names)
    total = sum(status.st_size for name, _, status in found if name in files)
    if total > MOST_CODE_BYTES or len(files) > MOST_CODE_FILES:
        allowed = f"at most {MOST_CODE_BYTES // 2**20} MiB in {MOST_CODE_FILES} files"
        raise StagingFailed(f"{folder} holds {total / 2**20:.0f} MiB in {len(files)} files; {allowed} can be sent")
    data = _packed(found, files)
    return CodeArchive(folder.name, data, hashlib.sha256(data).hexdigest(), len(files))


def _below(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise StagingFailed(f"{folder} cannot be read: {error.strerror}") from error
    for path in entries:
        status = path.lstat()
        if path.name in CACHES:
            continue
        if stat.S_ISDIR(status.st_mode):
            yield path, status
            yield from _below(path)
        elif stat.S_ISREG(status.st_mode):
            yield path, status
        else:
            raise StagingFailed(f"{path} is neither a file nor a folder; frozen code holds nothing else")


def _packed(found: list[tuple[str, Path, os.stat_result]], files: Collection[str]) -> bytes:
    """A zip of these entries, the times left out and of the modes only what the owner may."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path, status in found:
            is_file = name in files
            entry = zipfile.ZipInfo(name if is_file else f"{name}/", _SAME_TIME)
            entry.external_attr = (status.st_mode & (stat.S_IFMT(status.st_mode) | 0o700)) << 16
            archive.writestr(entry, path.read_bytes() if is_file else b"", zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def staging_steps(archive: CodeArchive, folder: str) -> Steps[Staged]:
    """What to ask a host so that the code stands in `folder` there, an absolute path. Raises StagingFailed."""
    root = f"{folder}/{archive.name}"
    sent = 0
    for _ in range(2):  # what has arrived may prove torn, after a power cut say; then once more from the start
        state = yield Question(_STATE, "code_state", (folder, archive.name, archive.hash))
        if state.is_there:
            return Staged(root, sent)
        if state.changed:
            which = ", ".join(map(repr, state.changed))
            raise StagingFailed(
                f"{root}: the frozen code was changed there after it was stored ({which}); "
                "remove that folder once nothing runs from it"
            )
        sent += yield from _sending(archive, folder, state.received)
        if (yield from _unpacking(archive, folder)):
            return Staged(root, sent)
    raise StagingFailed(f"{root}: what the host holds is not what was sent, twice; is its disk in order?")


def _sending(archive: CodeArchive, folder: str, received: int) -> Steps[int]:
    """Send what has not arrived; returns how much that was."""
    sent, size = 0, len(archive.data)
    while received < size:
        piece = archive.data[received : received + PIECE_BYTES]
        encoded = base64.b64encode(piece).decode()
        told = yield Question(_RECEIVED, "code_piece", (folder, archive.hash, received, encoded))
        _refuse_while_busy(told.problem)
        if told.problem:
            kept = f"{told.received:,} of {size:,} bytes of the code are there and are kept"
            raise StagingFailed(f"the host cannot keep the code: {told.problem}; {kept}")
        if told.received < received + len(piece):
            raise HostLost(f"the host has {told.received} bytes where {received + len(piece)} were sent")
        received, sent = max(received + len(piece), min(told.received, size)), sent + len(piece)
    return sent


def _unpacking(archive: CodeArchive, folder: str) -> Steps[bool]:
    """Unpack all; false when what had arrived was torn."""
    begin = 0
    while True:
        told = yield Question(_UNPACKED, "code_unpack", (folder, archive.name, archive.hash, begin))
        if told.problem == TORN:
            return False
        _refuse_while_busy(told.problem)
        if told.problem:
            raise StagingFailed(f"the host cannot unpack the code: {told.problem}; the archive is kept there")
        if told.following is None:
            return True
        if told.following <= begin:
            raise HostLost("the host does not get on with unpacking")
        begin = told.following


def _refuse_while_busy(problem: str) -> None:
    if problem == BUSY:
        raise HostLost("an earlier connection is still at the code; ask again")
