"""The verbs of a Shell for run folders that are copied from another host: reading is local, acting is there.

Paths are those of the copy; the same file there has the same path below another folder. What is read may be a look old;
what is written is there, or HostLost says that nobody knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, TypeAdapter

from provisioning.agent import About
from provisioning.base import HostLost, ProcessIdentity, Spawned
from provisioning.host_worker import HostWorker, Watched
from provisioning.local_shell import LocalShell
from provisioning.mirror import Mirror
from provisioning.questions import Result, Steps
from provisioning.ssh_shell import SshShell

_ABOUT = TypeAdapter(About)
_BOOL = TypeAdapter(bool)
_MIB: TypeAdapter[int] = TypeAdapter(NonNegativeInt)

ALIVE_S = 2.0
DISK_S = 30.0
"""How old an answer may be that is looked at again and again."""

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npy")


class MirroredShell:
    """Verbs for everything below the folder `here`, which is `there` on the host of a worker; `~` is the home folder of
    the user there. For one thread.

    Files whose paths end as in `skipped` are not copied: weights come home when it is known which.
    """

    is_here = False

    def __init__(
        self, worker: HostWorker, here: Path, there: str, python: str = "python3", skipped: Sequence[str] = WEIGHTS
    ) -> None:
        self._worker = worker
        self._python = python
        self._far = SshShell(worker)
        self._here = here
        self._there = there
        self._skipped = tuple(skipped)
        self._mirrors: dict[str, Mirror] = {}
        self._followed: frozenset[ProcessIdentity] = frozenset()
        self._copy = LocalShell("", "")  # its spawner is never asked
        self._visible: dict[ProcessIdentity, bool] = {}

    def carry_out(self, steps: Steps[Result]) -> Future[Result]:
        """Work of many questions, in the background: what others ask goes in between."""
        return self._worker.carry_out(steps)

    def about(self) -> About:
        """Who answers there. Raises HostLost while nobody has."""
        return self._worker.latest(_ABOUT, "about", max_age_s=math.inf)

    def path_there(self, path: str) -> str:
        """The same path on the host. Raises ValueError for one outside of the copy, HostLost while nobody has heard yet
        where the home folder there is."""
        below = Path(path).relative_to(self._here)
        self._there = self._expanded(self._there)
        return self._there if str(below) == "." else f"{self._there}/{below}"

    @property
    def python(self) -> str:
        """The interpreter there, unless an arm names another one. Raises HostLost as `path_there` does."""
        return self._expanded(self._python)

    @property
    def mask(self) -> str | None:
        """The GPUs that are visible there, None for all. Raises HostLost as `path_there` does."""
        return self.about().mask

    def _expanded(self, path: str) -> str:
        return f"{self.about().home}{path[1:]}" if path.startswith("~/") else path

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> bytes | None:
        """Bytes of the copy of a file from `offset`, at most `limit`; None when there is none."""
        return self._copy.read(path, offset, limit)

    def stamp(self, path: str) -> tuple[int, int, int] | None:
        """(inode here, size in bytes, modification time there in ns) of a copy, or None when there is none."""
        return self._copy.stamp(path)

    def names(self, folder: str) -> tuple[str, ...]:
        """Sorted names in the copy of a folder; our own notes are none of them."""
        return tuple(name for name in self._copy.names(folder) if not name.startswith("."))

    def names_there(self, folder: str) -> tuple[str, ...]:
        """Sorted names in a folder of the host as it is now."""
        return self._far.names(self.path_there(folder))

    def write(self, path: str, data: bytes, *, is_durable: bool = True) -> None:
        """Replace a file there, then its copy here."""
        self._far.write(self.path_there(path), data, is_durable=is_durable)
        self._copy.write(path, data, is_durable=False)

    def spawn(self, launch_specs: Sequence[Mapping[str, Any]]) -> tuple[Spawned, ...]:
        """Fork one supervisor there for each launch spec, whose paths are those of the host."""
        return self._far.spawn(launch_specs)

    def follow(self, folders: Mapping[str, Sequence[ProcessIdentity]]) -> None:
        """Copy these run folders, and no others, from the next look on; nothing while the host was never heard of."""
        self._mirrors = {path: self._mirrors.get(path) or Mirror(Path(path)) for path in folders}
        self._followed = frozenset(one for identities in folders.values() for one in identities)
        with suppress(HostLost):  # it is asked again in the next round
            self._worker.watch(
                [
                    Watched(self.path_there(path), self._mirrors[path], self._skipped, tuple(identities))
                    for path, identities in folders.items()
                ]
            )

    def refused(self) -> dict[str, str]:
        """What the host has in the folders that are copied and that is not taken, by path, and why."""
        return {f"{path}/{name}": why for path, mirror in self._mirrors.items() for name, why in mirror.refused.items()}

    def is_alive(self, identity: ProcessIdentity) -> bool:
        """Whether exactly this process ran at the last look, or has left something that is not here yet. One whose
        folder is copied counts as running until the first look at it: nobody knows before what it left. Raises
        HostLost when the host has been silent for a while."""
        seen = self._worker.sight().alive.get(identity)
        if seen is not None or identity in self._followed:
            if seen is not False and (silence := self._worker.silence()):
                raise HostLost(silence)
            return seen is None or seen
        return self._worker.latest(_BOOL, "is_alive", asdict(identity), max_age_s=ALIVE_S)

    def can_see(self, identity: ProcessIdentity) -> bool:
        """Whether `is_alive` would know: false for a process of another container on the same boot of that machine."""
        if identity not in self._visible:
            self._visible[identity] = self._far.can_see(identity)
        return self._visible[identity]

    def end_descriptor(self, identity: ProcessIdentity) -> int | None:
        """None: no descriptor here turns readable when a process there ends."""
        return self._far.end_descriptor(identity)

    def free_disk_mib(self, path: str) -> int:
        """MiB free for us there, on the file system that holds the path."""
        return self._worker.latest(_MIB, "free_disk_mib", self.path_there(path), max_age_s=DISK_S)

    def memory_mib(self) -> float:
        """MiB of main memory of that machine, or of our part of it."""
        return self._far.memory_mib()

    def close(self) -> None:
        """Copy nothing any more; the thread of the host belongs to its provider."""
        self._worker.watch(())
