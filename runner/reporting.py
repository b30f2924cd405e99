"""Has a child write the report of every study that has ended; the controller itself never draws."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from runner.home import Home
from runner.records import ENDED
from runner.store import changes, history
from runner.store.session import Session

Report = Callable[[Home, str], "subprocess.Popen[bytes]"]

LIMIT_S = 1800.0
"""What a report may take. It reads and draws what is stored, so one that takes longer waits for something."""


@dataclass(frozen=True, slots=True)
class _Child:
    """A report being written: of which state of the study, and since when."""

    process: subprocess.Popen[bytes]
    covers: int
    started: float
    started_s: float


class Reporting:
    """One child for each study that is due; says of each what became of it. The clocks are injected."""

    def __init__(
        self,
        session: Session,
        home: Home,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        report: Report,
        limit_s: float = LIMIT_S,
    ) -> None:
        self._session = session
        self._home = home
        self._now = now
        self._monotonic = monotonic
        self._report = report
        self._limit_s = limit_s
        self._children: dict[str, _Child] = {}

    def step(self) -> bool:
        """Start what is due, note what has ended; says whether a report is being written."""
        with self._session.reading() as connection:
            due = history.studies_without_report(connection, [str(state) for state in ENDED])
        for study, covers in due.items():
            if study not in self._children:
                self._start(study, covers)
        for study, child in list(self._children.items()):
            code = child.process.poll()
            if code is None and self._monotonic() - child.started_s < self._limit_s:
                continue
            del self._children[study]
            if code is None:
                child.process.kill()
                child.process.wait()
                said = f"not written: it took longer than {self._limit_s:.0f} s; try `runner report {study}`"
            else:
                path = self._home.report(study) / "report.md"
                said = f"written to {path}" if code == 0 else f"exit code {code}; see {self._home.log}"
            self._note(study, child.covers, child.started, said, code)
        return bool(self._children)

    def _start(self, study: str, covers: int) -> None:
        started = self._now()
        try:
            process = self._report(self._home, study)
        except OSError as error:  # no process, no memory: the runs are safe, and a person may ask for it again
            self._note(study, covers, started, f"not written: {error}; try `runner report {study}`", None)
            return
        self._children[study] = _Child(process, covers, started, self._monotonic())

    def _note(self, study: str, covers: int, started: float, said: str, code: int | None) -> None:
        """The event names the state of the study that the report began with; what changed since is not in it."""
        with self._session.transaction() as connection:
            changes.add_event(connection, started, "report", said, study=study, data={"code": code, "covers": covers})
