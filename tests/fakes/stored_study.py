"""A home with a database that holds what a test says: runs, attempts, points. No process, no controller."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sqlalchemy import insert, select

from runner.home import Home
from runner.ingest import Position, Taken
from runner.metric_formats import Record
from runner.records import AttemptKind, Health, Primary, RunState
from runner.spec.models import ResolvedArm, study_document, to_json
from runner.store import changes, tables
from runner.store.points import write_taken
from runner.store.session import Session
from tests.fakes.new_database import new_database

SLOT = {"name": "cpu0", "cores": [0], "gpu_uuids": [], "gpu_indices": [], "shares_cores": False}


class StoredStudy:
    """Writes rows as a controller would. `close` lets go of the database."""

    def __init__(self, home: Home) -> None:
        new_database(home)
        self.home = home
        self.session = Session(home.database, pid=1, now=1.0)
        self._launches = 0

    def run(self, arm: ResolvedArm, seed: int = 0, state: RunState = RunState.FINISHED, **values: Any) -> str:
        """Add a run of an arm and return its folder."""
        self._launches += 1
        identifier = f"{self._launches:08x}"
        run = f"{arm.study}/{arm.arm}-s{seed}-{identifier}"
        row = {
            "run": run, "id": identifier, "study": arm.study, "arm": arm.arm, "seed": seed, "generation": 1,
            "arm_order": self._launches, "launch": self._launches, "identity": "i", "arm_document": to_json(arm),
            "snapshot": {"hash": "c0de", "root": ".snapshots/c0de", "arm_dir": "."}, "provenance": {},
            "steps_total": arm.steps, "state": state, "overridden": [], "created": 1.0, "changed": 2.0,
            "health": Health.OK,
        }  # fmt: skip
        with self.session.transaction() as connection:
            connection.execute(
                insert(tables.studies)
                .prefix_with("OR IGNORE")
                .values(study=arm.study, document=study_document(arm), source=arm.path, lint=[], created=0.0)
            )
            connection.execute(insert(tables.runs).values(**{**row, **values}))
        return run

    def attempt(self, run: str, number: int, kind: str = "train", **values: Any) -> None:
        """Add an attempt of a run."""
        with self.session.transaction() as connection:
            if not connection.execute(select(tables.leases)).first():
                connection.execute(
                    insert(tables.leases).values(
                        id=1, provider="local", label="l", host="box", state="owned", price_usd_per_h=0.0, created=0.0
                    )
                )
            changes.add_attempt(connection, run, number, AttemptKind(kind), 1, SLOT, 1.0)
            changes.set_attempt(connection, run, number, **values)

    def points(self, run: str, attempt: int, name: str, values: Mapping[int, float]) -> None:
        """Add points of one metric; the time of step k is 100 + k seconds."""
        records = tuple(Record(step, {name: value}, 100.0 + step) for step, value in values.items())
        with self.session.transaction() as connection:
            write_taken(connection, run, attempt, Taken(records, Position(f"{attempt}/{name}", 7, 1)), 5.0)

    def close(self) -> None:
        """Let go of the database."""
        self.session.close()


def with_primary(arm: ResolvedArm, metric: str = "loss", direction: str = "min") -> ResolvedArm:
    """The same arm with a primary metric."""
    return dataclasses.replace(arm, primary=Primary(metric, direction))
