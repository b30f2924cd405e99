"""The verbs of a Shell on a host that an agent serves. What the host says must have the right shape to be believed."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Base64Bytes, Field, NonNegativeInt, TypeAdapter

from provisioning.agent_channel import Asks
from provisioning.base import HostLost, ProcessIdentity, Spawned

_NOTHING = TypeAdapter(None)
_BYTES: TypeAdapter[bytes | None] = TypeAdapter(Base64Bytes | None)
_STAMP: TypeAdapter[tuple[int, int, int] | None] = TypeAdapter(tuple[int, int, int] | None)
_NAMES = TypeAdapter(tuple[str, ...])
_SPAWNED = TypeAdapter(tuple[Spawned, ...])
_BOOL = TypeAdapter(bool)
_MIB: TypeAdapter[int] = TypeAdapter(NonNegativeInt)
_MIB_EXACT: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(gt=0, allow_inf_nan=False)])


class SshShell:
    """Verbs on one host, for one thread. Each is one question; none is asked twice by itself."""

    def __init__(self, agent: Asks) -> None:
        self._agent = agent
        self._memory_mib: float | None = None

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> bytes | None:
        """Bytes of a file from `offset`, at most `limit`; None when there is no such file."""
        data = self._agent.ask(_BYTES, "read", path, offset, limit)
        if data is not None and limit is not None and len(data) > limit:
            raise HostLost(f"the host answered {len(data)} bytes where {limit} were asked for")
        return data

    def stamp(self, path: str) -> tuple[int, int, int] | None:
        """(inode, size in bytes, modification time in ns) of a file, or None when there is no such file."""
        return self._agent.ask(_STAMP, "stamp", path)

    def write(self, path: str, data: bytes, *, is_durable: bool = True) -> None:
        """Replace a file atomically, creating its folders with mode 0700; `is_durable` waits for the disk."""
        self._agent.ask(_NOTHING, "write", path, base64.b64encode(data).decode(), is_durable)

    def names(self, folder: str) -> tuple[str, ...]:
        """Sorted names in a folder; empty when there is no such folder. What is a path is no name."""
        found = self._agent.ask(_NAMES, "names", folder)
        return tuple(sorted(name for name in found if "/" not in name and name not in ("", ".", "..")))

    def spawn(self, launch_specs: Sequence[Mapping[str, Any]]) -> tuple[Spawned, ...]:
        """Fork one supervisor for each launch spec, in order; values of its environment travel in this one question."""
        found = self._agent.ask(_SPAWNED, "spawn", [dict(spec) for spec in launch_specs])
        if [one.attempt for one in found] != [str(spec.get("attempt")) for spec in launch_specs]:
            raise HostLost("the host answered for other attempts than those that were to be spawned")
        return found

    def is_alive(self, identity: ProcessIdentity) -> bool:
        """Whether exactly this process still runs (a zombie does not)."""
        return self._agent.ask(_BOOL, "is_alive", asdict(identity))

    def can_see(self, identity: ProcessIdentity) -> bool:
        """Whether `is_alive` would know: false for a process of another container on the same boot of that machine."""
        return self._agent.ask(_BOOL, "can_see", asdict(identity))

    def follow(self, folders: Mapping[str, Sequence[ProcessIdentity]]) -> None:
        """Nothing to do: each reading asks the host."""

    def end_descriptor(self, identity: ProcessIdentity) -> int | None:
        """None: no descriptor here turns readable when a process there ends."""
        return None

    def free_disk_mib(self, path: str) -> int:
        """MiB free for us on the file system that holds `path`, or its nearest folder that exists."""
        return self._agent.ask(_MIB, "free_disk_mib", path)

    def memory_mib(self) -> float:
        """MiB of main memory of that machine, or of our part of it."""
        if self._memory_mib is None:
            self._memory_mib = self._agent.ask(_MIB_EXACT, "memory_mib")
        return self._memory_mib

    def close(self) -> None:
        """Close the connection; what was spawned lives on."""
        self._agent.close()
