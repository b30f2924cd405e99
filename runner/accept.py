"""Answers the requests of commands: what a person asked for becomes rows, or a refusal that says why.

Each answer stands in the same transaction as what it promises, so a request is carried out once, whatever dies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, insert, select, update

from provisioning import RENTED
from provisioning.base import HomeKeyError, ProvisioningError, Slot
from provisioning.ssh_host import SshHost
from runner.autopsies import refuse_autopsy
from runner.errors import ArmatureError, Fenced, HomeError, UsageError
from runner.extending import EXTENDED, Way, extension, keep_extension, with_steps
from runner.home import Home
from runner.observe import checkpoints
from runner.places import Places
from runner.plan import Capacity, Intent, KnownRun, Plan, PlannedRun, make_plan
from runner.records import ENDED, Health, RunState
from runner.schedule import BUDGET, Shape, shape_of
from runner.spec.command import takes_steps
from runner.spec.models import TRAINER, ResolvedArm, from_json, study_document
from runner.store import changes, tables
from runner.store.best import find_best
from runner.store.facts import StoredRun, read_run
from runner.store.history import last_step
from runner.store.hosts import store_hosts
from runner.store.requests import Request
from runner.store.rescues import supersede
from runner.store.session import Session

HOSTS_ANSWER_WITHIN_S = 20.0
"""So long a launch waits for hosts that its command has reached: the command gives up after 30 s."""


class Accept:
    """The controller's side of `requests`: launch, stop, resume, extend, autopsy, gc."""

    def __init__(
        self,
        session: Session,
        home: Home,
        places: Places,
        now: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
        gc: Callable[[int], str | None] = lambda _request: "nothing is rented",
    ) -> None:
        self._gc = gc
        self._session = session
        self._home = home
        self._places = places
        self._now = now
        self._monotonic = monotonic
        self._first_seen_s: dict[int, float] = {}

    def __call__(self, request: Request) -> None:
        """Carry out one request and answer it; a wrong one is refused and changes nothing."""
        act = {
            "launch": self._launch, "stop": self._stop, "resume": self._resume, "extend": self._extend,
            "autopsy": self._autopsy, "gc": self._sweep,
        }.get(request.kind)  # fmt: skip
        if act is None:
            self.refuse(request, f"{request.kind}: not in this version")
            return
        try:
            act(request)
        except (HomeError, Fenced):
            raise  # these end the controller; the request waits for the next one
        except (ArmatureError, ProvisioningError) as error:
            self.refuse(request, str(error))

    def refuse(self, request: Request, reason: str) -> None:
        """Answer that nothing was done, and why."""
        with self._session.transaction() as connection:
            changes.answer(connection, request.id, False, reason, self._now())

    def _launch(self, request: Request) -> None:
        payload, provider = request.payload, request.payload["provider"]
        if payload.get("hosts"):
            self._list_hosts(payload["hosts"])
        arms = [from_json(entry["document"]) for entry in payload["arms"]]
        if provider in RENTED:
            self._require_account(provider)
            capacity = rented_capacity(arms, payload["slots"], provider)
        else:
            self._places.request_slots(provider, payload["slots"], payload.get("share_gpus", False))
            capacity = self._capacity(arms, provider)
        if set(payload.get("answering", ())) & self._places.silent().keys() and self._may_wait(request):
            return  # whoever asked has reached these hosts: we shall in a moment
        with self._session.transaction() as connection:
            plan = make_plan(
                arms,
                {arm.name: entry["snapshot"]["hash"] for arm, entry in zip(arms, payload["arms"], strict=True)},
                known_runs(connection),
                capacity=capacity,
                fresh=payload["fresh"],
            )
            self._store_studies(connection, arms, payload)
            entries = {arm.name: (arm, entry) for arm, entry in zip(arms, payload["arms"], strict=True)}
            for planned in plan.runs:
                arm, entry = entries[f"{planned.study}/{planned.arm}"]
                self._carry_out(connection, request, planned, arm, entry)
            changes.answer(connection, request.id, True, summary(plan), self._now())

    def _may_wait(self, request: Request) -> bool:
        since_s = self._first_seen_s.setdefault(request.id, self._monotonic())
        return self._monotonic() - since_s < HOSTS_ANSWER_WITHIN_S

    def _require_account(self, provider: str) -> None:
        """Raises UsageError when this controller was started without what it takes to rent there."""
        try:
            self._places.provider(provider)
        except (ValueError, HomeKeyError) as problem:
            raise UsageError(
                f"the controller of this home cannot rent: {problem}; it keeps the environment that it was started "
                f"with: `kill {os.getpid()}` ends it (its runs go on), then launch again (nothing was started)"
            ) from problem

    def _list_hosts(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """Runs are placed on these hosts from now on. Raises UsageError when one of the same name is in use."""
        with self._session.transaction() as connection:
            store_hosts(connection, documents)
        self._places.list_hosts([SshHost.from_json(one) for one in documents])

    def _capacity(self, arms: Sequence[ResolvedArm], provider: str) -> Capacity:
        shapes = {shape_of(arm.resources, provider) for arm in arms}
        return capacity_of(self._places.cut(shapes), provider)

    def _store_studies(self, connection: Connection, arms: Sequence[ResolvedArm], payload: Mapping[str, Any]) -> None:
        for arm in {arm.study: arm for arm in reversed(arms)}.values():
            document = study_document(arm)
            stored = connection.execute(
                select(tables.studies.c.document).where(tables.studies.c.study == arm.study)
            ).scalar_one_or_none()
            lint = payload["lint"].get(arm.study, [])
            if stored is None:
                connection.execute(
                    insert(tables.studies).values(
                        study=arm.study, document=document, source=arm.path, lint=lint, created=self._now()
                    )
                )
                continue
            connection.execute(
                update(tables.studies)
                .where(tables.studies.c.study == arm.study)
                .values(document=document, source=arm.path, lint=lint)
            )
            if stored != document:
                changes.add_event(
                    connection, self._now(), "amended", "study-level keys were replaced with --amend", study=arm.study,
                    data={"before": stored, "after": document},
                )  # fmt: skip

    def _carry_out(
        self, connection: Connection, request: Request, planned: PlannedRun, arm: ResolvedArm, entry: Mapping[str, Any]
    ) -> None:
        launch, priority = request.id, request.payload.get("priority", 0)
        if planned.intent is Intent.RESTART:
            run = read_run(connection, planned.folder)
            document = keep_extension(entry["document"], run.steps_total)
            provider = request.payload["provider"]
            changes.set_run(
                connection, run.run, arm_document=document, launch=launch, priority=priority, provider=provider,
                wanted=_machine_of(request, planned.study),
            )  # fmt: skip
            _requeue(connection, run, "launched again", "last", self._now())
        if planned.intent is not Intent.START:
            return
        now = self._now()
        connection.execute(
            insert(tables.runs).values(
                run=planned.folder, id=planned.id, study=planned.study, arm=planned.arm, seed=planned.seed,
                generation=planned.generation, arm_order=planned.arm_order, launch=launch, identity=planned.identity,
                priority=priority, provider=request.payload["provider"], wanted=_machine_of(request, planned.study),
                wave=barrier(planned, arm.resources.colocate),
                arm_document=entry["document"], snapshot=entry["snapshot"], provenance=entry["provenance"],
                steps_total=planned.steps, state=RunState.QUEUED, health=Health.UNKNOWN, overridden=[],
                created=now, changed=now,
            )
        )  # fmt: skip
        changes.add_event(connection, now, "queued", planned.sentence, study=planned.study, run=planned.folder)
        if planned.supersedes is not None:
            self._supersede(connection, planned)

    def _supersede(self, connection: Connection, planned: PlannedRun) -> None:
        """The older generation keeps everything it has; it stops waiting or training, with a checkpoint."""
        supersede(connection, f"{planned.name}-{planned.supersedes}", planned.id)

    def _stop(self, request: Request) -> None:
        with self._session.transaction() as connection:
            stopped = []
            for name in request.payload["runs"]:
                run = read_run(connection, name)
                if run.state not in ENDED or run.autopsy_attempt is not None:
                    changes.set_run(connection, run.run, stop_wanted=request.payload["reason"])
                    stopped.append(run.id)
            runs = "1 run" if len(stopped) == 1 else f"{len(stopped)} runs"
            message = f"stopping {runs}" if stopped else "nothing to stop: every run has ended already"
            changes.answer(connection, request.id, True, message, self._now())

    def _resume(self, request: Request) -> None:
        name = request.payload.get("run")
        if name is None:
            with self._session.transaction() as connection:
                changes.answer(connection, request.id, True, "the controller is at work", self._now())
            return
        with self._session.transaction() as connection:
            run = read_run(connection, name)
            _check_resumable(run)
            _requeue(
                connection,
                run,
                f"resumed by a person from {request.payload['from']}",
                request.payload["from"],
                self._now(),
            )
            changes.answer(connection, request.id, True, f"{run.id} is queued again", self._now())

    def _extend(self, request: Request) -> None:
        """A longer budget. A live trainer must save and end first: until then the request stays without an answer, and
        every round looks at it again, so that a kill at any line forgets neither the stop nor what follows it."""
        wanted = request.payload["steps"]
        with self._session.transaction() as connection:
            run = read_run(connection, request.payload["run"])
            is_trainer = run.arm_document["kind"] == TRAINER
            found = extension(
                run.id, run.state, is_trainer=is_trainer, before=run.steps_total, wanted=wanted,
                stop_wanted=run.stop_wanted, takes_steps=is_trainer or takes_steps(run.arm_document["command"]),
            )  # fmt: skip
            if found.way is Way.STOP_FIRST:
                if run.stop_wanted is None and run.state is not RunState.STOPPING:
                    changes.set_run(connection, run.run, stop_wanted=found.sentence)
                return
            now, step = self._now(), last_step(connection, run.run)
            document = with_steps(run.arm_document, wanted, request.payload["check"])
            changes.set_run(connection, run.run, arm_document=document, steps_total=wanted)
            find_best(connection, run.run)  # what counts as best begins at a share of the budget
            changes.add_event(
                connection, now, EXTENDED, found.sentence, study=run.study, run=run.run, step=step,
                data=found.data(step),
            )  # fmt: skip
            if found.way is Way.AGAIN:
                _requeue(connection, run, found.sentence, "last", now)
            changes.answer(connection, request.id, True, f"{run.id}: {found.sentence}", now)

    def _autopsy(self, request: Request) -> None:
        """Promise an attempt of its own number: what has that number is the autopsy, so none is ever begun twice."""
        with self._session.reading() as connection:
            run = read_run(connection, request.payload["run"])
        is_trainer = run.arm_document["kind"] == TRAINER
        if run.autopsy_attempt is None:
            refuse_autopsy(run.id, run.state, is_trainer=is_trainer, checkpoints=self._checkpoints(run))
        with self._session.transaction() as connection:
            now, number = self._now(), run.autopsy_attempt or (run.attempt.number if run.attempt else 0) + 1
            if run.autopsy_attempt is None:
                changes.set_run(connection, run.run, autopsy_attempt=number, stop_wanted=None)
                said = "a person asked for an autopsy; it waits for a slot"
                changes.add_event(connection, now, "autopsy_wanted", said, study=run.study, run=run.run)
                changes.answer(connection, request.id, True, f"{run.id}: its autopsy waits for a slot", now)
                return
            is_waiting = run.attempt is None or run.attempt.number < number
            where = "waits for a slot already" if is_waiting else f"is under way already (attempt {number})"
            changes.answer(connection, request.id, True, f"{run.id}: an autopsy of it {where}", now)

    def _sweep(self, request: Request) -> None:
        """Until all accounts were looked at the request stays without an answer. Raises InfrastructureError for what is
        not proven."""
        said = self._gc(request.id)
        if said is not None:
            with self._session.transaction() as connection:
                changes.answer(connection, request.id, True, said, self._now())

    def _checkpoints(self, run: StoredRun) -> int:
        if run.attempt is None:
            return 0
        shell = self._places.by_lease(run.attempt.lease).shell
        return len(checkpoints(shell, self._home.root / run.run))


def _machine_of(request: Request, study: str) -> dict[str, Any] | None:
    """What is to be rented for the runs of a study in this launch, under a key of its own; None when nothing is."""
    machine = request.payload.get("machines", {}).get(study)
    return None if machine is None else {**machine, "key": f"launch-{request.id}/{study}"}


def rented_capacity(arms: Sequence[ResolvedArm], slots: int | None, provider: str) -> Capacity:
    """A machine is rented for each study: what the largest of them may hold, if all of its runs are still to start."""
    studies = [[arm for arm in arms if arm.study == study] for study in dict.fromkeys(arm.study for arm in arms)]
    most = max(slots_of(slots, len(mine), sum(len(arm.seeds) for arm in mine)) for mine in studies)
    return Capacity(most, most, provider=provider)


def slots_of(asked: int | None, arms: int, runs: int) -> int:
    """The slots of one rented machine: as many as are asked for, else one for each arm; never more than have a run."""
    return min(asked or arms, runs)


def barrier(planned: PlannedRun, colocate: str) -> int | None:
    """The wave that a new run starts in: every wave with `require`, only the first with `prefer`, else none."""
    starts_together = colocate == "require" or (colocate == "prefer" and planned.wave == 0)
    return planned.wave if starts_together else None


def capacity_of(slots: Mapping[Shape, Sequence[Slot]], provider: str) -> Capacity:
    """How many runs the hosts can hold at once, from the slots cut for each shape."""
    return Capacity(
        cpu_slots=max((len(found) for shape, found in slots.items() if not shape[0]), default=0),
        gpu_slots=max((len(found) for shape, found in slots.items() if shape[0]), default=0),
        cut=slots,
        provider=provider,
    )


def known_runs(connection: Connection) -> tuple[KnownRun, ...]:
    """Every run that a plan must know of."""
    return tuple(
        KnownRun(row.study, row.arm, row.seed, row.id, row.identity, row.generation, RunState(row.state))
        for row in connection.execute(select(tables.runs))
    )


def summary(plan: Plan) -> str:
    """One line about what a launch starts."""
    new = len(plan.to_run)
    if not new:
        return "nothing new to start"
    return f"{new} of {len(plan.runs)} runs queued"


def _check_resumable(run: StoredRun) -> None:
    if run.state is RunState.FINISHED:
        raise UsageError(
            f"{run.id} has finished all its steps; `runner extend {run.id} --steps N` gives it more, "
            "`runner launch … --fresh` runs it again"
        )
    if run.state not in ENDED:
        raise UsageError(f"{run.id} is {run.state} already; `runner status --watch` shows it")


def _requeue(connection: Connection, run: StoredRun, reason: str, start: str, now: float) -> None:
    """A new attempt. A person who resumes an aborted run overrides that rule: it may not stop this run again."""
    overridden = list(run.overridden)
    if run.state is RunState.ABORTED or run.rule == BUDGET:
        overridden = sorted({*overridden, run.rule})
        reason = f"{reason}; the end by {run.rule} is overridden and that rule is off for this run"
    changes.set_run(
        connection,
        run.run,
        overridden=overridden,
        resume_from=start,
        verdict=None,
        retries_used=0,
        wave=None,
        health=Health.UNKNOWN,
        stop_wanted=None,
    )
    changes.move_run(connection, run.run, RunState.QUEUED, reason, now)
