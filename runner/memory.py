"""The curves of live runs in memory, so that judging a long run does not read all of its points again and again.

What is remembered always equals the stored view; whatever is not plainly an addition makes it read again.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, select

from runner.metric_formats import Record
from runner.records import Series
from runner.store import tables
from runner.store.curves import as_series, read_curves


class CurveMemory:
    """Curves by run, without those of the machine (sys/, memory/)."""

    def __init__(self) -> None:
        self._curves: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
        self._attempt: dict[str, int] = {}

    def add(self, run: str, attempt: int, records: Iterable[Record]) -> None:
        """Append what was just stored; anything out of order makes the run be read again."""
        curves = self._curves.get(run)
        if curves is None:
            return
        if self._attempt.get(run) != attempt:
            self.forget(run)
            return
        for record in records:
            for name, value in record.values.items():
                if name.startswith(("sys/", "memory/")):
                    continue
                steps, values = curves.setdefault(name, ([], []))
                if steps and record.step <= steps[-1]:
                    self.forget(run)
                    return
                steps.append(record.step)
                values.append(value)

    def forget(self, run: str) -> None:
        """Read the run from the database the next time."""
        self._curves.pop(run, None)
        self._attempt.pop(run, None)

    def series(self, connection: Connection, run: str) -> dict[str, Series]:
        """The joined curves of a run, from memory when possible."""
        if run not in self._curves:
            stored = as_series(read_curves(connection, run))
            self._curves[run] = {name: (list(one.steps), list(one.values)) for name, one in stored.items()}
            self._attempt[run] = connection.execute(
                select(tables.attempts.c.attempt)
                .where(tables.attempts.c.run == run)
                .order_by(tables.attempts.c.attempt.desc())
            ).scalar()  # type: ignore[assignment]
        return {name: Series(name, tuple(steps), tuple(values)) for name, (steps, values) in self._curves[run].items()}

    def events(self, connection: Connection, run: str) -> tuple[tuple[int, str], ...]:
        """What the trainer announced: (step, event) in order."""
        events = tables.events
        rows = connection.execute(
            select(events.c.step, events.c.what)
            .where(events.c.run == run, events.c.step.is_not(None))
            .order_by(events.c.step, events.c.id)
        )
        return tuple((row.step, row.what) for row in rows)
