"""The GPUs of this machine that we may use, and the environment that pins a process to some of them.

GPUs are known by UUID. Their indices are positions in PCI bus order, which is how the driver library counts and what
CUDA_VISIBLE_DEVICES means once CUDA_DEVICE_ORDER=PCI_BUS_ID is set; by default CUDA would put the fastest GPU first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from provisioning.base import Slot
from provisioning.gpu_watch import GpuProcess, GpuReading

MASK = "CUDA_VISIBLE_DEVICES"
THREAD_CAPS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: its UUID (`GPU-…`), its PCI bus order number, its whole memory in MiB."""

    uuid: str
    index: int
    name: str
    memory_mib: int
    is_partitioned: bool = False


@dataclass(frozen=True, slots=True)
class GpuSurvey:
    """The GPUs we may use, in PCI bus order, and one sentence for each that is left out or that is missing."""

    gpus: tuple[Gpu, ...]
    notes: tuple[str, ...] = ()


class GpuDriver(Protocol):
    """Whatever can list the GPUs of this machine, all of them, whoever may use them."""

    def survey(self) -> GpuSurvey:
        """All GPUs; none, with a note that says why, when there is no driver. Never raises for that."""
        ...

    def read(self, uuids: Sequence[str]) -> Mapping[str, GpuReading | str]:
        """Memory and processes of each GPU now, or a sentence that says why it does not answer. Never raises."""
        ...


class NvmlDriver:
    """The GPUs that NVIDIA's management library knows. Without the library or a driver there are none.

    Where nothing keeps a driver awake, opening the library takes seconds: once readings are asked for, it stays open
    until a GPU fails to answer or this process ends.
    """

    def __init__(self) -> None:
        self._is_open = False

    def survey(self) -> GpuSurvey:
        """All GPUs of the driver; one that does not answer is left out with a note."""
        try:
            import pynvml
        except ImportError:
            return GpuSurvey((), ("no GPUs: the package nvidia-ml-py is not installed",))
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            return GpuSurvey((), (f"no GPUs: {error}",))
        try:
            return _ask_all(pynvml)
        finally:
            pynvml.nvmlShutdown()

    def read(self, uuids: Sequence[str]) -> Mapping[str, GpuReading | str]:
        """Memory and processes of each GPU now, or why it does not answer."""
        try:
            import pynvml
        except ImportError:
            return dict.fromkeys(uuids, "the package nvidia-ml-py is not installed")
        try:
            if not self._is_open:
                pynvml.nvmlInit()
                self._is_open = True
        except pynvml.NVMLError as error:
            return dict.fromkeys(uuids, str(error))
        found = {uuid: _read_or_reason(pynvml, uuid) for uuid in uuids}
        if any(isinstance(reading, str) for reading in found.values()):
            self.close()  # the driver may have been loaded anew: the next reading starts afresh
        return found

    def driver_version(self) -> str:
        """The version of the driver; '' when there is none."""
        try:
            import pynvml

            pynvml.nvmlInit()
        except ImportError:
            return ""
        except pynvml.NVMLError:
            return ""
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        except pynvml.NVMLError:
            return ""
        finally:
            pynvml.nvmlShutdown()

    def close(self) -> None:
        """Let go of the library; harmless when it is not open."""
        if self._is_open:
            import pynvml

            self._is_open = False
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()


def usable_gpus(driver: GpuDriver, mask: str | None) -> GpuSurvey:
    """The GPUs that an inherited mask lets through (None = no mask), without those split into MIG instances.

    `mask` is a value of CUDA_VISIBLE_DEVICES: indices, or UUIDs or unique beginnings of them; like CUDA, reading stops
    at the first word that names nothing. '' and -1 mean none.
    """
    survey = driver.survey()
    gpus, notes = survey.gpus, list(survey.notes)
    if mask is not None:
        named, unknown = _named_by(mask, gpus)
        gpus = tuple(gpu for gpu in gpus if gpu in named)
        if unknown is not None:
            notes.append(f"{MASK}={mask}: {unknown!r} names no GPU here; it and what follows it are left out")
    notes += [
        f"GPU {gpu.index} ({gpu.name}) is split into MIG instances; left out" for gpu in gpus if gpu.is_partitioned
    ]
    return GpuSurvey(tuple(gpu for gpu in gpus if not gpu.is_partitioned), tuple(notes))


def slot_environment(slot: Slot, gpu_ids: str = "index", inherited: str | None = None) -> dict[str, str]:
    """What pins a process to a slot: its GPUs ('' on a CPU slot, so that nothing grabs one) and a cap on its threads.

    `gpu_ids` is index or uuid. An index is the number that the inherited mask itself would use. Raises ValueError for
    another form, and for a GPU that the inherited mask hides: the mask changed since the slot was cut.
    """
    if gpu_ids not in ("index", "uuid"):
        raise ValueError(f"gpu_ids: {gpu_ids!r} is not allowed; allowed: index, uuid")
    devices = [Gpu(uuid, index, "", 0) for uuid, index in zip(slot.gpu_uuids, slot.gpu_indices, strict=True)]
    if inherited is not None:
        hidden = [gpu.uuid for gpu in devices if not any(_is_named(gpu, word) for word in _words(inherited))]
        if hidden:
            raise ValueError(f"slot {slot.name} holds {hidden[0]}, which {MASK}={inherited} hides from us")
    names = [gpu.uuid if gpu_ids == "uuid" else str(gpu.index) for gpu in devices]
    caps = {} if not slot.cores else dict.fromkeys(THREAD_CAPS, str(len(slot.cores)))
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", MASK: ",".join(names), **caps}


def _ask_all(nvml: Any) -> GpuSurvey:
    gpus, notes = [], []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            gpus.append(_ask(nvml, index))
        except nvml.NVMLError as error:
            notes.append(f"GPU {index} does not answer ({error}); left out")
    return GpuSurvey(tuple(gpus), tuple(notes))


def _ask(nvml: Any, index: int) -> Gpu:
    device = nvml.nvmlDeviceGetHandleByIndex(index)
    try:
        is_partitioned = nvml.nvmlDeviceGetMigMode(device)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError_NotSupported:
        is_partitioned = False
    memory_mib = nvml.nvmlDeviceGetMemoryInfo(device).total // 2**20
    return Gpu(nvml.nvmlDeviceGetUUID(device), index, nvml.nvmlDeviceGetName(device), memory_mib, is_partitioned)


def _read_or_reason(nvml: Any, uuid: str) -> GpuReading | str:
    try:
        device = nvml.nvmlDeviceGetHandleByUUID(uuid)
        used_mib = _used_bytes(nvml, device) // 2**20
        return GpuReading(uuid, used_mib, tuple(_processes(nvml, device)))
    except nvml.NVMLError as error:
        return str(error)


def _used_bytes(nvml: Any, device: Any) -> int:
    """Bytes that processes use; drivers before 510 only know the sum with what they keep for themselves."""
    unknown = (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NotSupported, nvml.NVMLError_InvalidArgument)
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(device, version=nvml.nvmlMemory_v2).used)
    except unknown:
        return int(nvml.nvmlDeviceGetMemoryInfo(device).used)


def _processes(nvml: Any, device: Any) -> Iterator[GpuProcess]:
    """What computes, what computes through the sharing service (MPS), what draws. A list we cannot have is empty: the
    memory behind it is then memory that no process accounts for."""
    lists = (
        (nvml.nvmlDeviceGetComputeRunningProcesses, False),
        (nvml.nvmlDeviceGetMPSComputeRunningProcesses, False),
        (nvml.nvmlDeviceGetGraphicsRunningProcesses, True),
    )
    for ask, is_graphics in lists:
        try:
            found = ask(device)
        except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission):
            continue
        for process in found:
            mib = None if process.usedGpuMemory is None else int(process.usedGpuMemory) // 2**20
            yield GpuProcess(int(process.pid), mib, is_graphics)


def _named_by(mask: str, gpus: Sequence[Gpu]) -> tuple[list[Gpu], str | None]:
    """The GPUs that a mask names, and the first word that names none or more than one."""
    named: list[Gpu] = []
    for word in _words(mask):
        meant = [gpu for gpu in gpus if _is_named(gpu, word)]
        if len(meant) != 1:
            return named, None if word.startswith("-") else word
        named += meant
    return named, None


def _words(mask: str) -> list[str]:
    return [word.strip() for word in mask.split(",")] if mask.strip() else []


def _is_named(gpu: Gpu, word: str) -> bool:
    return (word.isdecimal() and int(word) == gpu.index) or (word.startswith("GPU-") and gpu.uuid.startswith(word))
