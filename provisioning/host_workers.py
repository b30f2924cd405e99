"""The workers of hosts that are reached over ssh, one for each host: made when first needed, and anew when its address
has changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from provisioning.agent_archive import AgentArchive
from provisioning.agent_channel import AgentChannel
from provisioning.host_keys import HostKeys
from provisioning.host_worker import ANSWER_S, LOOK_S, PAUSE_S, SILENT_S, HostWorker
from provisioning.mirrored_shell import MirroredShell
from provisioning.ssh_connection import Connection, Deadlines
from provisioning.ssh_host import SshHost


class HostWorkers:
    """Workers by the name of their host. Run folders below `here` are copies of those there.

    A verb waits `answer_s` for its host; the other durations are those of HostWorker.
    """

    def __init__(
        self,
        archive: AgentArchive,
        here: Path,
        deadlines: Deadlines = Deadlines(),  # noqa: B008 (frozen)
        *,
        answer_s: float = ANSWER_S,
        look_s: float = LOOK_S,
        pause_s: float = PAUSE_S,
        silent_s: float = SILENT_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.answer_s = answer_s
        self._archive = archive
        self._here = here
        self._deadlines = deadlines
        self._look_s = look_s
        self._pause_s = pause_s
        self._silent_s = silent_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._held: dict[str, tuple[SshHost, HostWorker]] = {}

    def worker(self, host: SshHost, keys: HostKeys) -> HostWorker:
        """The worker of a host, whose key `keys` must know or accept. One of the same name that went elsewhere ends."""
        with self._lock:
            held = self._held.get(host.name)
            if held is not None and held[0] == host:
                return held[1]
            if held is not None:
                held[1].close(0.0)
            connect = partial(Connection.open, host, keys, self._deadlines)
            agent = AgentChannel(host, connect, self._archive, self._deadlines, self._monotonic)
            worker = HostWorker(
                agent, answer_s=self.answer_s, look_s=self._look_s, pause_s=self._pause_s, silent_s=self._silent_s,
                monotonic=self._monotonic,
            )  # fmt: skip
            self._held[host.name] = (host, worker)
            return worker

    def shell(self, host: SshHost, keys: HostKeys, home: str) -> MirroredShell:
        """A shell for the run folders of the home of this id. Closing it closes no connection."""
        return MirroredShell(self.worker(host, keys), self._here, f"{host.folder}/runs/{home}", host.python)

    def drop(self, name: str) -> None:
        """End the worker of a host, if there is one, without waiting for what it is at."""
        with self._lock:
            held = self._held.pop(name, None)
        if held is not None:
            held[1].close(0.0)

    def close(self) -> None:
        """End all workers and their connections; what was spawned lives on."""
        with self._lock:
            workers = [worker for _, worker in self._held.values()]
            self._held.clear()
        for worker in workers:
            worker.close()
