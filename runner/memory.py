"""The curves of live runs in memory, so that judging a long run does not read all of its points again and again.

What is remembered always equals the stored view; whatever is not plainly an addition makes it read again.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Iterable
from itertools import islice

from sqlalchemy import Connection

from runner.records import Series
from runner.store.curves import as_series, is_judged, read_curves
from runner.store.opening import driver_of
from runner.store.points import Column


class CurveMemory:
    """Curves by run, without those of the machine (sys/, memory/): 16 bytes a point."""

    def __init__(self) -> None:
        self._curves: dict[str, dict[str, tuple[array[int], array[float]]]] = {}
        self._attempt: dict[str, int] = {}

    def add(self, run: str, attempt: int, fresh: Iterable[Column]) -> None:
        """Append what was stored just now; anything out of order makes the run be read again."""
        curves = self._curves.get(run)
        if curves is None:
            return
        if self._attempt.get(run) != attempt:
            self.forget(run)
            return
        for column in fresh:
            if not is_judged(column.name):
                continue
            steps, values = curves.setdefault(column.name, (array("q"), array("d")))
            behind = not steps or column.steps[0] > steps[-1]
            if not behind or not all(map(operator.lt, column.steps, islice(column.steps, 1, None))):
                self.forget(run)
                return
            steps.extend(column.steps)
            values.extend(column.values)

    def forget(self, run: str) -> None:
        """Read the run from the database the next time."""
        self._curves.pop(run, None)
        self._attempt.pop(run, None)

    def series(self, connection: Connection, run: str) -> dict[str, Series]:
        """The joined curves of a run, from memory when possible."""
        if run not in self._curves:
            stored = as_series(read_curves(connection, run))
            self._curves[run] = {name: (array("q", one.steps), array("d", one.values)) for name, one in stored.items()}
            query = "SELECT coalesce(max(attempt), 0) FROM attempts WHERE run = ?"
            (self._attempt[run],) = driver_of(connection).execute(query, (run,)).fetchone()
        return {name: Series(name, tuple(steps), tuple(values)) for name, (steps, values) in self._curves[run].items()}

    def events(self, connection: Connection, run: str) -> tuple[tuple[int, str], ...]:
        """What the trainer announced: (step, event) in order."""
        query = "SELECT step, what FROM events WHERE run = ? AND step IS NOT NULL ORDER BY step, id"
        return tuple(driver_of(connection).execute(query, (run,)))
