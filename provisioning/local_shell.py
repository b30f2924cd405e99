"""The verbs of a Shell on this machine: plain files, and one spawner process that forks the supervisors."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from provisioning.base import HostLost, ProcessIdentity, Spawned, SpawnRefused
from provisioning.memory import usable_memory_mib
from provisioning.processes import can_see, end_descriptor, is_alive
from provisioning.spawner import ANSWER_S, Spawner

_IDENTITY = ("boot_id", "init_start_ticks", "pid", "start_ticks")


class LocalShell:
    """Verbs on this machine, for one thread. `answer_s` bounds the wait for the answer to one launch spec, `mask` names
    the GPUs that are visible to us (None = all)."""

    is_here = True

    def __init__(
        self,
        supervisor_path: str,
        python: str = sys.executable,
        answer_s: float = ANSWER_S,
        mask: str | None = None,
    ) -> None:
        self.python = python
        self.mask = mask
        self._spawner = Spawner([python, "-I", "-S", supervisor_path, "spawn"], answer_s)
        self._memory_mib: float | None = None

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> bytes | None:
        """Bytes of a file from `offset`, at most `limit`; None when there is no such file."""
        with _host_errors("read", path):
            try:
                with open(path, "rb") as file:
                    file.seek(offset)
                    return file.read(-1 if limit is None else limit)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def stamp(self, path: str) -> tuple[int, int, int] | None:
        """(inode, size in bytes, modification time in ns) of a file, or None when there is no such file."""
        with _host_errors("look at", path):
            try:
                found = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            return found.st_ino, found.st_size, found.st_mtime_ns

    def write(self, path: str, data: bytes, *, is_durable: bool = True) -> None:
        """Replace a file atomically, creating its folders with mode 0700; `is_durable` waits for the disk."""
        with _host_errors("write", path):
            folder, name = os.path.split(path)
            part = os.path.join(folder, f".{name}.{os.getpid()}")
            try:
                descriptor = _create(part)
            except FileNotFoundError:
                _make_folders(Path(folder))
                descriptor = _create(part)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    if is_durable:
                        file.flush()
                        os.fsync(file.fileno())
                os.replace(part, path)
            except OSError:
                with suppress(OSError):
                    os.unlink(part)
                raise
            if is_durable:
                _sync_folder(Path(folder))

    def path_there(self, path: str) -> str:
        """The path itself: there is here."""
        return path

    def names_there(self, folder: str) -> tuple[str, ...]:
        """Sorted names in a folder; empty when there is no such folder."""
        return self.names(folder)

    def names(self, folder: str) -> tuple[str, ...]:
        """Sorted names in a folder; empty when there is no such folder."""
        with _host_errors("list", folder):
            try:
                return tuple(sorted(os.listdir(folder)))
            except (FileNotFoundError, NotADirectoryError):
                return ()

    def spawn(self, launch_specs: Sequence[Mapping[str, Any]]) -> tuple[Spawned, ...]:
        """Fork one supervisor for each launch spec, in order; stops at the first that is refused (SpawnRefused)."""
        return tuple(_spawned(spec, self._spawner.ask(spec)) for spec in launch_specs)

    def is_alive(self, identity: ProcessIdentity) -> bool:
        """Whether exactly this process still runs (a zombie does not)."""
        return is_alive(identity)

    def can_see(self, identity: ProcessIdentity) -> bool:
        """Whether `is_alive` would know: false for a process of another container on the same boot of this machine."""
        return can_see(identity)

    def follow(self, folders: Mapping[str, Sequence[ProcessIdentity]]) -> None:
        """Nothing to do: what is read is what there is."""

    def end_descriptor(self, identity: ProcessIdentity) -> int | None:
        """A file descriptor that turns readable when the process ends; None when it has ended already."""
        return end_descriptor(identity)

    def free_disk_mib(self, path: str) -> int:
        """MiB free for us on the file system that holds `path`, or its nearest folder that exists."""
        with _host_errors("look at", path):
            place = Path(path)
            while not place.exists() and place != place.parent:
                place = place.parent
            return shutil.disk_usage(place).free // 2**20

    def memory_mib(self) -> float:
        """MiB of main memory of this machine, or of our part of it."""
        if self._memory_mib is None:
            self._memory_mib = usable_memory_mib()
        return self._memory_mib

    def close(self) -> None:
        """End the spawner; what was spawned lives on."""
        self._spawner.close()


def _spawned(spec: Mapping[str, Any], answer: Mapping[str, Any]) -> Spawned:
    attempt = str(spec.get("attempt"))
    if "error" in answer:
        raise SpawnRefused(attempt, str(answer["error"]))
    try:
        identity = ProcessIdentity(**{name: answer[name] for name in _IDENTITY})
    except KeyError as error:
        raise SpawnRefused(attempt, f"it was spawned before, and its supervisor.json lacks {error}") from error
    return Spawned(attempt, identity, bool(answer.get("existing", False)))


def _create(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)


def _make_folders(folder: Path) -> None:
    """Like mkdir with parents, but every new folder is private."""
    if not folder.is_dir():
        _make_folders(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _host_errors(verb: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostLost(f"this machine cannot {verb} {path}: {error.strerror or error}") from error
