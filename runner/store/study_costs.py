"""What a study's rented machines have cost, for its report."""

from __future__ import annotations

from sqlalchemy import Connection, select

from reports.study import CostView, MachineView
from runner.renting.costs import LeaseCost, read_costs
from runner.store import tables
from runner.store.opening import driver_of


def study_costs(connection: Connection, study: str, now: float) -> CostView | None:
    """What was rented for the study, or used by its runs; None where nothing was."""
    leases = tables.leases.c
    rented = select(leases.provider).where(leases.document.is_not(None)).distinct()
    machines: list[MachineView] = []
    runs: dict[str, tuple[float, float]] = {}
    for provider in connection.execute(rented).scalars():
        for one in read_costs(driver_of(connection), provider, now).machines:
            mine = {run: share for run, share in one.shares.items() if run.startswith(f"{study}/")}
            if not mine and one.lease.purse != study:
                continue
            machines.append(_machine(one, now))
            for run, share in (mine or one.shares).items():
                name = run.rpartition("/")[2]
                used, idle = runs.get(name, (0.0, 0.0))
                runs[name] = (used + share.used_usd, idle + share.idle_usd)
    return CostView(tuple(machines), runs) if machines else None


def _machine(one: LeaseCost, now: float) -> MachineView:
    lease = one.lease
    held_s = (now if lease.released_s is None else lease.released_s) - lease.created_s
    return MachineView(
        name=lease.host or lease.label,
        gpus=f"{lease.order.get('gpus', '?')} x {lease.order.get('gpu_name', '?')}",
        held_h=max(0.0, held_s) / 3600.0,
        usd_per_h=lease.terms.prices.usd_per_h,
        ceiling_usd=lease.terms.ceiling_usd,
        metered_usd=one.bill.metered_usd,
        charged_usd=one.bill.charged_usd,
    )
