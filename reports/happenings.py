"""What happened to the runs of a study beyond the ordinary course, newest last. Pure.

Everything is taken from the events as they were written, so that a report of one state is the same, byte for byte.
Machines that were rented for the study and given back have a line for each thing that happened to them. What becomes of
slots after a run, and who was told of what, is no part of the study.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from reports.readings import run_label
from reports.study import EventView, StudyView
from reports.wording import number

MOST_TOLD = 40
ORDINARY = frozenset({"queued", "placed", "staging", "starting", "running", "finished"})
OTHER_STATES = frozenset({"stopping", "aborted", "failed", "lost", "preempted", "cancelled"})
REMARKS = frozenset({"warning", "trouble", "stop", "extended", "amended", "metrics_restarted", "rescue"})
MACHINES = frozenset({"rented", "released"})
RENTING, LIVENESS = "renting:", "liveness:"
_PRELUDES = frozenset({"stopping", "extended"})  # the change that follows them gives the same reason
_LAST_SECOND = 253402300799  # of the year 9999


@dataclass(frozen=True, slots=True)
class Happenings:
    """One line each for the newest; `left_out` counts the earlier ones."""

    lines: tuple[str, ...]
    left_out: int


def happenings(study: StudyView) -> Happenings:
    """The newest state changes and remarks that are not of the ordinary course."""
    found = [("the study", event) for event in [*_told(study.events), *_of_machines(study.events)]]
    found += [(run_label(run), event) for run in study.runs for event in _told(run.events)]
    found.sort(key=lambda one: (one[1].number, one[1].time))
    newest = found[-MOST_TOLD:]
    return Happenings(tuple(_line(name, event) for name, event in newest), len(found) - len(newest))


def liveness_remarks(study: StudyView) -> str:
    """What was remarked of processes and not of curves: `A-s0 throughput_collapse, B-s0 silent`; empty without any."""
    found = dict.fromkeys(
        f"{run_label(run)} {_concern(event)}"
        for run in study.runs
        for event in run.events
        if event.what.startswith(LIVENESS) and not event.announced
    )
    return ", ".join(found)


def _concern(event: EventView) -> str:
    name, _, does = event.what.removeprefix(LIVENESS).partition(":")
    return f"{name} (in shadow)" if does == "shadow" else name


def _of_machines(events: Iterable[EventView]) -> list[EventView]:
    """The renting and giving back of machines; what was said again of one machine is told once, at its newest time."""
    found: dict[tuple[str, int | None], list[EventView]] = {}
    for event in events:
        if (event.what in MACHINES or event.what.startswith(RENTING)) and not event.announced:
            found.setdefault((event.what, event.lease), []).append(event)
    return [
        one[-1] if len(one) == 1 else replace(one[-1], reason=f"{one[-1].reason} (the last of {len(one)})")
        for one in found.values()
    ]


def _told(events: Iterable[EventView]) -> list[EventView]:
    """Of one run's events in their order: unusual states, back-moves, and what the runner had to remark."""
    told: list[EventView] = []
    for event in _unusual(events):
        is_repeated = bool(told) and _kind(told[-1]) in _PRELUDES and event.reason.startswith(told[-1].reason)
        if is_repeated and _kind(event) in ORDINARY | OTHER_STATES:
            told.pop()
        told.append(event)
    return told


def _unusual(events: Iterable[EventView]) -> Iterator[EventView]:
    before = ""
    for event in events:
        kind = _kind(event)
        if event.announced:  # a trainer may call its announcement what it likes
            continue
        is_back = (kind == "queued" and before != "") or (kind == "running" and before == "lost")
        if kind in OTHER_STATES | REMARKS or kind.startswith(LIVENESS) or is_back:
            yield event
        if kind in ORDINARY | OTHER_STATES:
            before = kind


def _kind(event: EventView) -> str:
    return event.what.partition("(")[0]


def _line(name: str, event: EventView) -> str:
    step = "" if event.step is None else f" at step {event.step}"
    return f"{_utc(event.time)}, {name}: {event.what}{step}" + (f": {event.reason}" if event.reason else "")


def _utc(time: float) -> str:
    if not math.isfinite(time) or not 0 <= time <= _LAST_SECOND:
        return f"time {number(time)}"
    return f"{datetime.fromtimestamp(int(time), tz=UTC):%Y-%m-%d %H:%M:%S}"
