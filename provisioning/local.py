"""This machine as a place where processes run: free, always there, cut into pinned CPU or GPU slots."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from provisioning.base import (
    Absent,
    Handle,
    Observation,
    Offer,
    Present,
    ProcessOwner,
    Released,
    Request,
    Slot,
    SlotProbe,
)
from provisioning.cpus import usable_cores
from provisioning.gpu_watch import GpuReading, home_of, slot_probe
from provisioning.gpus import MASK, GpuDriver, GpuSurvey, NvmlDriver, usable_gpus
from provisioning.local_shell import LocalShell
from provisioning.processes import leftover, owner_of
from provisioning.slots import cpu_slots, gpu_slots

SURVEY_S = 10.0
"""How long a list of the GPUs holds before the driver is asked again."""

READING_S = 2.0
"""How long a look at the memory and the processes of the GPUs holds."""


class LocalProvider:
    """The machine we run on. Taking and releasing it are formalities; what matters is how it is cut."""

    name = "local"

    def __init__(
        self,
        supervisor_path: str,
        environment: Mapping[str, str],
        *,
        driver: GpuDriver | None = None,
        cores: Callable[[], Sequence[int]] = usable_cores,
        python: str = sys.executable,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._supervisor_path = supervisor_path
        self._mask = environment.get(MASK)
        self._driver = NvmlDriver() if driver is None else driver
        self._cores = cores
        self._python = python
        self._monotonic = monotonic
        self._released: set[str] = set()
        self._survey: tuple[float, GpuSurvey] | None = None
        self._readings: tuple[float, Mapping[str, GpuReading | str], Mapping[int, ProcessOwner]] | None = None

    def survey(self) -> GpuSurvey:
        """The GPUs that slots can be cut from, with a note for each that is left out; asked every SURVEY_S seconds."""
        now = self._monotonic()
        if self._survey is None or now - self._survey[0] >= SURVEY_S:
            self._survey = (now, usable_gpus(self._driver, self._mask))
        return self._survey[1]

    def hosts(self) -> tuple[Offer, ...]:
        """This machine."""
        return (Offer(self.name, socket.gethostname(), 0, 0),)

    def offers(self, request: Request) -> tuple[Offer, ...]:
        """This machine, when it has the GPUs and cores that one run needs."""
        gpus, cores = len(self.survey().gpus), len(self._cores())
        if gpus < request.gpus or cores < request.cpus:
            return ()
        return (Offer(self.name, "this-machine", gpus, cores),)

    def create(self, offer: Offer, label: str) -> Handle:
        """Hold this machine under a label."""
        self._released.discard(label)
        return Handle(self.name, label, socket.gethostname())

    def observe(self, labels: Sequence[str]) -> Mapping[str, Observation]:
        """Present for every label but those released here: after a restart the machine is still there."""
        return {label: Absent() if label in self._released else Present("ready") for label in labels}

    def release(self, handle: Handle) -> Released:
        """Let go of the label; the machine stays."""
        self._released.add(handle.label)
        return Released("this machine stays; nothing is paid for it")

    def slots(self, handle: Handle, request: Request) -> tuple[Slot, ...]:
        """CPU slots when no GPU is asked for, else GPU slots. Raises NoCapacity when not even one fits."""
        if request.gpus == 0:
            return cpu_slots(request, self._cores())
        return gpu_slots(request, self._cores(), self.survey().gpus)

    def probe(self, handle: Handle, slot: Slot, pids: Sequence[int] = ()) -> SlotProbe:
        """A look at the slot's GPUs (READING_S seconds old at most), at its cores and at some processes."""
        probe = self._probe_gpus(handle, slot) if slot.gpu_uuids else SlotProbe()
        lost = sorted(set(slot.cores) - set(self._cores()))
        if lost:
            cores = f"core {', '.join(map(str, lost))} is no longer ours (affinity or control group)"
            probe = replace(probe, problem="; ".join(filter(None, (probe.problem, cores))))
        return replace(probe, leftovers=tuple(found for pid in pids if (found := leftover(pid)) is not None))

    def _probe_gpus(self, handle: Handle, slot: Slot) -> SlotProbe:
        now = self._monotonic()
        if self._readings is None or now - self._readings[0] >= READING_S or not self._has_read(slot):
            uuids = dict.fromkeys([*slot.gpu_uuids, *(gpu.uuid for gpu in self.survey().gpus)])
            readings = self._driver.read(tuple(uuids))
            self._readings = (now, readings, _owners(readings))
        _, readings, owners = self._readings
        return slot_probe({uuid: readings[uuid] for uuid in slot.gpu_uuids}, owners, home_of(handle.label))

    def _has_read(self, slot: Slot) -> bool:
        return self._readings is not None and set(slot.gpu_uuids) <= set(self._readings[1])

    def close(self) -> None:
        """Nothing is held: each shell belongs to its caller."""

    def shell(self, handle: Handle) -> LocalShell:
        """A shell of its own for the caller; it starts its spawner when it is first needed."""
        return LocalShell(self._supervisor_path, self._python, mask=self._mask)


def _owners(readings: Mapping[str, GpuReading | str]) -> dict[int, ProcessOwner]:
    """Who the processes are that the driver listed and that are visible here."""
    pids = {one.pid for reading in readings.values() if isinstance(reading, GpuReading) for one in reading.processes}
    found = {pid: owner_of(pid) for pid in pids}
    return {pid: owner for pid, owner in found.items() if owner is not None}
