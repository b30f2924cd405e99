"""A copy of a run folder of another host, on this machine: its files as they grow, and nothing that is not asked for.

What the host says is hostile until it is checked: a name that could leave the folder, more than a run may hold, a file
that shrinks while it claims to grow. Whatever is refused is named, once, and leaves everything else alone.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Base64Bytes, Field, TypeAdapter, ValidationError

from provisioning.changes import ATTEMPT, HEAD_BYTES, MOST_FILES
from provisioning.incoming import CANNOT_KEEP, no_room
from provisioning.run_checkpoints import checkpoint_step
from provisioning.run_paths import LONGEST_NAME, is_ours, path_problem, shown

NOTES = ".mirror.json"
"""What we have of which file of the host; ours alone."""

MOST_RUN_BYTES = 4 * 2**30

MORE_ATTEMPT_FILES = 1_000
"""A run that holds all the files it may can still say how a later attempt goes, and how it ends."""

OF_TWO_KINDS = frozenset({errno.ENOTDIR, errno.EISDIR, errno.EEXIST})
OF_ONE_FILE = OF_TWO_KINDS | {
    errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ, errno.EFBIG, errno.EOVERFLOW,
}  # fmt: skip
"""Errors of our disk that say something of one file alone; any other, such as a full disk, concerns them all."""

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
    """The copy of one run folder; for one thread. `refused` says what was not taken, and why; `unwanted` are endings of
    paths that the host need not send again. `short` says what our own disk had no room for at the last look, '' for
    nothing: that comes again."""

    folder: Path
    most_bytes: int = MOST_RUN_BYTES
    refused: dict[str, str] = field(default_factory=dict)
    unwanted: set[str] = field(default_factory=set)
    short: str = ""
    _known: Known | None = None
    _passed_over: Known = field(default_factory=dict)

    def known(self) -> Known:
        """What is not lacking of each file, as changes.Known has it: what is here, and what is not to come."""
        return {**self._here(), **self._passed_over}

    def _here(self) -> Known:
        """What is here of each file; an earlier process may have left it."""
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
        """Write down what is new; returns the paths that changed. Raises OSError when our disk takes nothing more."""
        known, taken = dict(self._here()), []
        held = sum(size for _, size, _, _ in known.values())
        self.short = ""
        for name in changes.odd:
            self._refuse(name, "it is neither a file nor a folder")
        for name, piece in changes.files.items():
            have = known[name][1] if name in known else 0
            if problem := path_problem(name):
                self._reject(name, problem)
            elif is_ours(name) or self._is_of_a_whole_checkpoint(name):
                self._pass_over(name, piece)  # an honest host has what we gave it
            elif name not in known and len(known) >= _most_files(name):
                self._pass_over(name, piece)
                self._refuse("(more files)", f"the run has more than {MOST_FILES:,} files")
            elif self._is_written(name, piece, have, held):
                known[name] = self._entry(name, piece.inode, piece.modified_ns)
                held += known[name][1] - have
                taken.append(name)
        if taken:
            self._known = known
            _replace(self.folder / NOTES, json.dumps(known).encode())
        return tuple(taken)

    def _is_written(self, name: str, piece: Piece, have: int, held: int) -> bool:
        """Write a piece, or say why not."""
        if problem := self._problem_of(piece, have, held):
            self._reject(name, problem)
            return False
        if piece.data and (problem := no_room(_disk_of(self.folder), len(piece.data))):
            self.short = self.short or f"{shown(name)}: {problem}"
            self._refuse(name, problem)
            return False
        try:
            _write(self.folder / name, piece)
        except OSError as error:
            if error.errno not in OF_ONE_FILE:
                raise
            is_both = error.errno in OF_TWO_KINDS
            self._reject(name, "it is a file and a folder at once" if is_both else f"{CANNOT_KEEP}{error.strerror}")
            return False
        self.refused.pop(shown(name), None)
        return True

    def _problem_of(self, piece: Piece, have: int, held: int) -> str:
        if piece.offset not in (0, have) or piece.offset + len(piece.data) > piece.size:
            return f"its bytes from {piece.offset} on do not follow the {have} that are here"
        if held - have + piece.offset + len(piece.data) > self.most_bytes:
            return f"with it the run would hold more than {self.most_bytes:,} bytes"
        return ""

    def _is_of_a_whole_checkpoint(self, name: str) -> bool:
        """Whether a file belongs to a checkpoint whose weights are here. The weights of another one by that name come
        when the run has ended, and all of it with them: until then this one stays what it is."""
        if checkpoint_step(name) is None:
            return False
        return any((self.folder / "/".join(name.split("/")[:2])).glob("*.safetensors"))

    def _pass_over(self, name: str, piece: Piece) -> None:
        """Count it as known, so that it does not come again before it changes."""
        self._passed_over[name] = piece.inode, piece.size, piece.modified_ns, zlib.crc32(piece.data[:HEAD_BYTES])
        if len(self._passed_over) > MOST_FILES:
            del self._passed_over[next(iter(self._passed_over))]  # the oldest: it may be gone there

    def _reject(self, name: str, why: str) -> None:
        """Refuse it for good."""
        self._refuse(name, why)
        if len(self.unwanted) < MOST_FILES:
            self.unwanted.add(name[-LONGEST_NAME:])

    def _refuse(self, name: str, why: str) -> None:
        if len(self.refused) < MOST_FILES:  # a host could go on for ever
            self.refused.setdefault(shown(name), why)


def _most_files(name: str) -> int:
    return MOST_FILES + (MORE_ATTEMPT_FILES if name.startswith(ATTEMPT) else 0)


def _disk_of(folder: Path) -> os.statvfs_result:
    """The disk of a folder that may still have to be made."""
    return os.statvfs(next(path for path in (folder, *folder.parents) if path.is_dir()))


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
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
