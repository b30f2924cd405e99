"""Says once that the disk of the home is nearly full: a checkpoint that does not fit ends a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from provisioning.base import HostLost
from runner.home import RESERVE_MIB, Home
from runner.places import Places
from runner.run_facts import Phase
from runner.store import changes
from runner.store.facts import StoredRun
from runner.store.session import Session


class DiskWatch:
    """Looks at the disk while anything is alive. The clock is injected."""

    def __init__(self, session: Session, home: Home, places: Places, now: Callable[[], float]) -> None:
        self._session = session
        self._home = home
        self._places = places
        self._now = now
        self._has_warned = False

    def look(self, runs: Sequence[StoredRun]) -> None:
        """Warn at every live run of the open ones, the first time that little is left."""
        live = [run for run in runs if run.attempt is not None and run.attempt.phase == Phase.LIVE]
        if self._has_warned or not live:
            return
        assert live[0].attempt is not None
        try:
            free_mib = self._places.by_lease(live[0].attempt.lease).shell.free_disk_mib(str(self._home.root))
        except HostLost:
            return  # a host that does not answer is told of where its runs are looked at
        if free_mib >= RESERVE_MIB:
            return
        self._has_warned = True
        reason = f"{self._home.root}: only {free_mib} MiB of disk are left; free some, or checkpoints will fail"
        with self._session.transaction() as connection:
            for run in live:
                changes.add_event(connection, self._now(), "warning", reason, study=run.study, run=run.run)
