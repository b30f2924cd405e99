"""What a study cost: its rented machines, and whose share it was. Pure."""

from __future__ import annotations

import math

from reports.readings import run_label
from reports.sections import Table
from reports.study import StudyView
from reports.wording import number

MACHINES = ("machine", "GPUs", "hours held", "USD per hour", "ceiling", "metered", "charged", "difference")
SHARES = ("run", "USD in use", "USD while nobody used it", "together")


def machines_table(study: StudyView) -> Table:
    """A row for each machine; the difference is between what the provider charged and what we counted."""
    rows = []
    for one in study.costs.machines if study.costs else ():
        charged = "not told yet" if one.charged_usd is None else _usd(one.charged_usd)
        off = "" if one.charged_usd is None else _off(one.metered_usd, one.charged_usd)
        rows.append(
            (one.name, one.gpus, number(one.held_h), _usd(one.usd_per_h), _usd(one.ceiling_usd),
             _usd(one.metered_usd), charged, off)
        )  # fmt: skip
    return Table(MACHINES, rows)


def shares_table(study: StudyView) -> Table:
    """A row for each run that a machine was paid for, and the sum."""
    if study.costs is None:
        return Table(SHARES, ())
    labels = {f"{run.arm}-s{run.seed}-{run.run}": run_label(run) for run in study.runs}
    shares = study.costs.runs
    rows = [
        (labels.get(run, run or "no run"), _usd(used), _usd(idle), _usd(used + idle))
        for run, (used, idle) in shares.items()
    ]
    sums = [math.fsum(one[part] for one in shares.values()) for part in (0, 1)]
    return Table(SHARES, [*rows, ("all", *map(_usd, (*sums, math.fsum(sums))))])


def _usd(amount: float) -> str:
    return f"{amount:.4f}" if abs(amount) < 1.0 else f"{amount:.2f}"


def _off(metered_usd: float, charged_usd: float) -> str:
    share = f" ({(charged_usd - metered_usd) / metered_usd:+.1%})" if metered_usd else ""
    return f"{charged_usd - metered_usd:+.4f}{share}"
