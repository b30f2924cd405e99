"""What rented machines have cost, and whose share it was: read from a home's rows, for status and report."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.renting.bills import bill_of
from runner.renting.leases import Lease
from runner.renting.money import Bill, Share, grouped, split
from runner.renting.rows import leases_in

_USED = "SELECT run, slot, started, ended FROM attempts WHERE lease = ? AND started IS NOT NULL"
_WHOSE = "SELECT run, study, arm FROM runs"


@dataclass(frozen=True, slots=True)
class LeaseCost:
    """One machine: its lease as its meter stands now, its bill, and the share of each run ('' = no run used it)."""

    lease: Lease
    bill: Bill
    shares: Mapping[str, Share]


@dataclass(frozen=True, slots=True)
class Costs:
    """All machines of a provider, and their cost by run, by (study, arm) and by study; USD, '' where no run was.

    The parts of each are the whole. A machine that no run used counts to the study that it was rented for.
    """

    machines: tuple[LeaseCost, ...]
    by_run: Mapping[str, Share]
    by_arm: Mapping[str, Share]
    by_study: Mapping[str, Share]


def read_costs(driver: sqlite3.Connection, provider: str, now_s: float) -> Costs:
    """The costs as the rows say, running machines up to `now_s` (seconds since the epoch). Raises HomeError for a lease
    that cannot be read."""
    machines = tuple(_cost(driver, lease.until(now_s), now_s) for lease in leases_in(driver, provider) if lease.host)
    whose = {run: (study, f"{study}/{arm}") for run, study, arm in driver.execute(_WHOSE)}
    by_run, by_arm, by_study = [], [], []
    for one in machines:
        study = {"": one.lease.purse}
        by_run.append(dict(one.shares))
        by_arm.append(grouped(one.shares, {run: arm for run, (_, arm) in whose.items()}))
        by_study.append(
            {study.get(name, name): share
             for name, share in grouped(one.shares, {run: name for run, (name, _) in whose.items()}).items()}
        )  # fmt: skip
    return Costs(machines, _added(by_run), _added(by_arm), _added(by_study))


def _cost(driver: sqlite3.Connection, lease: Lease, now_s: float) -> LeaseCost:
    used_s: dict[str, float] = {}
    slots = set()
    for run, slot, started, ended in driver.execute(_USED, (lease.id,)):
        slots.add(slot)
        seconds = max(0.0, (now_s if ended is None else ended) - started)
        used_s[run] = used_s.get(run, 0.0) + seconds
    held_s = max(0.0, (now_s if lease.released_s is None else lease.released_s) - lease.created_s)
    bill = bill_of(lease)
    return LeaseCost(lease, bill, split(bill.usd, max(1, lease.slots_requested or len(slots)), held_s, used_s))


def _added(parts: list[dict[str, Share]]) -> dict[str, Share]:
    found: dict[str, Share] = {}
    for part in parts:
        for name, share in part.items():
            before = found.get(name, Share(0.0, 0.0))
            found[name] = Share(before.used_usd + share.used_usd, before.idle_usd + share.idle_usd)
    return found


def machine_document(one: LeaseCost) -> dict[str, Any]:
    """A machine as JSON values, for `status --json`: `usd` is what counts, the provider's word where it has spoken."""
    lease = one.lease
    return {
        "lease": lease.id, "study": lease.purse, "label": lease.label, "machine": lease.host,
        "gpus": lease.order.get("gpus"), "gpu_name": lease.order.get("gpu_name"), "state": str(lease.state),
        "stage": lease.stage, "because": lease.because or lease.leaving,
        "usd_per_h": lease.terms.prices.usd_per_h, "created": lease.created_s,
        "released": lease.released_s, "ends": lease.ttl_end_s, "ceiling_usd": lease.terms.ceiling_usd,
        "metered_usd": one.bill.metered_usd, "charged_usd": one.bill.charged_usd, "usd": one.bill.usd,
    }  # fmt: skip
