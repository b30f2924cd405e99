"""Hosts of our own that are reached over ssh: free, known by name, each with an agent that answers for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

from pydantic import TypeAdapter

from provisioning.agent import Survey
from provisioning.agent_archive import agent_archive
from provisioning.agent_channel import AgentChannel
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
from provisioning.ssh_connection import Connection, Deadlines
from provisioning.ssh_host import SshHost
from provisioning.ssh_shell import SshShell

_SURVEY = TypeAdapter(Survey)
_SLOTS = TypeAdapter(tuple[Slot, ...])
_PROBE = TypeAdapter(SlotProbe)


class SshProvider:
    """The hosts of a list. Taking and releasing one are formalities; what matters is that it answers."""

    name = "ssh"

    def __init__(
        self,
        supervisor_path: str,
        hosts: Sequence[SshHost],
        keys: HostKeys,
        deadlines: Deadlines = Deadlines(),  # noqa: B008 (frozen)
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._archive = agent_archive(supervisor_path)
        self._hosts = {host.name: host for host in hosts}
        self._keys = keys
        self._deadlines = deadlines
        self._monotonic = monotonic
        self._agents: dict[str, AgentChannel] = {}
        self._released: set[str] = set()
        self.silent: dict[str, str] = {}
        """Why a host of the last offers is not among them, by name."""

    def offers(self, request: Request) -> tuple[Offer, ...]:
        """The hosts that answer and have the GPUs and cores that one run needs, in the order of the list."""
        self.silent = {}
        found = []
        for name in self._hosts:
            try:
                there = self._agent(name).ask(_SURVEY, "survey")
            except ProvisioningError as error:
                self.silent[name] = str(error)
                continue
            if there.gpus >= request.gpus and there.cores >= request.cpus:
                found.append(Offer(self.name, name, there.gpus, there.cores))
        return tuple(found)

    def create(self, offer: Offer, label: str) -> Handle | Refused:
        """Hold a host under a label."""
        if offer.offer_id not in self._hosts:
            return Refused(
                f"there is no host {offer.offer_id} in the list; there are {', '.join(self._hosts) or 'none'}"
            )
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
        """The host cut into slots. Raises NoCapacity when not even one fits, HostLost when it does not answer."""
        found = self._agent(handle.host).ask(_SLOTS, "slots", asdict(request))
        return tuple(replace(slot, host=handle.host) for slot in found)

    def probe(self, handle: Handle, slot: Slot, pids: Sequence[int] = ()) -> SlotProbe:
        """A look at a slot there; a host that does not answer is its `problem`."""
        try:
            return self._agent(handle.host).ask(_PROBE, "probe", handle.label, asdict(slot), list(pids))
        except ProvisioningError as error:
            return SlotProbe(problem=str(error))

    def shell(self, handle: Handle) -> Shell:
        """A shell with a connection of its own."""
        agent = self._new_agent(handle.host)
        return SshShell(agent, agent.close)

    def close(self) -> None:
        """Close all connections that were made here."""
        for agent in self._agents.values():
            agent.close()

    def _agent(self, name: str) -> AgentChannel:
        if name not in self._agents:
            self._agents[name] = self._new_agent(name)
        return self._agents[name]

    def _new_agent(self, name: str) -> AgentChannel:
        host = self._hosts[name]
        connect = partial(Connection.open, host, self._keys, self._deadlines)
        return AgentChannel(host, connect, self._archive, self._deadlines, self._monotonic)
