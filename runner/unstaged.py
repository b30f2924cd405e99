"""Takes runs back whose machine falls silent before anything was started there: another host may have room for them."""

from __future__ import annotations

from collections.abc import Callable

from runner.records import RunState
from runner.run_facts import Phase
from runner.store import changes
from runner.store.facts import read_run
from runner.store.session import Session

PATIENCE_S = 60.0
"""A connection that breaks is made anew within seconds; what was brought so far is not given up for less."""


class Unstaged:
    """Since when a run cannot be staged because its host does not answer. The clocks are injected."""

    def __init__(self, session: Session, now: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._session = session
        self._now = now
        self._monotonic = monotonic
        self._since_s: dict[str, float] = {}

    def reached(self, run: str) -> None:
        """Its host answers."""
        self._since_s.pop(run, None)

    def lost(self, run: str) -> None:
        """Its host did not answer: after PATIENCE_S it waits for a slot again, unless something of it may run there."""
        since_s = self._since_s.setdefault(run, self._monotonic())
        if self._monotonic() - since_s < PATIENCE_S:
            return
        del self._since_s[run]
        with self._session.transaction() as connection:
            found = read_run(connection, run)
            attempt = found.attempt
            is_staging = found.state in (RunState.PLACED, RunState.STAGING)
            if attempt is None or attempt.phase != Phase.INTENDED or not is_staging:
                return
            changes.set_attempt(connection, run, attempt.number, phase="gone", sync="done", ended=self._now())
            said = f"its host fell silent before anything was started on {attempt.slot}"
            changes.move_run(connection, run, RunState.QUEUED, said, self._now(), attempt=attempt.number)
