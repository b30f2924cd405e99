"""What a run is compared with: its siblings' primary metric, and its own scores on the same samples.

Both come with validations, so they are read again only when the run has moved on by a hundredth of its budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from runner.home import Home
from runner.judge.evaluations import POOL_SHARE
from runner.judge.stall import FIRST_SHARE
from runner.records import Series, Sibling
from runner.spec.models import ResolvedArm
from runner.store.curves import as_series, read_curves
from runner.store.facts import StoredRun
from runner.store.opening import driver_of
from runner.store.recorded import eval_set, paired_scores

Scores = Mapping[int, Mapping[str, float]]


class Comparing:
    """Remembers what it read for each run. Nothing of it must outlive the controller."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._siblings: dict[str, tuple[int, Sequence[Sibling]]] = {}
        self._scores: dict[str, tuple[int, Scores]] = {}
        self._eval_sets: dict[str, str] = {}

    def siblings(
        self, connection: Connection, run: StoredRun, arm: ResolvedArm, series: Mapping[str, Series]
    ) -> Sequence[Sibling]:
        """The runs of the study whose primary was measured on the same samples; none before any rule would ask."""
        newest = _newest(arm, series)
        if newest is None or run.steps_total is None or newest < FIRST_SHARE * run.steps_total:
            return ()
        known = self._siblings.get(run.run)
        if known is None or newest - known[0] >= POOL_SHARE * run.steps_total:
            known = self._siblings[run.run] = (newest, self._read_siblings(connection, run, arm))
        return known[1]

    def scores(self, run: StoredRun, arm: ResolvedArm, series: Mapping[str, Series]) -> Scores:
        """Per-sample scores of the primary: step -> sample -> value. Ask once a warning makes them worth reading."""
        newest = _newest(arm, series)
        if arm.command is not None or arm.primary is None or newest is None:
            return {}
        known = self._scores.get(run.run)
        if known is None or newest > known[0]:
            known = self._scores[run.run] = (newest, paired_scores(self._home.root / run.run, arm.primary.metric))
        return known[1]

    def forget(self, run: str) -> None:
        """Nobody will ask about the run any more."""
        self._siblings.pop(run, None)
        self._scores.pop(run, None)

    def _read_siblings(self, connection: Connection, run: StoredRun, arm: ResolvedArm) -> list[Sibling]:
        assert arm.primary is not None
        metric, mine = arm.primary.metric, self._eval_set(run.run)
        rows = driver_of(connection).execute(
            "SELECT runs.run, runs.steps_total FROM runs JOIN series ON series.run = runs.run AND series.name = ? "
            "WHERE runs.study = ? AND runs.run != ? AND runs.superseded_by IS NULL AND runs.steps_total IS NOT NULL "
            "GROUP BY runs.run ORDER BY runs.run",
            (metric, run.study, run.run),
        )
        return [
            Sibling(name, as_series(read_curves(connection, name, [metric]))[metric], steps_total)
            for name, steps_total in rows.fetchall()
            if self._eval_set(name) == mine
        ]

    def _eval_set(self, run: str) -> str:
        """What a run was evaluated on; once it is known it never changes."""
        if not self._eval_sets.get(run):
            self._eval_sets[run] = eval_set(self._home.root / run)
        return self._eval_sets[run]


def _newest(arm: ResolvedArm, series: Mapping[str, Series]) -> int | None:
    """The step of the newest value of the primary metric."""
    curve = None if arm.primary is None else series.get(arm.primary.metric)
    return None if curve is None or not curve.steps else curve.steps[-1]
