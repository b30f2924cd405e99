"""Before anything is rented: what it would be, the most that it could cost, and whether budget and person allow it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from provisioning.vast.offers import Ranked, Wanted, asked, ceiling_usd, explain, order_of
from provisioning.vast.prices import needed_s
from reports.wording import counted
from runner.accept import slots_of
from runner.clock import Clock, SystemClock
from runner.errors import BudgetError, InfrastructureError, UsageError
from runner.plan import Plan
from runner.renting.offered import Market, account_api, looked, remarks, wanted_of
from runner.spec.models import ResolvedArm
from runner.staging.secrets import likely_secrets


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine for the runs of one study: `slots` at a time, each with the same needs; `first` is the best offer
    now, whose order can cost `ceiling_usd` at most. `max_usd` is what the study may spend in all."""

    study: str
    slots: int
    gpus: int
    cpus: int
    min_vram_gib: float
    wanted: Wanted
    first: Ranked
    fits: int
    ceiling_usd: float
    max_usd: float | None

    def request(self) -> dict[str, Any]:
        """What the controller must know to rent it, as JSON."""
        return {
            "slots": self.slots, "gpus": self.gpus, "cpus": self.cpus, "min_vram_gib": self.min_vram_gib,
            "wanted": self.wanted.to_json(), "max_usd": self.max_usd,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hire:
    """All machines of a launch, what a person must know besides, and the money left in the account."""

    machines: tuple[Machine, ...]
    notes: tuple[str, ...]
    left_usd: float | None

    @property
    def ceiling_usd(self) -> float:
        """The most that all of it can cost as planned, on the offers of now."""
        return sum(machine.ceiling_usd for machine in self.machines)

    @property
    def max_usd(self) -> float:
        """What its studies may spend in all, whatever is rented for them; infinite when one has no limit."""
        return sum(math.inf if machine.max_usd is None else machine.max_usd for machine in self.machines)


def estimate(
    arms: Sequence[ResolvedArm],
    plan: Plan,
    slots: int | None,
    asked_for: Mapping[str, Any],
    environment: Mapping[str, str],
    clock: Clock | None = None,
) -> Hire:
    """What would be rented for a launch: for each study one machine with a slot for every arm that has something to do,
    or with as many as `slots`, never more than have a run. Raises UsageError, and InfrastructureError when nothing fits
    or nobody answers."""
    clock = clock or SystemClock()
    api = account_api(environment, clock)
    busy = {(run.study, run.arm) for run in plan.to_run}
    machines, notes, market = [], [], None
    for study in dict.fromkeys(arm.study for arm in arms):
        mine = [arm for arm in arms if arm.study == study and (study, arm.arm) in busy]
        if mine:
            count = slots_of(slots, len(mine), sum(run.study == study for run in plan.to_run))
            market = looked(api, _wanted(mine, count, asked_for), clock, market)
            machines.append(_machine(study, mine, count, market))
            notes += [f"{study}: {said}" for said in remarks(market)]
    left_usd = None if market is None else market.left_usd
    if left_usd is not None and left_usd <= 0.0 and machines:
        raise InfrastructureError(
            f"the account is empty ({left_usd:.2f} USD): nothing was rented; pay in and try again"
        )
    return Hire(tuple(machines), tuple(notes), left_usd)


def refuse_unpaid(hire: Hire) -> None:
    """Raises UsageError for a study without a limit, BudgetError for one whose limit the first offer could pass."""
    for machine in hire.machines:
        what = f"{machine.study}: the best offer now can cost {machine.ceiling_usd:.2f} USD at most"
        if machine.max_usd is None:
            raise UsageError(
                f"{what}, and the study has no limit: --max-usd USD, or budget.study.max_usd in its arms (nothing was "
                "rented)"
            )
        if machine.ceiling_usd > machine.max_usd:
            raise BudgetError(
                f"{what}, and its limit is {machine.max_usd:.2f} USD: fewer --hours, a cheaper --max-usd-per-h, or a "
                "higher --max-usd (nothing was rented)"
            )


def refuse_secrets(code: Mapping[Path, Sequence[str]], allowed: Collection[str]) -> None:
    """Raises UsageError for what looks like a secret in the code that would go to a rented machine: whoever runs that
    can read it. `code` are the frozen files by the folder of each copy; `allowed` are those that hold none."""
    found: dict[str, str] = {}
    for root, files in code.items():
        found |= {str(one): one.file for one in likely_secrets({name: (root / name).read_bytes() for name in files})}
    found = {said: file for said, file in found.items() if file not in allowed}
    if found:
        names = " ".join(f"--allow-upload {shlex.quote(file)}" for file in dict.fromkeys(found.values()))
        raise UsageError(
            f"this looks like secrets, and whoever runs the machine could read it: {'; '.join(found)}; take it out, or "
            f"say that it is none: {names} (nothing was rented)"
        )


def sentence(machine: Machine) -> str:
    """What would be rented, for a person."""
    order = order_of(machine.first, machine.wanted, needed_s(machine.wanted))
    limit = "no max_usd" if machine.max_usd is None else f"max_usd {machine.max_usd:.2f} USD"
    fits = "1 offer fits" if machine.fits == 1 else f"{machine.fits} offers fit"
    return (
        f"{machine.study}  {counted(machine.slots, 'slot')} on {order['gpus']} x {order['gpu_name']}, "
        f"{machine.first.prices.usd_per_h:.3f} USD/h (offer {order['offer_id']}; {fits}); "
        f"{machine.wanted.hours:g} h planned, about {machine.first.cost.total_usd:.2f} USD; "
        f"at most {machine.ceiling_usd:.2f} USD until {needed_s(machine.wanted) / 3600.0:.3g} h; "
        f"with other offers or more hours: {limit}"
    )


def document(hire: Hire) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "ceiling_usd": hire.ceiling_usd,
        "left_usd": hire.left_usd,
        "notes": list(hire.notes),
        "machines": [
            {
                "study": one.study, "slots": one.slots, "offer": one.first.offer.offer_id,
                "gpu_name": one.first.offer.gpu_name, "gpus": one.first.offer.num_gpus,
                "usd_per_h": one.first.prices.usd_per_h, "plan_usd": one.first.cost.total_usd,
                "ceiling_usd": one.ceiling_usd, "max_usd": one.max_usd, "fits": one.fits,
            }
            for one in hire.machines
        ],
    }  # fmt: skip


def _wanted(arms: Sequence[ResolvedArm], slots: int, asked_for: Mapping[str, Any]) -> Wanted:
    """One machine that holds all slots; who rents GPUs wants one for every run, whatever the arm says of a CPU."""
    gpus = max(max(1, arm.resources.gpus) for arm in arms)
    vram_gib = max(arm.resources.min_vram_gib for arm in arms)
    wanted = wanted_of(asked_for)
    return replace(wanted, gpus=slots * gpus, min_vram_gib=max(wanted.min_vram_gib, vram_gib))


def _machine(study: str, arms: Sequence[ResolvedArm], slots: int, market: Market) -> Machine:
    wanted = market.wanted
    if not market.choice.ranked:
        raise InfrastructureError(f"{study}: nothing to rent: {asked(wanted)}: {explain(market.choice)}")
    first = market.choice.ranked[0]
    resources = [arm.resources for arm in arms]
    return Machine(
        study=study,
        slots=slots,
        gpus=max(max(1, one.gpus) for one in resources),
        cpus=max(one.cpus for one in resources),
        min_vram_gib=max(one.min_vram_gib for one in resources),
        wanted=wanted,
        first=first,
        fits=len(market.choice.ranked),
        ceiling_usd=ceiling_usd(order_of(first, wanted, needed_s(wanted))),
        max_usd=arms[0].budget["study"]["max_usd"],
    )
