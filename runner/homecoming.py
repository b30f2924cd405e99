"""Brings run folders home from other machines once nothing works in them, and says when a machine may go.

An attempt is `pending` until every file of its run that policy wants is here with the hash that it has there; `waived`
when time ran out, and then an event lists what is missing. Nobody waits here: each round looks at what has come.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from provisioning.base import HostLost, ProvisioningError
from provisioning.questions import CarriesOut
from provisioning.run_checkpoints import LAST_WRITTEN, checkpoint_step
from runner.home import Home
from runner.places import Places
from runner.records import ON_A_SLOT
from runner.spec.models import TRAINER
from runner.store import changes
from runner.store.opening import driver_of
from runner.store.session import Session

if TYPE_CHECKING:
    from provisioning.evacuation import Evacuated, Evacuation

SYNCED = "synced"
WAIVED = "waived"
"""Events: all is here; what is missing was given up."""

NAMED_FILES = 20
"""An event names so many files; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: how soon a failed try is repeated, and how long what does not come is waited for. A host that does not
    answer costs no try; a file that cannot be had is tried `tries` times."""

    again_s: float = 10.0
    within_s: float = 6 * 3600.0
    tries: int = 5


@dataclass(frozen=True, slots=True)
class Away:
    """A run whose files are on a machine of ours, or were: `is_gone` says that it was given back. `attempts` are those
    that wait for them; `needed` are steps of checkpoints that other runs begin with."""

    run: str
    study: str
    lease: int
    host: str
    state: str
    best_step: int | None
    attempts: tuple[int, ...]
    is_gone: bool
    is_trainer: bool
    needed: frozenset[int]

    def evacuation(self, there: str, here: Path) -> Evacuation:
        """The work of bringing them from `there` to `here`."""
        from provisioning.evacuation import Evacuation  # loaded only where something comes home

        best_step = self.best_step if self.is_trainer else None
        return Evacuation(there, here, best_step, others=self.needed, is_trainer=self.is_trainer)


@dataclass(slots=True)
class _Coming:
    """One run on its way. `began_s` is when it was first to come, `next_s` when to try (again); both monotonic."""

    began_s: float
    next_s: float = 0.0
    tries: int = 0
    evacuation: Evacuation | None = None
    work: Future[Evacuated] | None = None


class Homecoming:
    """What is on its way home. Holds nothing that a restart could not begin again."""

    def __init__(
        self,
        session: Session,
        home: Home,
        places: Places,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        limits: Limits = Limits(),
        moved: Callable[[int, int], None] = lambda _lease, _bytes: None,
    ) -> None:
        self._session = session
        self._home = home
        self._places = places
        self._now = now
        self._monotonic = monotonic
        self._limits = limits
        self._moved = moved
        self._coming: dict[tuple[str, int], _Coming] = {}
        self._hosts: dict[str, str] = {}
        self._is_elsewhere = False

    def host_of(self, run: str) -> str:
        """The host that a run's files are on: until they are here it may go on nowhere else. '' when they are here."""
        return self._hosts.get(run, "")

    def step(self) -> bool:
        """One round; says whether something is still to come."""
        with self._session.reading() as connection:
            self._is_elsewhere = self._is_elsewhere or has_elsewhere(connection)
            found = away(connection) if self._is_elsewhere else ()
        self._hosts = {one.run: one.host for one in found}
        idle = [one for one in found if one.state not in ON_A_SLOT]
        keys = {(one.run, one.lease) for one in idle}
        for key in [key for key in self._coming if key not in keys]:
            self._let_be(self._coming.pop(key))  # it works there again, or is here
        for one in idle:
            if one.is_gone:
                key = (one.run, one.lease)
                coming = self._coming.setdefault(key, _Coming(self._monotonic()))
                self._give_up(one, coming, f"its machine {one.host} is gone")
            else:
                self._bring(one)
        return bool(found)

    def close(self) -> None:
        """Stop asking; what has come stays."""
        for coming in self._coming.values():
            self._let_be(coming)

    @staticmethod
    def _let_be(coming: _Coming) -> None:
        if coming.work is not None:
            coming.work.cancel()

    def _bring(self, one: Away) -> None:
        now_s = self._monotonic()
        coming = self._coming.setdefault((one.run, one.lease), _Coming(now_s))
        if coming.work is not None and coming.work.done():
            self._conclude(one, coming)
        elif coming.work is None and now_s >= coming.next_s:
            self._begin(one, coming)
        if now_s - coming.began_s >= self._limits.within_s and (one.run, one.lease) in self._coming:
            self._give_up(one, coming, "it did not come in time")

    def _begin(self, one: Away, coming: _Coming) -> None:
        here = self._home.root / one.run
        try:
            shell = self._places.by_lease(one.lease).shell
            assert isinstance(shell, CarriesOut)
            coming.evacuation = one.evacuation(shell.path_there(str(here)), here)
            coming.work = shell.carry_out(coming.evacuation.steps())
        except HostLost:
            coming.next_s = self._monotonic() + self._limits.again_s

    def _conclude(self, one: Away, coming: _Coming) -> None:
        assert coming.work is not None
        work, coming.work = coming.work, None
        coming.next_s = self._monotonic() + self._limits.again_s
        error = work.exception()
        if error is not None:
            if not isinstance(error, (ProvisioningError, OSError)):  # of the host, or of our own disk
                raise error
            coming.tries += not isinstance(error, HostLost)
        else:
            came = work.result()
            if came.is_complete:
                self._settle(one, came, "done", SYNCED, _sentence(came))
                return
            coming.tries += 1
        if coming.tries >= self._limits.tries:
            self._give_up(one, coming, "it was tried often enough")

    def _give_up(self, one: Away, coming: _Coming, why: str) -> None:
        self._let_be(coming)
        came = (coming.evacuation or one.evacuation("", self._home.root)).result()
        missing = _named(came.lost) if came.is_listed else "nobody knows what it holds"
        self._settle(one, came, "waived", WAIVED, f"its files are not all here ({why}): {missing}")

    def _settle(self, one: Away, came: Evacuated, sync: str, what: str, said: str) -> None:
        data: dict[str, Any] = {
            "files": len(came.verified), "bytes_brought": came.brought_bytes, "left": dict(came.left),
            "refused": dict(came.refused), "lost": dict(came.lost),
        }  # fmt: skip
        self._moved(one.lease, came.brought_bytes)
        if one.is_trainer:
            data["checkpoints"] = _keep_whole(self._home.root / one.run / "checkpoints", came)
        with self._session.transaction() as connection:
            for attempt in one.attempts:
                changes.set_attempt(connection, one.run, attempt, sync=sync)
            changes.add_event(connection, self._now(), what, said, study=one.study, run=one.run, data=data)
        del self._coming[one.run, one.lease]


def has_elsewhere(connection: Connection) -> bool:
    """Whether anything was ever placed on another machine: most homes never ask for more than that."""
    query = "SELECT EXISTS (SELECT 1 FROM leases WHERE provider != 'local')"
    return bool(driver_of(connection).execute(query).fetchone()[0])


def away(connection: Connection) -> tuple[Away, ...]:
    """The runs of which files are on other machines, by run and lease; those of live attempts not among them."""
    pending = driver_of(connection).execute(
        "SELECT r.run, r.study, a.lease, l.host, r.state, r.best_step, a.attempt, l.state = 'released', "
        "json_extract(r.arm_document, '$.kind'), (SELECT group_concat(json_extract(c.initial_checkpoint, '$.step')) "
        "FROM runs AS c WHERE c.study = r.study AND c.parent = r.run) "
        "FROM attempts AS a JOIN runs AS r ON r.run = a.run JOIN leases AS l ON l.id = a.lease "
        "WHERE a.sync = 'pending' AND a.phase IN ('ended', 'gone') AND l.provider != 'local' ORDER BY r.run, a.attempt"
    )
    found: dict[tuple[str, int], list[tuple[Any, ...]]] = {}
    for row in pending:
        found.setdefault((row[0], row[2]), []).append(row)
    return tuple(
        Away(
            run, study, lease, host, state, best_step, tuple(row[6] for row in rows), bool(is_gone), kind == TRAINER,
            frozenset(map(int, needed.split(","))) if needed else frozenset(),
        )
        for rows in found.values()
        for run, study, lease, host, state, best_step, _, is_gone, kind, needed in rows[:1]
    )  # fmt: skip


def _keep_whole(checkpoints: Path, came: Evacuated) -> list[int]:
    """Remove of the checkpoints here what is torn, or has names and numbers and no weights: a run that goes on here
    would take it for one. Returns the steps of the others. One that was whole here and that this time nothing came of
    stays, whatever became of it there."""
    began = {checkpoint_step(name) for name in came.brought}
    missed = {checkpoint_step(name) for name in (*came.lost, *came.refused)}
    whole = []
    for path in sorted(checkpoints.glob("step_*")):
        step = checkpoint_step(f"checkpoints/{path.name}/")
        if step is None or not path.is_dir():
            continue
        if step in began & missed or not (path / LAST_WRITTEN).is_file() or not any(path.glob("*.safetensors")):
            shutil.rmtree(path)
        else:
            whole.append(step)
    return whole


def _sentence(came: Evacuated) -> str:
    said = f"{len(came.verified)} files are here, each with the hash that it has there"
    return f"{said}; refused: {_named(came.refused)}" if came.refused else said


def _named(files: Mapping[str, str]) -> str:
    names = sorted(files)
    more = f" and {len(names) - NAMED_FILES} more" if len(names) > NAMED_FILES else ""
    return ", ".join(f"{name} ({files[name]})" for name in names[:NAMED_FILES]) + more
