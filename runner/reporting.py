"""Has a child write the report of every study that has ended; the controller itself never draws."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from runner.home import Home
from runner.records import ENDED
from runner.store import changes, history
from runner.store.session import Session

Report = Callable[[Home, str], "subprocess.Popen[bytes]"]


class Reporting:
    """One child for each study that is due; says of each what became of it. The clock is injected."""

    def __init__(self, session: Session, home: Home, now: Callable[[], float], report: Report) -> None:
        self._session = session
        self._home = home
        self._now = now
        self._report = report
        self._children: dict[str, tuple[subprocess.Popen[bytes], float]] = {}  # with the moment each was started

    def step(self) -> bool:
        """Start what is due, note what has ended; says whether a report is being written."""
        with self._session.reading() as connection:
            due = history.studies_without_report(connection, [str(state) for state in ENDED])
        for study in due:
            if study not in self._children:
                self._children[study] = (self._report(self._home, study), self._now())
        for study, (process, started) in list(self._children.items()):
            code = process.poll()
            if code is not None:
                del self._children[study]
                self._note(study, code, started)
        return bool(self._children)

    def _note(self, study: str, code: int, started: float) -> None:
        """The event bears the time of the start: what changed while the report was written is not in it."""
        path = self._home.report(study) / "report.md"
        said = f"written to {path}" if code == 0 else f"exit code {code}; see {self._home.log}"
        with self._session.transaction() as connection:
            changes.add_event(connection, started, "report", said, study=study, data={"code": code})
