"""This machine as a place where processes run: free, always there, cut into pinned CPU or GPU slots."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Mapping, Sequence

from provisioning.base import Absent, Handle, Observation, Offer, Present, Released, Request, Slot
from provisioning.cpus import usable_cores
from provisioning.gpus import MASK, GpuDriver, GpuSurvey, NvmlDriver, usable_gpus
from provisioning.local_shell import LocalShell
from provisioning.slots import cpu_slots, gpu_slots


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
    ) -> None:
        self._supervisor_path = supervisor_path
        self._mask = environment.get(MASK)
        self._driver = NvmlDriver() if driver is None else driver
        self._cores = cores
        self._python = python
        self._released: set[str] = set()

    def survey(self) -> GpuSurvey:
        """The GPUs that slots can be cut from, with a note for each that is left out."""
        return usable_gpus(self._driver, self._mask)

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

    def shell(self, handle: Handle) -> LocalShell:
        """A shell of its own for the caller; it starts its spawner when it is first needed."""
        return LocalShell(self._supervisor_path, self._python)
