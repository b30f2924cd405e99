"""Remembers which attempts cannot be seen because their machine does not answer: that accuses nobody.

While it lasts no time counts against them, nothing is concluded, and their slots stay taken; what they wrote meanwhile
comes when the machine answers again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from runner.records import Health
from runner.store import changes
from runner.store.facts import StoredAttempt, StoredRun
from runner.store.session import Session

SILENT_HOST = "host_silent"
ANSWERS_AGAIN = "host_answers"
"""Events of a run whose machine fell silent, and answered again."""


class OutOfSight:
    """Which attempts are out of sight now. A new controller begins with what the runs' health says."""

    def __init__(self, session: Session, now: Callable[[], float]) -> None:
        self._session = session
        self._now = now
        self._lost: set[tuple[str, int]] = set()

    def lost(self, run: StoredRun, attempt: StoredAttempt, why: str) -> None:
        """Its machine does not answer; told once."""
        if (run.run, attempt.number) in self._lost:
            return
        self._lost.add((run.run, attempt.number))
        self._tell(run, attempt, SILENT_HOST, f"its machine does not answer: {why}; it goes on there", Health.UNKNOWN)

    def seen(self, run: StoredRun, attempt: StoredAttempt) -> None:
        """Its machine answers."""
        if (run.run, attempt.number) not in self._lost:
            return
        self._lost.discard((run.run, attempt.number))
        judged = Health(run.verdict["health"]) if run.verdict else Health.OK
        self._tell(run, attempt, ANSWERS_AGAIN, "its machine answers again", judged)

    def forget(self, names: Collection[str]) -> None:
        """Keep in memory only what belongs to these runs."""
        self._lost = {key for key in self._lost if key[0] in names}

    def _tell(self, run: StoredRun, attempt: StoredAttempt, what: str, said: str, health: Health) -> None:
        with self._session.transaction() as connection:
            changes.add_event(connection, self._now(), what, said, study=run.study, run=run.run, attempt=attempt.number)
            changes.set_run(connection, run.run, health=health)
