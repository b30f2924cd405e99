"""What budgets are counted from: every attempt of some studies, when it used its slot, and what that slot costs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import Connection, select

from provisioning.base import Slot
from provisioning.ledger import Rate, Usage, share_of
from runner.budgets import Metered
from runner.store import tables
from runner.store.facts import slot_from_json


def read_usage(
    connection: Connection, studies: Collection[str], slots: Mapping[int, Sequence[Slot]] | None = None
) -> tuple[Metered, ...]:
    """Every attempt of these studies, superseded runs too: what was spent stays spent.

    `slots` are all slots of a lease's host, by lease: where they are missing an attempt pays for one of the slots that
    were asked for of it, or for the whole host where nobody said how many.
    """
    runs, attempts, leases = tables.runs, tables.attempts, tables.leases
    rows = connection.execute(
        select(
            runs.c.study, runs.c.run, attempts.c.attempt, attempts.c.started, attempts.c.ended,
            attempts.c.lease, attempts.c.slot, leases.c.price_usd_per_h, leases.c.slots_requested,
        )
        .join(attempts, attempts.c.run == runs.c.run)
        .join(leases, leases.c.id == attempts.c.lease)
        .where(runs.c.study.in_(studies))
        .order_by(runs.c.run, attempts.c.attempt)
    )  # fmt: skip
    found = []
    for row in rows:
        others = (slots or {}).get(row.lease)
        share = 1.0
        if row.price_usd_per_h:
            share = share_of(slot_from_json(row.slot), others) if others else 1.0 / (row.slots_requested or 1)
        usage = Usage(row.started, row.ended, Rate(row.price_usd_per_h, share))
        found.append(Metered(row.study, row.run, row.attempt, usage))
    return tuple(found)
