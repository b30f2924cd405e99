"""The one view of a run's metrics: its attempts joined into one curve per name.

An attempt that resumed at step N replaces what earlier attempts wrote behind N: of the earlier ones the points up to N
count, of the resumed one those behind N, and its points at or before N only where nothing was there yet (a validation
that was cut short, or the full validation of an earlier best checkpoint). An attempt without a resume starts at 0.
Judge, status and report read nothing but this view.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from runner.records import AttemptKind, Series
from runner.store.opening import driver_of


@dataclass(frozen=True, slots=True)
class AttemptPoints:
    """The points of one attempt under one name: step -> (value, time). `resumed_from` is 0 for a fresh start."""

    attempt: int
    resumed_from: int
    points: Mapping[int, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Joined:
    """One curve over all attempts: strictly increasing steps with value, time and attempt of each."""

    steps: tuple[int, ...]
    values: tuple[float, ...]
    times: tuple[float, ...]
    attempts: tuple[int, ...]


def join(attempts: Iterable[AttemptPoints]) -> Joined:
    """Join the attempts of one name in their order (see the head of this file)."""
    merged: dict[int, tuple[float, float, int]] = {}
    for part in attempts:
        merged = {step: point for step, point in merged.items() if step <= part.resumed_from}
        for step, (value, time) in part.points.items():
            if step > part.resumed_from or step not in merged:
                merged[step] = (value, time, part.attempt)
    steps = sorted(merged)
    return Joined(
        tuple(steps),
        tuple(merged[step][0] for step in steps),
        tuple(merged[step][1] for step in steps),
        tuple(merged[step][2] for step in steps),
    )


def read_curves(
    connection: Connection, run: str, names: Sequence[str] | None = None, *, begun_only: bool = False
) -> dict[str, Joined]:
    """Every curve of a run, or those named. An evaluation or an autopsy cuts nothing off: it only adds what was
    missing.

    `begun_only` leaves out attempts that have neither announced a resume nor written one of these metrics: where they
    begin, and what they cut off, nobody knows yet.
    """
    wanted = "" if names is None else f" AND name IN ({', '.join('?' * len(names))})"
    query = (
        "SELECT name, attempt, step, value, time FROM series JOIN points ON points.series = series.id "
        f"WHERE run = ?{wanted} ORDER BY attempt, step"
    )
    parts: dict[str, dict[int, dict[int, tuple[float, float]]]] = {}
    for name, attempt, step, value, time in driver_of(connection).execute(query, (run, *(names or ()))):
        value_or_nan = float("nan") if value is None else value
        parts.setdefault(name, {}).setdefault(attempt, {})[step] = (value_or_nan, time)
    resumed = _starting_steps(connection, run) if parts else {}
    if begun_only:
        begun = {attempt for found in parts.values() for attempt in found}
        resumed = {attempt: step for attempt, step in resumed.items() if step > 0 or attempt in begun}
    return {
        name: join(AttemptPoints(attempt, resumed[attempt], found.get(attempt, {})) for attempt in sorted(resumed))
        for name, found in sorted(parts.items())
    }


def as_series(curves: Mapping[str, Joined]) -> dict[str, Series]:
    """The curves as the judge wants them, without those of the machine."""
    return {name: Series(name, curve.steps, curve.values) for name, curve in curves.items() if is_judged(name)}


def is_judged(name: str) -> bool:
    """Whether a metric is of the training; those of the machine are not judged."""
    return not name.startswith(("sys/", "memory/"))


def _starting_steps(connection: Connection, run: str) -> dict[int, int]:
    """Attempt -> the step up to which earlier attempts still count."""
    rows = driver_of(connection).execute("SELECT attempt, kind, resumed_from FROM attempts WHERE run = ?", (run,))
    everything = 2**62
    return {
        attempt: everything if kind != AttemptKind.TRAIN else (resumed_from or 0)
        for attempt, kind, resumed_from in rows
    }
