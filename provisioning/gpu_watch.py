"""Whose memory is on a GPU: this home's attempts, programs that draw, or somebody who computes. Pure.

    (what the driver says of a GPU, who its processes are) -> ours, foreign, graphics

A driver may list a process without its memory, or with a number that means nothing here (another container), or one
that has just ended. Such a process is not guessed at: what counts is the memory that no visible process accounts for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from provisioning.base import GpuUse, ProcessOwner, SlotProbe

FOREIGN_MIB = 500
"""A process of somebody else that computes on a GPU and holds more than this competes with a run."""

IDLE_FLOOR_MIB = 1024
"""A GPU that nobody uses may show up to this much: the driver's own."""


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process as the driver lists it. `mib` is None when the driver does not say."""

    pid: int
    mib: int | None
    is_graphics: bool = False


@dataclass(frozen=True, slots=True)
class GpuReading:
    """What the driver said of one GPU in one look; a process that computes and draws is listed twice."""

    uuid: str
    used_mib: int
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class _Listed:
    """One visible process of a GPU."""

    pid: int
    mib: int | None
    is_graphics: bool
    owner: ProcessOwner
    is_ours: bool


def slot_probe(readings: Mapping[str, GpuReading | str], owners: Mapping[int, ProcessOwner], home_id: str) -> SlotProbe:
    """One look at the GPUs of a slot. A reading that is a sentence says why that GPU does not answer.

    `owners` holds the processes that are visible here, by number.
    """
    said = {uuid: reading for uuid, reading in readings.items() if isinstance(reading, GpuReading)}
    listed = {uuid: _visible(reading.processes, owners, home_id) for uuid, reading in said.items()}
    foreign, notes = [], []
    for uuid, reading in said.items():
        found, remarks = _competing(reading, listed[uuid])
        foreign += found
        notes += remarks
    return SlotProbe(
        used_mib={uuid: reading.used_mib for uuid, reading in said.items()},
        graphics_mib={
            uuid: sum(one.mib or 0 for one in found if one.is_graphics and not one.is_ours)
            for uuid, found in listed.items()
        },
        others_mib={uuid: sum(one.mib or 0 for one in found if not one.is_ours) for uuid, found in listed.items()},
        foreign=tuple(foreign),
        ours=tuple(_use(uuid, one) for uuid, found in listed.items() for one in found if one.is_ours),
        problem="; ".join(
            f"{uuid} does not answer: {text}" for uuid, text in readings.items() if isinstance(text, str)
        ),
        notes=tuple(notes),
    )


def is_of_home(attempt: str, home_id: str) -> bool:
    """Whether the mark of an attempt is of this home."""
    return bool(home_id) and attempt.startswith(f"{home_id}/")


def home_of(label: str) -> str:
    """The home in a lease's label (`armature/HOME/LEASE`); '' when it names none."""
    parts = label.split("/")
    return parts[1] if len(parts) == 3 else ""


def _visible(processes: Sequence[GpuProcess], owners: Mapping[int, ProcessOwner], home_id: str) -> tuple[_Listed, ...]:
    """Each visible process once; one that draws and computes counts as computing, with its larger number."""
    merged: dict[int, GpuProcess] = {}
    for process in processes:
        before = merged.get(process.pid)
        if before is not None:
            mib = max((one.mib for one in (before, process) if one.mib is not None), default=None)
            process = GpuProcess(process.pid, mib, before.is_graphics and process.is_graphics)
        merged[process.pid] = process
    return tuple(
        _Listed(one.pid, one.mib, one.is_graphics, owners[one.pid], is_of_home(owners[one.pid].attempt, home_id))
        for one in merged.values()
        if one.pid in owners
    )


def _competing(reading: GpuReading, listed: Sequence[_Listed]) -> tuple[list[GpuUse], list[str]]:
    """Who competes for one GPU, and remarks about what is let pass."""
    strangers = [one for one in listed if not one.is_ours and not one.is_graphics]
    found = [_use(reading.uuid, one) for one in strangers if one.mib is not None and one.mib > FOREIGN_MIB]
    notes = [
        f"{reading.uuid}: {_use(reading.uuid, one)}; not more than {FOREIGN_MIB} MiB, so it is let pass"
        for one in strangers
        if one.mib is not None and one.mib <= FOREIGN_MIB
    ]
    unseen_mib = reading.used_mib - sum(one.mib or 0 for one in listed)
    if unseen_mib <= IDLE_FLOOR_MIB:
        return found, notes
    if any(one.is_ours and one.mib is None for one in listed):
        notes.append(f"{reading.uuid}: the driver does not say how much memory our own processes hold")
        return found, notes
    silent = next((one for one in strangers if one.mib is None), None)
    if silent is None:
        found.append(GpuUse(reading.uuid, unseen_mib, None))
    else:
        found.append(_use(reading.uuid, silent, unseen_mib))
        notes.append(f"{reading.uuid}: the driver does not say how much memory each process holds")
    return found, notes


def _use(uuid: str, one: _Listed, mib: int | None = None) -> GpuUse:
    held_mib = (one.mib or 0) if mib is None else mib
    return GpuUse(uuid, held_mib, one.pid, one.owner.user, one.owner.command, one.owner.attempt)
