"""A copy of a run folder of another host, on this machine: its files as they grow, and nothing that is not asked for.

What the host says is hostile until it is checked: a name that could leave the folder, more than a run may hold, a file
that shrinks while it claims to grow. Whatever is refused is named, once, and leaves everything else alone.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Base64Bytes, Field, TypeAdapter, ValidationError

from provisioning.changes import HEAD_BYTES
from provisioning.run_paths import path_problem, shown

NOTES = ".mirror.json"
"""What we have of which file of the host; ours alone."""

MOST_RUN_BYTES = 4 * 2**30

Size = Annotated[int, Field(ge=0, lt=2**63)]


class Piece(NamedTuple):
    """New bytes of one file: they follow `offset` bytes that are there already; 0 begins the file anew."""

    inode: Size
    size: Size
    modified_ns: Size
    offset: Size
    data: Base64Bytes


@dataclass(frozen=True, slots=True)
class Changes:
    """An answer of a host: pieces by path, and names of what is neither file nor folder."""

    files: Mapping[str, Piece]
    odd: tuple[str, ...] = ()
    is_whole: bool = True


CHANGES = TypeAdapter(Changes)
Known = dict[str, tuple[Size, Size, Size, Size]]
_KNOWN = TypeAdapter(Known)


@dataclass(slots=True)
class Mirror:
    """The copy of one run folder. `refused` says what was not taken, and why; for one thread."""

    folder: Path
    most_bytes: int = MOST_RUN_BYTES
    refused: dict[str, str] = field(default_factory=dict)
    _known: Known | None = None

    def known(self) -> Known:
        """What is here of each file, as changes.Known has it; an earlier process may have left it."""
        if self._known is None:
            try:
                told = _KNOWN.validate_json((self.folder / NOTES).read_bytes())
            except (FileNotFoundError, ValidationError):
                told = {}
            # What stands on the disk holds: the notes may be older than the last piece.
            self._known = {name: self._entry(name, inode, at_ns) for name, (inode, _, at_ns, _) in told.items()}
        return self._known

    def _entry(self, name: str, inode: int, modified_ns: int) -> tuple[int, int, int, int]:
        head, size = _head_and_size(self.folder / name)
        return inode, size, modified_ns, zlib.crc32(head)

    def take(self, changes: Changes) -> tuple[str, ...]:
        """Write down what is new; returns the paths that changed."""
        known, taken = dict(self.known()), []
        held = sum(size for _, size, _, _ in known.values())
        for name in changes.odd:
            self._refuse(name, "it is neither a file nor a folder")
        for name, piece in changes.files.items():
            have = known[name][1] if name in known else 0
            problem = path_problem(name) or self._problem_of(piece, have, held)
            if problem:
                self._refuse(name, problem)
                continue
            try:
                _write(self.folder / name, piece)
            except (NotADirectoryError, IsADirectoryError, FileExistsError):
                self._refuse(name, "it is a file and a folder at once")
                continue
            known[name] = self._entry(name, piece.inode, piece.modified_ns)
            held += known[name][1] - have
            taken.append(name)
        if taken:
            self._known = known
            _replace(self.folder / NOTES, json.dumps(known).encode())
        return tuple(taken)

    def _problem_of(self, piece: Piece, have: int, held: int) -> str:
        if piece.offset not in (0, have) or piece.offset + len(piece.data) > piece.size:
            return f"its bytes from {piece.offset} on do not follow the {have} that are here"
        if held - have + piece.offset + len(piece.data) > self.most_bytes:
            return f"with it the run would hold more than {self.most_bytes:,} bytes"
        return ""

    def _refuse(self, name: str, why: str) -> None:
        self.refused.setdefault(shown(name), why)


def _head_and_size(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file of ours, and how many it has; nothing of what is no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return b"", 0
    try:
        return os.pread(descriptor, HEAD_BYTES, 0), os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _write(path: Path, piece: Piece) -> None:
    """Append where bytes are there already, else put a new file in the place of the old one, unless it is the same. The
    time of the last change is that of the host: a file that was only touched there is touched here."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if piece.offset == 0:
        if not _holds(path, piece.data):
            _replace(path, piece.data)
    elif piece.data:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "wb") as file:
            file.seek(piece.offset)
            file.write(piece.data)
    os.utime(path, ns=(piece.modified_ns, piece.modified_ns), follow_symlinks=False)


def _holds(path: Path, data: bytes) -> bool:
    """Whether exactly these bytes stand in a file here: what we wrote on both sides need not be put here again."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != len(data):
        return False
    return path.read_bytes() == data


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    os.replace(part, path)
