"""What follows from what was heard: pure functions from a lease and an answer to the lease as it is now.

Nothing here asks anybody. A decision about a machine rests on answers: a network, or a controller, that was away for
hours accuses nobody, because a stage is only too long when it was *seen* for so long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from provisioning.base import (
    Absent,
    Ambiguous,
    Handle,
    Observation,
    Offer,
    Present,
    Refused,
    Released,
    Unknown,
)
from runner.renting.leases import (
    CREATED,
    FAILED,
    GONE,
    HALTED,
    LOADING,
    OFFLINE,
    REACHABLE,
    REQUESTED,
    RUNNING,
    Change,
    Lease,
    State,
    Told,
    Want,
)
from runner.renting.money import SURE_GAP_S, why_unaffordable

TROUBLE = "renting:trouble"
"""The event of what a person may want to be woken up for."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how often. All in seconds where nothing else is said.

    requested_s, created_s, loading_s, running_s: how long a start may be in each stage; a machine that boots takes 2 to
    10 minutes, and a slow host may pull an image for twenty. unfit_s: from being reachable to being fit for runs.
    quiet_s: how long after an unknown outcome complete lists must not show the label before nothing exists: six times
    the published delay of the list (10 s), for what the provider commits after our connection is gone.
    halted_s, offline_s: how long a machine that was ready may be paused, or away, before it is given back. A pause
    costs its disk only, but its runs wait: it may last as long as they have worked there, for that would be lost. A
    host that is away so long is one that its own switch gives up too.
    most_failures within failures_s: then a want waits, so that a night of bad machines costs a bounded number of boots.
    """

    requested_s: float = 180.0
    created_s: float = 180.0
    loading_s: float = 1200.0
    running_s: float = 180.0
    unfit_s: float = 300.0
    quiet_s: float = 60.0
    halted_s: float = 900.0
    offline_s: float = 7200.0
    most_failures: int = 5
    failures_s: float = 3600.0
    bad_machine_s: float = 86400.0

    def stage_s(self, stage: str) -> float:
        """How long a start may be in one stage."""
        return {
            REQUESTED: self.requested_s, CREATED: self.created_s, LOADING: self.loading_s, RUNNING: self.running_s,
            REACHABLE: self.unfit_s,
        }[stage]  # fmt: skip


@dataclass(frozen=True, slots=True)
class NotMade:
    """A create that certainly made nothing: it was not sent, or was turned away unread. The same may be asked again."""

    why: str


@dataclass(frozen=True, slots=True)
class OfferGone:
    """A create that made nothing because the offer is not to be had: another one may be."""

    why: str


Creation = Handle | Refused | Ambiguous | NotMade | OfferGone


def after_create(lease: Lease, outcome: Creation, asked_s: float, now_s: float) -> Change:
    """What an order, handed over at `asked_s`, has become. What the provider made is ours whatever it said."""
    if not lease.is_open:
        return Change(lease)
    if isinstance(outcome, Handle):
        return Change(_owned(lease, outcome.host, asked_s, now_s))
    if isinstance(outcome, Refused) and outcome.left is not None:
        left = _owned(lease, outcome.left.host, asked_s, now_s)
        told = Told("renting:refused", f"{outcome.reason}; what it made all the same is given back")
        return Change(give_back(left, f"refused: {outcome.reason}", now_s, is_failure=True), (told,))
    if isinstance(outcome, Refused):
        told = Told("renting:refused", f"offer {lease.offer_id}: {outcome.reason}")
        return Change(_over(lease, f"refused: {outcome.reason}", now_s, is_failure=True), (told,))
    if isinstance(outcome, OfferGone):
        return Change(_over(lease, f"never made: {outcome.why}", now_s))
    if isinstance(outcome, Ambiguous):
        return Change(replace(lease, unsure_s=now_s, absences=0, why=outcome.reason))
    return Change(replace(lease, why=outcome.why))


def after_restart(lease: Lease, now_s: float) -> Lease:
    """As a controller finds it that did not see what came before: an order may have been sent by the last one, at any
    moment up to its end, so that the quiet period begins now."""
    return replace(lease, unsure_s=now_s, absences=0) if lease.state is State.INTENDED else lease


def after_observation(lease: Lease, seen: Observation, listed_s: float, now_s: float, limits: Limits) -> Change:
    """What the provider said of the label in a list that began at `listed_s`."""
    if not lease.is_open or isinstance(seen, Unknown):
        return Change(lease)
    if isinstance(seen, Absent):
        return _after_absence(lease, listed_s, now_s, limits)
    if lease.state is State.INTENDED:
        lease = _owned(lease, seen.host, lease.created_s, now_s)
        told: tuple[Told, ...] = (
            Told("rented", f"{lease.label} exists as {seen.host}: its order had been carried out"),
        )
    elif seen.host and lease.host and seen.host != lease.host:
        # Two under one label: the first stays ours until it is given back; the loop gives the other one back.
        return Change(lease)
    else:
        told = ()
    lease = _seen(lease, seen, now_s)
    if lease.because:
        return Change(lease, told)
    judged = _judge(lease, limits)
    return Change(judged.lease, (*told, *judged.told))


def _after_absence(lease: Lease, listed_s: float, now_s: float, limits: Limits) -> Change:
    if lease.state is State.INTENDED:
        if lease.unsure_s is None or listed_s < lease.unsure_s:
            return Change(lease)
        lease = replace(lease, absences=lease.absences + 1)
        quiet_s = listed_s - (lease.unsure_s or 0.0)
        if lease.absences < 2 or quiet_s < limits.quiet_s:
            return Change(lease)
        proof = (
            f"{lease.absences} complete lists do not have {lease.label}; the last began {quiet_s:.0f} s after the "
            "order's outcome was unknown"
        )
        # Known as unknown by an answer, and not by a restart: it counts among the tries.
        told = Told("renting:nothing", f"{lease.label} was never made: {proof}")
        return Change(_over(lease, proof, now_s, is_failure=bool(lease.why)), (told,))
    # A machine that has just been made may not be listed yet; seen once, it cannot hide for so long.
    if lease.because or listed_s < max(lease.created_s, lease.seen_s) + limits.quiet_s:
        return Change(lease)
    reason = "the provider lists it no longer"
    return Change(give_back(lease, reason, now_s), (Told(TROUBLE, f"{lease.label} ({lease.host}): {reason}"),))


def _judge(lease: Lease, limits: Limits) -> Change:
    """What the stage of a machine that is kept means."""
    name = f"{lease.label} ({lease.host})"
    said = f": {lease.why}" if lease.why else ""
    in_stage_s = lease.watched_s
    if lease.stage in (FAILED, GONE):
        reason = f"it has failed ({lease.stage}){said}"
        return Change(give_back(lease, reason, lease.seen_s, is_fault=True), (Told(TROUBLE, f"{name}: {reason}"),))
    if lease.stage in (HALTED, OFFLINE):
        return _away(lease, name, said, in_stage_s, limits)
    if lease.fit_s is not None and lease.stage != REACHABLE:
        # Its container was started again: everything that ran there is gone, and it must prove itself anew.
        told = Told(TROUBLE, f"{name}: it starts again ({lease.stage}){said}")
        return Change(replace(lease, fit_s=None), (told,))
    # One that was ready holds what has not come home: it has as long to come back as one that is away.
    limit_s = max(limits.stage_s(lease.stage), limits.offline_s if lease.was_ready else 0.0)
    if lease.fit_s is None and not lease.leaving and in_stage_s >= limit_s:
        what = "is reachable, but not fit for runs," if lease.stage == REACHABLE else f"is {lease.stage}"
        reason = f"it {what} for {in_stage_s:.0f} s{said}"
        return Change(give_back(lease, reason, lease.seen_s, is_fault=True), (Told(TROUBLE, f"{name}: {reason}"),))
    return Change(lease)


def _away(lease: Lease, name: str, said: str, in_stage_s: float, limits: Limits) -> Change:
    """Paused (outbid, stopped, no balance) or not reached by the provider."""
    # To wait for as long as the work took, and then to lose it, costs at most twice what the better choice does.
    limit_s = max(limits.halted_s, lease.meter.gpu_s) if lease.stage == HALTED else limits.offline_s
    if lease.was_ready and in_stage_s < limit_s:
        if lease.fit_s is None:
            return Change(lease)
        told = Told(TROUBLE, f"{name}: it is {lease.stage}{said}; its runs wait, and it has {limit_s:.0f} s")
        return Change(replace(lease, fit_s=None), (told,))
    reason = f"it is {lease.stage}{said}" + (f" for {in_stage_s:.0f} s" if lease.was_ready else " before it was fit")
    # Who was outbid has a good machine; one that is away is a bad one.
    changed = give_back(lease, reason, lease.seen_s, is_fault=lease.stage == OFFLINE, is_failure=not lease.was_ready)
    return Change(changed, (Told(TROUBLE, f"{name}: {reason}"),))


def after_fit(lease: Lease, now_s: float) -> Change:
    """The machine has what was rented, and its switch is armed: runs may go there."""
    if lease.because or lease.leaving or lease.stage != REACHABLE or lease.fit_s is not None:
        return Change(lease)
    again = " again" if lease.was_ready else ""
    told = Told("renting:ready", f"{lease.label} ({lease.host}) is fit for runs{again}")
    return Change(replace(lease, fit_s=now_s, was_ready=True, why=""), (told,))


def after_unfit(lease: Lease, why: str, now_s: float) -> Change:
    """The machine is not what was rented, and will not become so. One that was ready is left first: what is on it is
    brought home."""
    if lease.because or lease.leaving:
        return Change(lease)
    reason = f"it is not fit for runs: {why}"
    if lease.was_ready:
        told = Told(TROUBLE, f"{lease.label} ({lease.host}): {reason}; what is on it is brought home first")
        return Change(replace(lease, leaving=reason, why=reason), (told,))
    told = Told(TROUBLE, f"{lease.label} ({lease.host}): {reason}")
    return Change(give_back(lease, reason, now_s, is_fault=True), (told,))


def after_time(lease: Lease, wanted: bool, spent_usd: float, now_s: float) -> Change:
    """What the time, and nobody's answer, changes: the end of its life, of the money (`spent_usd` of its purse), and
    that nobody wants it.

    A machine that was ready holds what is to be brought home: its end is said by whoever has brought it, or by the end
    of its life or of the money.
    """
    if not lease.is_open or lease.because:
        return Change(lease)
    if lease.max_usd is not None and spent_usd >= lease.max_usd:
        reason = f"max_usd is used up: {spent_usd:.2f} of {lease.max_usd:.2f} USD"
        return Change(give_back(lease, reason, now_s), (Told(TROUBLE, f"{lease.label}: {reason}"),))
    if now_s >= lease.ttl_end_s:
        reason = f"its time is over ({lease.terms.ttl_s / 3600.0:.2f} h)"
        return Change(give_back(lease, reason, now_s), (Told(TROUBLE, f"{lease.label}: {reason}"),))
    if not wanted and not lease.was_ready:
        return Change(give_back(lease, "it is not wanted any more", now_s))
    return Change(lease)


def after_release(lease: Lease, released: Released, asked_s: float, now_s: float) -> Change:
    """The provider has proved that the machine is gone. It was first asked for at `asked_s`, and lived until then."""
    if not lease.is_open:
        return Change(lease)
    lease = replace(lease, meter=lease.meter.until(asked_s))
    told = Told("released", f"{lease.label} ({lease.host}): {lease.because}; {released.proof}")
    return Change(_over(lease, released.proof, now_s), (told,))


def give_back(
    lease: Lease, because: str, now_s: float, *, is_fault: bool = False, is_failure: bool | None = None
) -> Lease:
    """A lease that is to be released. The first reason stays. `is_fault`: remember its machine; `is_failure` (as
    `is_fault` unless told): it counts among the tries of its want."""
    if lease.because or not lease.is_open:
        return lease
    is_fault = is_fault or bool(lease.leaving)
    failed = is_fault if is_failure is None else is_failure
    return replace(
        lease, because=because, fit_s=None, is_fault=is_fault, failed_s=now_s if failed else lease.failed_s
    )  # fmt: skip


def extended(lease: Lease, ttl_s: float) -> Lease:
    """A lease that may live until `ttl_s` seconds after it was ordered; never shorter than before."""
    if ttl_s <= lease.terms.ttl_s:
        return lease
    return replace(lease, terms=replace(lease.terms, ttl_s=ttl_s), ttl_end_s=lease.created_s + ttl_s)


def may_create(lease: Lease) -> bool:
    """Whether its order may be handed over now: once, and never while it is unknown what became of it."""
    return lease.state is State.INTENDED and lease.unsure_s is None and not lease.because


def may_forget(lease: Lease) -> bool:
    """Whether nothing can exist under its label, because no order was ever handed over or each was turned away."""
    return lease.state is State.INTENDED and lease.unsure_s is None and bool(lease.because)


def forgotten(change: Change, now_s: float) -> Change:
    """What becomes of an intended lease that is not wanted any more before anything was made."""
    lease = change.lease
    assert may_forget(lease), f"lease {lease.id}: something may exist"
    why = f" ({lease.why})" if lease.why else ""
    return Change(_over(lease, f"never made: {lease.because}{why}", now_s), change.told)


def why_not_rent(want: Want, leases: Iterable[Lease], now_s: float, limits: Limits) -> str:
    """Why no machine may be looked for now; '' when one may."""
    failed_s = sorted(
        lease.failed_s
        for lease in leases
        if lease.want == want.key and lease.failed_s is not None and now_s - lease.failed_s < limits.failures_s
    )
    if len(failed_s) < limits.most_failures:
        return ""
    wait_s = failed_s[-limits.most_failures] + limits.failures_s - now_s
    return (
        f"{len(failed_s)} machines have failed within {limits.failures_s / 3600.0:g} h; the next is tried in "
        f"{max(1.0, wait_s / 60.0):.0f} min"
    )


def bad_machines(leases: Iterable[Lease], now_s: float, limits: Limits) -> frozenset[str]:
    """Machines that failed us lately."""
    return frozenset(
        lease.machine
        for lease in leases
        if lease.is_fault and lease.machine and now_s - lease.created_s < limits.bad_machine_s
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """The offer to take (None: none), and why not."""

    offer: Offer | None
    why: str = ""


def choose(
    want: Want,
    offers: Sequence[tuple[Offer, float]],
    leases: Iterable[Lease],
    now_s: float,
    limits: Limits,
) -> Choice:
    """The first of the offers, each with its ceiling in USD, that is not on a machine which failed and that the purse
    can pay to the end of its life."""
    known = tuple(leases)
    bad = bad_machines(known, now_s, limits)
    bound_usd = sum(lease.bound_usd(now_s) for lease in known if lease.purse == want.purse)
    if not offers:
        return Choice(None, "nothing that fits is offered now")
    why = f"all {len(offers)} offers are on machines that failed before"
    for offer, ceiling_usd in offers:
        if offer.machine and offer.machine in bad:
            continue
        problem = why_unaffordable(ceiling_usd, bound_usd, want.max_usd)
        if not problem:
            return Choice(offer)
        why = f"offer {offer.offer_id}: {problem}"
    return Choice(None, why)


def _owned(lease: Lease, host: str, asked_s: float, now_s: float) -> Lease:
    if lease.state is State.OWNED:
        return lease
    return replace(
        lease.moved(State.OWNED),
        host=host,
        unsure_s=None,
        absences=0,
        stage=REQUESTED,
        stage_since_s=now_s,
        seen_s=now_s,
        why="",
        # Its disk is paid for since the order was handed over.
        meter=replace(lease.meter, at_s=min(asked_s, now_s), stage=REQUESTED),
    )


def _seen(lease: Lease, seen: Present, now_s: float) -> Lease:
    is_new = seen.stage != lease.stage
    watched_s = lease.watched_s + min(max(0.0, now_s - lease.seen_s), SURE_GAP_S)
    return replace(
        lease,
        stage=seen.stage,
        stage_since_s=now_s if is_new else lease.stage_since_s,
        watched_s=0.0 if is_new else watched_s,
        why=seen.why if seen.why or is_new else lease.why,
        seen_s=now_s,
        meter=lease.meter.until(now_s, seen.stage),
    )


def _over(lease: Lease, proof: str, now_s: float, *, is_failure: bool = False) -> Lease:
    """A lease whose end is proven; what it cost is counted up to now, as far as it ever existed."""
    meter = lease.meter.until(now_s, GONE) if lease.state is State.OWNED else lease.meter
    return replace(
        lease.moved(State.RELEASED),
        released_s=now_s,
        proof=proof,
        meter=meter,
        fit_s=None,
        unsure_s=None,
        failed_s=now_s if is_failure else lease.failed_s,
        because=lease.because or proof,
    )
