"""The GPUs of this machine that we may use, and the environment that pins a process to some of them.

GPUs are known by UUID. Their indices are positions in PCI bus order, which is how the driver library counts and what
CUDA_VISIBLE_DEVICES means once CUDA_DEVICE_ORDER=PCI_BUS_ID is set; by default CUDA would put the fastest GPU first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from provisioning.base import Slot

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


class NvmlDriver:
    """The GPUs that NVIDIA's management library knows. Without the library or a driver there are none."""

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
