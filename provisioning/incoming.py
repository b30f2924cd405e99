"""One file on its way here: its bytes wait in a part file until each block has the hash that it has on the host.

The part file lies beside the place of the file, so that a rename finishes it; another process goes on with it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

BLOCK_BYTES = 16 * 2**20
"""What is hashed as one: a wrong byte costs no more than this."""

KEPT_FREE_BYTES = 2**28
"""So much of our disk no file of a host may take: without room for its database a controller ends."""

CANNOT_KEEP = "this machine cannot keep it: "
_READ = 2**20


@dataclass(slots=True)
class Incoming:
    """A file of `size` bytes whose blocks have these SHA-256 digests. `have` bytes of it are in the part file. Methods
    return what went wrong, '' when nothing did: then the file is lost, and others go on."""

    path: Path
    size: int
    modified_ns: int
    digests: Sequence[str]
    have: int = 0
    _wrong: int = 0

    def is_here_already(self) -> bool:
        """Whether exactly this file is in its place, and on the disk."""
        try:
            with _opened(self.path, os.O_RDONLY) as file:
                if os.fstat(file.fileno()).st_size != self.size or list(block_digests(file)) != list(self.digests):
                    return False
                os.fsync(file.fileno())
                return True
        except OSError:
            return False

    def begin(self) -> str:
        """Find out how much of it an earlier connection brought: whole blocks must be right, the last may be short."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _opened(self._part, os.O_RDWR | os.O_CREAT) as file:
                self.have = min(os.fstat(file.fileno()).st_size, self.size)
                for index in range(self.have // BLOCK_BYTES):
                    if _block(file, index) != self.digests[index]:
                        self.have = index * BLOCK_BYTES
                        break
                os.ftruncate(file.fileno(), self.have)
                if self.have < self.size:
                    return no_room(os.fstatvfs(file.fileno()), self.size - self.have)
                return self._check(file) if self.have else ""
        except OSError as error:
            return _here(error)

    def lacks(self) -> int:
        """Bytes that the block in hand still lacks."""
        return min(self.size, (self.have // BLOCK_BYTES + 1) * BLOCK_BYTES) - self.have

    def take(self, data: bytes) -> str:
        """Append bytes; a block that they complete is compared, and asked for once more when it is wrong."""
        try:
            with _opened(self._part, os.O_RDWR) as file:
                file.seek(self.have)
                file.write(data)
                file.flush()
                self.have += len(data)
                is_block = self.have == self.size or self.have % BLOCK_BYTES == 0
                return self._check(file) if is_block else ""
        except OSError as error:
            return _here(error)

    def _check(self, file: IO[bytes]) -> str:
        """Compare the last block; a wrong one is cut off."""
        index = (self.have - 1) // BLOCK_BYTES
        if _block(file, index) == self.digests[index]:
            return ""
        self.have = index * BLOCK_BYTES
        os.ftruncate(file.fileno(), self.have)
        self._wrong += 1
        return "" if self._wrong < 2 else "its bytes do not have the hash that the host told, twice"

    def finish(self) -> str:
        """Put the file in its place, durably, with the time that it has on the host."""
        try:
            with _opened(self._part, os.O_RDWR) as file:
                if list(block_digests(file)) != list(self.digests):
                    return "what has arrived here was changed here"
                os.utime(file.fileno(), ns=(self.modified_ns, self.modified_ns))
                os.fsync(file.fileno())
            os.replace(self._part, self.path)
        except (OSError, OverflowError) as error:
            return _here(error)
        return ""

    @property
    def _part(self) -> Path:
        return self.path.with_name(f".{self.path.name}.home.part")


def no_room(disk: os.statvfs_result, count: int) -> str:
    """Why so many bytes more of a host have no room on a disk of ours; '' when they have."""
    free = disk.f_bavail * disk.f_frsize
    if free - count >= KEPT_FREE_BYTES:
        return ""
    return f"{CANNOT_KEEP}{free // 2**20:,} MiB are free, and {KEPT_FREE_BYTES // 2**20:,} stay free"


def block_digests(file: IO[bytes]) -> Iterator[str]:
    """SHA-256 of each block of a file; an empty file has one."""
    for index in range(max(1, -(-os.fstat(file.fileno()).st_size // BLOCK_BYTES))):
        yield _block(file, index)


def sync_folders(root: Path, names: Collection[str]) -> None:
    """Wait until the entries of these files (paths below `root`) are on the disk."""
    for folder in sorted({parent for name in names for parent in (root / name).parents if parent.is_relative_to(root)}):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _block(file: IO[bytes], index: int) -> str:
    block, offset = hashlib.sha256(), index * BLOCK_BYTES
    end = offset + BLOCK_BYTES
    while offset < end and (data := os.pread(file.fileno(), min(_READ, end - offset), offset)):
        block.update(data)
        offset += len(data)
    return block.hexdigest()


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[IO[bytes]]:
    mode = "rb" if flags == os.O_RDONLY else "r+b"
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, mode) as file:
        yield file


def _here(error: OSError | OverflowError) -> str:
    return f"{CANNOT_KEEP}{getattr(error, 'strerror', None) or error}"
