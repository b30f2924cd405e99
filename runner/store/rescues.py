"""The row of a rescued run, in the transaction that settles the run it comes from: there is one, whatever dies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, func, insert, select

from runner.records import ENDED, Health, RunState
from runner.rescue import Rescued
from runner.spec.models import to_json
from runner.store import changes, tables
from runner.store.facts import StoredRun

RESCUED = "rescue"
"""The event at a run that was stopped that says which run goes on from it."""


def add_rescue(connection: Connection, parent: StoredRun, found: Rescued, now: float) -> str:
    """Queue the rescued run and return its folder. It takes the place of its parent in the queue and waits for nobody.

    One that an older generation of the parent left is superseded; one of this very parent stays, and is returned.
    """
    runs = tables.runs
    earlier = connection.execute(
        select(runs).where(runs.c.study == parent.study, runs.c.arm == found.arm.arm, runs.c.seed == parent.seed)
    ).all()
    mine = next((row for row in earlier if row.parent == parent.run), None)
    if mine is not None:
        said = f"it was rescued before, as {found.arm.arm} ({mine.id})"
        changes.add_event(connection, now, RESCUED, said, study=parent.study, run=parent.run)
        return str(mine.run)
    generation = 1 + max((row.generation for row in earlier), default=0)
    identifier = found.id(generation)
    run = f"{parent.study}/{found.arm.arm}-s{parent.seed}-{identifier}"
    connection.execute(insert(runs).values(run=run, id=identifier, **_row(connection, parent, found, generation, now)))
    changes.add_event(
        connection, now, RESCUED, f"goes on as {found.arm.arm} ({identifier}) {found.sentence}", study=parent.study,
        run=parent.run, step=found.step, data={"run": run, "step": found.step},
    )  # fmt: skip
    changes.add_event(connection, now, "queued", f"goes on {found.sentence}", study=parent.study, run=run)
    for row in earlier:
        if row.superseded_by is None:
            supersede(connection, row.run, identifier)
    return run


def supersede(connection: Connection, run: str, by: str) -> None:
    """A newer generation replaces a run, and with it those that were rescued from it. Each keeps everything it has and
    stops waiting or training, with a checkpoint. `by` is the id of the newer one."""
    runs = tables.runs
    state = RunState(connection.execute(select(runs.c.state).where(runs.c.run == run)).scalar_one())
    values: dict[str, Any] = {"superseded_by": by}
    if state not in ENDED or state is RunState.LOST:  # one that comes back must end too
        values["stop_wanted"] = f"superseded by {by}"
    changes.set_run(connection, run, **values)
    children = select(runs.c.run).where(runs.c.parent == run, runs.c.superseded_by.is_(None))
    for child in connection.execute(children).scalars().all():
        supersede(connection, child, by)


def _row(connection: Connection, parent: StoredRun, found: Rescued, generation: int, now: float) -> Mapping[str, Any]:
    newest = connection.execute(select(func.max(tables.runs.c.created))).scalar() or 0.0
    return {
        "study": parent.study,
        "arm": found.arm.arm,
        "seed": parent.seed,
        "generation": generation,
        "arm_order": parent.arm_order,
        "launch": parent.launch,
        "priority": parent.priority,
        "provider": parent.provider,
        "wanted": None if parent.wanted is None else dict(parent.wanted),
        "wave": None,
        "identity": found.identity,
        "arm_document": to_json(found.arm),
        "snapshot": dict(parent.snapshot),
        "provenance": dict(parent.provenance),
        "steps_total": parent.steps_total,
        "state": RunState.QUEUED,
        "health": Health.UNKNOWN,
        "overridden": [],
        "parent": parent.run,
        "initial_checkpoint": {"run": parent.run, "step": found.step},
        "created": max(now, newest),  # the order of a status, also where the clock was set back
        "changed": now,
    }
