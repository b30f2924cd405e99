"""Cuts one host into slots: who gets which cores and which GPUs. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from provisioning.base import NoCapacity, Request, Slot
from provisioning.gpus import Gpu


def cpu_slots(request: Request, cores: Sequence[int]) -> tuple[Slot, ...]:
    """Slots of `request.cpus` cores each: as many as fit, or as many as were asked for.

    More slots than fit share cores, evenly, and say so. Raises NoCapacity when not even one slot has its cores.
    """
    _check_cores(request, cores)
    count = request.slots if request.slots is not None else len(cores) // request.cpus
    shares, is_shared = _share(cores, count, request.cpus)
    return tuple(Slot(f"cpu{number}", share, shares_cores=is_shared) for number, share in enumerate(shares))


def gpu_slots(request: Request, cores: Sequence[int], gpus: Sequence[Gpu]) -> tuple[Slot, ...]:
    """Slots of `request.gpus` GPUs each, at most as many as were asked for; GPUs are never shared.

    Each slot gets the cores that its part of all GPUs entitles it to, and no fewer than `request.cpus`. Raises
    NoCapacity when not even one slot has its GPUs, their memory or its cores.
    """
    _check_cores(request, cores)
    large = [gpu for gpu in gpus if gpu.memory_mib >= request.min_vram_gib * 1024]
    fit = len(large) // request.gpus
    if fit == 0:
        raise NoCapacity(
            f"{request.gpus} GPUs with {request.min_vram_gib:g} GiB or more are needed for one run; "
            f"there are {len(large)} of {len(gpus)} usable GPUs with that"
        )
    count = fit if request.slots is None else min(fit, request.slots)
    fair = max(len(cores) * request.gpus // len(gpus), request.cpus, 1)
    shares, is_shared = _share(cores, count, fair)
    return tuple(
        _gpu_slot(large[number * request.gpus : (number + 1) * request.gpus], share, is_shared)
        for number, share in enumerate(shares)
    )


def _gpu_slot(gpus: Sequence[Gpu], cores: tuple[int, ...], is_shared: bool) -> Slot:
    return Slot(
        name="gpu" + "+".join(str(gpu.index) for gpu in gpus),
        cores=cores,
        gpu_uuids=tuple(gpu.uuid for gpu in gpus),
        gpu_indices=tuple(gpu.index for gpu in gpus),
        vram_mib=min(gpu.memory_mib for gpu in gpus),
        shares_cores=is_shared,
    )


def _check_cores(request: Request, cores: Sequence[int]) -> None:
    if request.cpus > len(cores):
        raise NoCapacity(f"{request.cpus} CPU cores are needed for one run; {len(cores)} are usable here")


def _share(cores: Sequence[int], count: int, each: int) -> tuple[list[tuple[int, ...]], bool]:
    """`count` sets of `each` cores, dealt out in turn, and whether some core is in two of them."""
    shares = [
        tuple(sorted({cores[(number * each + place) % len(cores)] for place in range(each)})) for number in range(count)
    ]
    return shares, count * each > len(cores)
