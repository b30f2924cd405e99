"""When a slot is free again, and when it may not be used. Pure.

    (what its GPUs held before, what a probe sees now, time waited) -> Released | Waiting | NotReleased(reason)
    (slot, probe) -> free, or why it is left out

A run that ended proves nothing about its slot: a worker may live on, a driver may keep memory. What is not given back
in time is put in quarantine, and comes out of it when a later probe finds it as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from provisioning.base import GpuUse, Leftover, ProcessIdentity, Slot, SlotProbe
from provisioning.gpu_watch import FOREIGN_MIB, IDLE_FLOOR_MIB

RETURN_MIB = 256
"""GPU memory may be this much above its value before the start."""

RELEASE_WITHIN_S = 30.0
REPROBE_S = 30.0
"""A slot in quarantine is looked at again no more often than this."""

AGE_SLACK_S = 5.0
"""How far two clocks may be apart where the age of a process is compared with the end of its attempt."""

NAMED_USERS = 3


@dataclass(frozen=True, slots=True)
class Before:
    """GPU memory by UUID, in MiB, just before an attempt started: all of it, and the part of visible others."""

    used_mib: Mapping[str, int] = field(default_factory=dict)
    others_mib: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Released:
    """The slot is as it was: it may be used."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not yet as it was, and there is time left: it counts as busy."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotReleased:
    """It was not given back in time."""

    reason: str


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A slot that may not be used since `since` (seconds since the epoch), and what would have to be gone."""

    id: int
    lease: int
    slot: Slot
    reason: str
    since: float
    before: Before | None = None
    leftovers: tuple[ProcessIdentity, ...] = ()


@dataclass(frozen=True, slots=True)
class Withheld:
    """A slot of the host that no run may start on now. `kind` is foreign, memory, quarantine, stray or silent:
    then nothing is known of it, and `slot` may be the whole host."""

    slot: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.slot}: {self.reason}"


def before_of(probe: SlotProbe) -> Before:
    """What is remembered of a slot before an attempt starts on it."""
    return Before(dict(probe.used_mib), dict(probe.others_mib))


def before_from_json(document: Mapping[str, Any] | None) -> Before | None:
    """`attempts.before` as it was stored; None when nothing was."""
    if not document or "used_mib" not in document:
        return None
    return Before(dict(document["used_mib"]), dict(document.get("others_mib", {})))


def is_released(before: Before | None, now: SlotProbe, waited_s: float) -> Released | Waiting | NotReleased:
    """Whether a slot has been given back, `waited_s` seconds after its attempt ended.

    The memory of visible others is left out on both sides: who came in the meantime is not ours to give back.
    """
    held = list(_still_held(before, now))
    if not held:
        return Released()
    reason = "; ".join(held)
    return Waiting(reason) if waited_s < RELEASE_WITHIN_S else NotReleased(reason)


def _still_held(before: Before | None, now: SlotProbe) -> Iterator[str]:
    if now.leftovers:
        pids = ", ".join(str(found.identity.pid) for found in now.leftovers)
        yield f"processes of the attempt still run (pid {pids})"
    if now.problem:
        yield now.problem
    for uuid, used_mib in now.used_mib.items():
        own_mib = used_mib - now.others_mib.get(uuid, 0)
        if before is None or uuid not in before.used_mib:
            if own_mib > IDLE_FLOOR_MIB:
                yield f"{own_mib:,} MiB of {uuid} are in use{_holders(uuid, now)}"
            continue
        more_mib = own_mib - (before.used_mib[uuid] - before.others_mib.get(uuid, 0))
        if more_mib > RETURN_MIB:
            yield f"{uuid} holds {more_mib:,} MiB more than before the start{_holders(uuid, now)}"


def _holders(uuid: str, now: SlotProbe) -> str:
    held = [str(use) for use in now.ours if use.gpu_uuid == uuid]
    return f" ({', '.join(held)})" if held else ""


def of_the_attempt(leftovers: Sequence[Leftover], since_end_s: float) -> tuple[Leftover, ...]:
    """Those that ran already when the attempt ended: a younger one only got the number of one that is gone."""
    return tuple(found for found in leftovers if found.age_s >= since_end_s - AGE_SLACK_S)


def is_probe_due(last_s: float | None, now_s: float) -> bool:
    """Whether a slot in quarantine is looked at again, by the monotonic times of the last look and of now."""
    return last_s is None or now_s - last_s >= REPROBE_S


def lift_reason(quarantine: Quarantine, probe: SlotProbe) -> str:
    """Why a slot may be used again; '' when it may not yet."""
    alive = tuple(found for found in probe.leftovers if found.identity in quarantine.leftovers)
    if not isinstance(is_released(quarantine.before, replace(probe, leftovers=alive), 0.0), Released):
        return ""
    gone = "the processes that were left are gone" if quarantine.leftovers else ""
    back = "its GPU memory is back" if quarantine.slot.gpu_uuids else ""
    return " and ".join(filter(None, (gone, back))) or "a probe finds nothing wrong with it any more"


def withheld(slot: Slot, probe: SlotProbe, *, share_gpus: bool, min_vram_gib: float) -> Withheld | None:
    """Why a run may not start on a slot, which no live attempt has, for what a probe saw there; None when it may."""
    if probe.foreign and not share_gpus:
        return Withheld(slot.name, "foreign", f"{named(probe.foreign)}; --share-gpus starts beside them")
    stray = [use for use in probe.ours if use.mib > FOREIGN_MIB]
    if stray:
        return Withheld(slot.name, "stray", f"an attempt of ours that is given up still runs there: {named(stray)}")
    left_mib = offered(slot, probe).vram_mib
    if slot.gpu_uuids and left_mib < min_vram_gib * 1024:
        taken = f"other programs hold {slot.vram_mib - left_mib:,} of {slot.vram_mib:,} MiB"
        return Withheld(slot.name, "memory", f"{taken}; resources.min_vram_gib asks for {min_vram_gib:g} GiB")
    return None


def offered(slot: Slot, probe: SlotProbe) -> Slot:
    """The slot with the GPU memory that others leave it: those that draw, those that are let pass or shared with."""
    if not slot.gpu_uuids:
        return slot
    unseen = {use.gpu_uuid: use.mib for use in probe.foreign if use.pid is None}
    taken_mib = max(probe.others_mib.get(uuid, 0) + unseen.get(uuid, 0) for uuid in slot.gpu_uuids)
    return replace(slot, vram_mib=max(0, slot.vram_mib - taken_mib))


def named(uses: Sequence[GpuUse]) -> str:
    """The largest users of a GPU in words."""
    largest = sorted(uses, key=lambda use: -use.mib)
    more = f", and {len(uses) - NAMED_USERS} more" if len(uses) > NAMED_USERS else ""
    return ", ".join(map(str, largest[:NAMED_USERS])) + more
