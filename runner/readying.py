"""Makes hosts ready for runs: their environment and data are begun, looked at in each round, waited for by nobody.

What a host has made once it has for every run that needs the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from sqlalchemy import func, select

from provisioning.base import StagingFailed
from runner.home import Home
from runner.launch_spec import Launchable, attempt_dir
from runner.places import Place
from runner.screen import printable
from runner.spec.models import ResolvedArm
from runner.staging import environment, jobs
from runner.staging.jobs import Failed, Job, Site
from runner.staging.preflight import NoPreflight, preflight
from runner.store import changes, tables
from runner.store.facts import StoredRun
from runner.store.session import Session

STAGING = ".staging"
"""The folder of what runs share, below the home and below the folder of runs on every host."""

NO_PREFLIGHT = "no_preflight"
SHOWN_LINES = 2
CHOOSE_PYTHON = "which interpreter is used: `python` of the host in hosts.yaml, or `environment.python` of the arm"

STARTS = ("launch", "resume", "extend")
"""What a person asks for that makes runs start."""


class Readying:
    """Which jobs of which host are under way; everything else stands in their exit records. The clock is injected."""

    def __init__(self, session: Session, home: Home, now: Callable[[], float]) -> None:
        self._session = session
        self._home = home
        self._now = now
        self._under_way: dict[tuple[int, str], None] = {}
        self._told: set[tuple[str, int]] = set()
        self._keys: dict[tuple[str, str, str, str | None], str | None] = {}

    def folders(self) -> Iterator[tuple[int, str]]:
        """(lease, folder) of the jobs under way: what is written there must be seen."""
        yield from self._under_way

    def site(self, place: Place, run: StoredRun, variables: Mapping[str, str]) -> Site:
        """Where the jobs of a host work. `variables` is what every process of the run gets; it may hold secrets."""
        seen = self._home.root / STAGING / (place.host or "here")
        arm_dir = self._home.root / run.snapshot["root"] / run.snapshot["arm_dir"]
        return jobs.site_of(place.shell, self._session.home_id, seen, arm_dir, variables)

    def key(self, run: StoredRun, arm: ResolvedArm) -> str | None:
        """What its environment is known by; None without a set-up command."""
        if arm.environment["setup"] is None:
            return None
        # The code is frozen, so the answer stays; every round asks.
        known = (run.snapshot["hash"], run.snapshot["arm_dir"], arm.environment["setup"], arm.environment["python"])
        if known not in self._keys:
            root = self._home.root / run.snapshot["root"]
            self._keys[known] = environment.key_of(arm, root, run.snapshot["arm_dir"], run.snapshot["hash"])
        return self._keys[known]

    def is_ready(self, place: Place, run: StoredRun, arm: ResolvedArm, site: Site) -> bool:
        """Whether the host has the run's environment and data; else they are made. Raises StagingFailed, HostLost and
        SpawnRefused."""
        return self._are_done(place, run, jobs.jobs(arm, site, self.key(run, arm)))

    def has_stepped(
        self,
        place: Place,
        run: StoredRun,
        arm: ResolvedArm,
        wanted: Launchable,
        slot_environment: Mapping[str, str],
        variables: Mapping[str, str],
    ) -> bool:
        """Whether one real step was made on the run's slot, before its clock counts; else it is begun. A run that
        cannot be asked for a single one is believed, and its history says so. Raises as `is_ready` does."""
        assert run.attempt is not None
        run_dir = self._home.root / run.run
        found = preflight(wanted, arm.trainer, run.attempt.slot, slot_environment, variables, run_dir)
        if isinstance(found, NoPreflight):
            self._tell(run, NO_PREFLIGHT, f"no step was made before it counts: {found.why}")
            return True
        return self._are_done(place, run, (found,))

    def _are_done(self, place: Place, run: StoredRun, wanted: Sequence[Job]) -> bool:
        progress = jobs.advance(place.shell, wanted)
        waiting = {str(job.seen_dir) for job in progress.waiting}
        for job in wanted:
            self._under_way.pop((place.lease, str(job.seen_dir)), None)
        self._under_way |= dict.fromkeys((place.lease, folder) for folder in sorted(waiting))
        for job, failed in progress.tried_again:
            self._tell(run, "staging", f"{_said(failed)}; it is tried again (try {job.number + 1})", number=job.number)
        for job, failed in progress.failed:
            if not self._asked_since(job):
                raise StagingFailed(_said(failed))
            jobs.begin(place.shell, replace(job, number=job.number + 1))
            self._under_way[place.lease, str(job.seen_dir)] = None
            self._tell(run, "staging", f"{_said(failed)}; somebody has asked since: it is tried again", job.number)
        return progress.is_ready

    def _asked_since(self, failed: Job) -> bool:
        """Whether a person has asked for a run after we saw this job fail: what was missing may be there now."""
        wishes = select(func.max(tables.requests.c.time)).where(tables.requests.c.kind.in_(STARTS))
        with self._session.reading() as connection:
            asked_s = connection.execute(wishes).scalar_one_or_none()
        seen = attempt_dir(failed.seen_dir, failed.number) / "exit.json"
        # What is read of a host is written here when it comes, so this is our own clock.
        return asked_s is not None and seen.is_file() and asked_s > seen.stat().st_ctime

    def _tell(self, run: StoredRun, what: str, said: str, number: int = 0) -> None:
        key = (f"{run.run} {what}", number)
        if key in self._told:
            return
        self._told.add(key)
        attempt = None if run.attempt is None else run.attempt.number
        with self._session.transaction() as connection:
            changes.add_event(connection, self._now(), what, said, study=run.study, run=run.run, attempt=attempt)


def _said(failed: Failed) -> str:
    """Why, and the last lines that do not stand in that already."""
    reason = printable(failed.reason)
    lines = [line for one in failed.lines if (line := printable(one).strip()) and line not in reason][-SHOWN_LINES:]
    hint = f" ({CHOOSE_PYTHON})" if "ModuleNotFoundError" in reason else ""
    return reason + hint + (f"; it ended with: {' | '.join(lines)}" if lines else "")
