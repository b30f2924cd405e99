"""The verbs of a Shell for run folders that are copied from another host: reading is local, acting is there.

Paths are those of the copy; the same file there has the same path below another folder. What is read may be a look old;
what is written is there, or HostLost says that nobody knows.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, TypeAdapter

from provisioning.base import HostLost, ProcessIdentity, Spawned
from provisioning.host_worker import HostWorker
from provisioning.local_shell import LocalShell

ANSWER_S = 2.0
"""A round of the controller may wait so long for one host, once: after that the host counts as lost at once."""

_NOTHING = TypeAdapter(None)
_BOOL = TypeAdapter(bool)
_SPAWNED = TypeAdapter(tuple[Spawned, ...])
_MIB: TypeAdapter[int] = TypeAdapter(NonNegativeInt)
_MIB_EXACT: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(gt=0, allow_inf_nan=False)])


class MirroredShell:
    """Verbs for everything below the folder `here`, which is `there` on the host. For one thread."""

    def __init__(self, worker: HostWorker, here: Path, there: str, answer_s: float = ANSWER_S) -> None:
        self._worker = worker
        self._here = here
        self._there = there
        self._answer_s = answer_s
        self._local = LocalShell("", "")  # its spawner is never asked
        self._memory_mib: float | None = None
        self._visible: dict[ProcessIdentity, bool] = {}

    def path_there(self, path: str) -> str:
        """The same path on the host. Raises ValueError for one outside of the copy."""
        below = Path(path).relative_to(self._here)
        return self._there if str(below) == "." else f"{self._there}/{below}"

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> bytes | None:
        """Bytes of the copy of a file from `offset`, at most `limit`; None when there is none."""
        return self._local.read(path, offset, limit)

    def stamp(self, path: str) -> tuple[int, int, int] | None:
        """(inode here, size in bytes, modification time there in ns) of a copy, or None when there is none."""
        return self._local.stamp(path)

    def names(self, folder: str) -> tuple[str, ...]:
        """Sorted names in the copy of a folder; our own notes are none of them."""
        return tuple(name for name in self._local.names(folder) if not name.startswith("."))

    def write(self, path: str, data: bytes, *, is_durable: bool = True) -> None:
        """Replace a file there, then its copy here."""
        encoded = base64.b64encode(data).decode()
        self._worker.ask(self._answer_s, _NOTHING, "write", self.path_there(path), encoded, is_durable)
        self._local.write(path, data, is_durable=False)

    def spawn(self, launch_specs: Sequence[Mapping[str, Any]]) -> tuple[Spawned, ...]:
        """Fork one supervisor there for each launch spec, whose paths are those of the host."""
        found = self._worker.ask(self._answer_s, _SPAWNED, "spawn", [dict(spec) for spec in launch_specs])
        if [one.attempt for one in found] != [str(spec.get("attempt")) for spec in launch_specs]:
            raise HostLost("the host answered for other attempts than those that were to be spawned")
        return found

    def is_alive(self, identity: ProcessIdentity) -> bool:
        """Whether exactly this process ran at the last look, or had left something that is not here yet."""
        seen = self._worker.sight().alive.get(identity)
        return self._worker.ask(self._answer_s, _BOOL, "is_alive", asdict(identity)) if seen is None else seen

    def can_see(self, identity: ProcessIdentity) -> bool:
        """Whether `is_alive` would know: false for a process of another container on the same boot of that machine."""
        if identity not in self._visible:
            self._visible[identity] = self._worker.ask(self._answer_s, _BOOL, "can_see", asdict(identity))
        return self._visible[identity]

    def end_descriptor(self, identity: ProcessIdentity) -> int | None:
        """None: no descriptor here turns readable when a process there ends."""
        return None

    def free_disk_mib(self, path: str) -> int:
        """MiB free for us there, on the file system that holds the path."""
        return self._worker.ask(self._answer_s, _MIB, "free_disk_mib", self.path_there(path))

    def memory_mib(self) -> float:
        """MiB of main memory of that machine, or of our part of it."""
        if self._memory_mib is None:
            self._memory_mib = self._worker.ask(self._answer_s, _MIB_EXACT, "memory_mib")
        return self._memory_mib

    def close(self) -> None:
        """End the thread of the host; what was spawned lives on."""
        self._worker.close()
