"""Hosts of our own that are reached over ssh: free, known by name, each with an agent that answers for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import TypeAdapter

from provisioning.agent import Survey
from provisioning.agent_archive import agent_archive
from provisioning.base import (
    Absent,
    Handle,
    Observation,
    Offer,
    Present,
    ProvisioningError,
    Refused,
    Released,
    Request,
    Shell,
    Slot,
    SlotProbe,
)
from provisioning.host_keys import HostKeys
from provisioning.host_worker import ANSWER_S, LOOK_S, PAUSE_S, SILENT_S, HostWorker
from provisioning.host_workers import HostWorkers
from provisioning.local import READING_S
from provisioning.ssh_connection import Deadlines
from provisioning.ssh_host import SshHost

CUT_S = 10.0
"""How long it holds how a host is cut into slots."""

_SURVEY = TypeAdapter(Survey)
_SLOTS = TypeAdapter(tuple[Slot, ...])
_PROBE = TypeAdapter(SlotProbe)


class SshProvider:
    """The hosts of a list, each with one thread and one connection. Taking and releasing one are formalities; what
    matters is that it answers.

    Run folders below `here` are copies of those there. `listed` are the names of the hosts that runs may be placed on
    (None = all); the others are those that something may still run on. A verb waits `answer_s` for its host, a look at
    all of them as long as a new connection may take. The other durations are those of HostWorker.
    """

    name = "ssh"

    def __init__(
        self,
        supervisor_path: str,
        hosts: Sequence[SshHost],
        keys: HostKeys,
        here: Path,
        deadlines: Deadlines = Deadlines(),  # noqa: B008 (frozen)
        *,
        listed: Collection[str] | None = None,
        answer_s: float = ANSWER_S,
        look_s: float = LOOK_S,
        pause_s: float = PAUSE_S,
        silent_s: float = SILENT_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hosts = {host.name: host for host in hosts}
        self._listed = set(self._hosts) if listed is None else set(listed)
        self._keys = keys
        self._deadlines = deadlines
        self._monotonic = monotonic
        self._workers = HostWorkers(
            agent_archive(supervisor_path), here, deadlines, answer_s=answer_s, look_s=look_s, pause_s=pause_s,
            silent_s=silent_s, monotonic=monotonic,
        )  # fmt: skip
        self._released: set[str] = set()
        self.silent: dict[str, ProvisioningError] = {}
        """Why a host of the last offers is not among them, by name."""

    def know(self, hosts: Sequence[SshHost]) -> None:
        """Runs are placed on these hosts from now on, and reached as they say; what runs on others goes on."""
        self._listed = {host.name for host in hosts}
        self._hosts |= {host.name: host for host in hosts}  # one that went elsewhere gets a new connection

    def hosts(self) -> tuple[Offer, ...]:
        """The hosts that runs are placed on."""
        return tuple(Offer(self.name, name, 0, 0) for name in self._hosts if name in self._listed)

    def offers(self, request: Request) -> tuple[Offer, ...]:
        """The hosts that answer and have the GPUs and cores that one run needs, in the order of the list."""
        until = self._monotonic() + self._deadlines.connect_s + self._deadlines.answer_s
        asked = {name: self._worker(name).begin(_SURVEY, "survey") for name in self._hosts if name in self._listed}
        self.silent, found = {}, []
        for name, future in asked.items():
            try:
                there = HostWorker.wait(future, max(0.0, until - self._monotonic()))
            except ProvisioningError as error:
                self.silent[name] = error
                continue
            if there.gpus >= request.gpus and there.cores >= request.cpus:
                found.append(Offer(self.name, name, there.gpus, there.cores))
        return tuple(found)

    def create(self, offer: Offer, label: str) -> Handle | Refused:
        """Hold a host under a label."""
        if offer.offer_id not in self._hosts:
            known = ", ".join(self._hosts) or "none"
            return Refused(f"there is no host {offer.offer_id} in the list; there are {known}")
        self._released.discard(label)
        return Handle(self.name, label, offer.offer_id)

    def observe(self, labels: Sequence[str]) -> Mapping[str, Observation]:
        """Present for every label but those released here: after a restart the machine is still there."""
        return {label: Absent() if label in self._released else Present("ready") for label in labels}

    def release(self, handle: Handle) -> Released:
        """Let go of the label; the machine stays."""
        self._released.add(handle.label)
        return Released(f"{handle.host} stays; nothing is paid for it")

    def slots(self, handle: Handle, request: Request) -> tuple[Slot, ...]:
        """The host cut into slots, as it was a moment ago. Raises NoCapacity when not even one fits, HostLost when it
        does not answer."""
        question = {**asdict(request), "wanted": {}}
        found = self._worker(handle.host).latest(_SLOTS, "slots", question, max_age_s=CUT_S)
        return tuple(replace(slot, host=handle.host) for slot in found)

    def probe(self, handle: Handle, slot: Slot, pids: Sequence[int] = ()) -> SlotProbe:
        """A look at a slot there. Raises HostLost when the host does not answer."""
        arguments = (handle.label, asdict(slot), list(pids))
        return self._worker(handle.host).latest(_PROBE, "probe", *arguments, max_age_s=READING_S)

    def shell(self, handle: Handle) -> Shell:
        """A shell for the run folders of the home that the handle's label names. Closing it closes no connection."""
        return self._workers.shell(self._hosts[handle.host], self._keys, handle.label.split("/")[1])

    def close(self) -> None:
        """Close all connections; what was spawned lives on."""
        self._workers.close()

    def _worker(self, name: str) -> HostWorker:
        return self._workers.worker(self._hosts[name], self._keys)
