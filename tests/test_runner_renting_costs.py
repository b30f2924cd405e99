"""Costs out of the rows of a real home: the parts are the whole."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import insert

from runner.renting.costs import machine_document, read_costs
from runner.renting.leases import Lease, State
from runner.renting.money import Meter, Prices, Terms
from runner.renting.rows import add_lease
from runner.store import tables
from runner.store.session import Session
from tests.fakes.renting_case import new_home

TERMS = Terms(Prices(2.0, 0.0), 7200.0)


def lease(number: int, charged_usd: float | None) -> Lease:
    return Lease(
        number, "vast", f"armature/h/{number}", "w", "study", TERMS, 7200.0, 0.0, Meter(3600.0, "gone", gpu_s=3600.0),
        state=State.RELEASED, host=str(number), slots_requested=2, released_s=3600.0, charged_usd=charged_usd,
    )  # fmt: skip


@pytest.fixture
def database(tmp_path: Path) -> Path:
    home = new_home(tmp_path / "home")
    session = Session(home.database, pid=1, now=0.0)
    with session.transaction() as connection:
        connection.execute(
            insert(tables.studies).values(study="study", document={}, source="a.yaml", lint=[], created=0.0)
        )
        for arm in ("A", "B"):
            connection.execute(
                insert(tables.runs).values(
                    run=f"study/{arm}-s0-1", id="1", study="study", arm=arm, seed=0, generation=0, arm_order=0,
                    launch=1, identity=arm, arm_document={}, snapshot={}, provenance={}, state="finished",
                    overridden=[], created=0.0, changed=0.0,
                )
            )  # fmt: skip
        for one in (lease(1, 2.5), lease(2, None)):
            add_lease(connection, one)
        for arm, slot, seconds in (("A", 0, 3600.0), ("B", 1, 1800.0)):
            connection.execute(
                insert(tables.attempts).values(
                    run=f"study/{arm}-s0-1", attempt=1, kind="train", phase="ended", lease=1,
                    slot={"name": f"gpu{slot}"}, sync="done", created=0.0, started=0.0, ended=seconds,
                )
            )  # fmt: skip
    session.close()
    with sqlite3.connect(home.database) as writer:  # as they are written at their end
        for number, charged in ((1, 2.5), (2, None)):
            writer.execute("UPDATE leases SET released = 3600.0, charged_usd = ? WHERE id = ?", (charged, number))
    writer.close()
    return home.database


def test_parts_of_all_machines_are_the_whole(database: Path) -> None:
    reader = sqlite3.connect(database)
    costs = read_costs(reader, "vast", 3600.0)
    reader.close()
    assert [one.bill.usd for one in costs.machines] == [2.5, 2.0]  # the provider's word, else our meter
    for parts in (costs.by_run, costs.by_arm, costs.by_study):
        assert math.fsum(share.usd for share in parts.values()) == pytest.approx(4.5, abs=1e-9)
    assert costs.by_arm["study/A"].used_usd == pytest.approx(1.25)
    assert costs.by_arm["study/B"].used_usd == pytest.approx(0.625)
    assert costs.by_run[""].idle_usd == 2.0  # nobody used the second
    assert set(costs.by_study) == {"study"}


@pytest.mark.parametrize(("charges_asked", "bound_usd"), [(1, 2.0), (2, 0.5)])
def test_a_part_of_a_bill_is_what_is_known_and_does_not_count_below_our_meter(
    database: Path, charges_asked: int, bound_usd: float
) -> None:
    with sqlite3.connect(database) as writer:
        asked = f"json_set(document, '$.charges_asked', {charges_asked})"
        writer.execute(f"UPDATE leases SET charged_usd = 0.5, document = {asked} WHERE id = 1")
        (found, *_) = read_costs(writer, "vast", 9000.0).machines
    writer.close()
    machine = machine_document(found)
    assert (machine["metered_usd"], machine["charged_usd"], machine["usd"]) == (2.0, 0.5, 0.5)
    assert found.bill.bound_usd == bound_usd
