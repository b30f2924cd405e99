"""The step that repeats a provider's verbs until what is rented is what is wanted.

Every machine has a row with a label of its own, committed before it is ordered, and the row leaves `owned` only on the
provider's word. A step hands verbs over and applies what came back; it never waits. Whatever it was doing when its
process was killed, another one goes on from the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from provisioning.base import Absent, AuthenticationFailed, Handle, Observation, Present
from provisioning.fitness import Fit, Unfit
from runner.renting import decide
from runner.renting.bills import Bills, as_counted
from runner.renting.book import Book
from runner.renting.decide import Limits
from runner.renting.lanes import ASK, LOOK, RELEASE, Answer, Calls, Submit, Waits
from runner.renting.leases import HALTED, REACHABLE, Change, Lease, Told, Want
from runner.renting.market import Market
from runner.renting.money import FROZEN, Terms, terms_of_order, why_unaffordable
from runner.renting.orders import Orders
from runner.renting.returns import Returns
from runner.renting.watch import Watch
from runner.store.session import Session

INSPECT_AGAIN_S = 5.0

HOST_ENDS_S = 1800.0
"""A machine is given back so long before the day that its host has named: then it is stopped, and cannot be read."""

MONEY_AGAIN_S = 600.0
"""Between two looks at the account while machines are paused."""


class Renting:
    """What the controller asks for rented machines. `step` in every round, from one thread.

    `now` is in seconds since the epoch, `monotonic` never runs backwards. `submit` carries verbs out, at once or in
    threads of its own. Takes up every lease of the home that is not released; raises HomeError for a row that cannot be
    read.
    """

    def __init__(
        self,
        session: Session,
        market: Market,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        submit: Submit,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        terms_of: Callable[[Mapping[str, Any]], Terms] = terms_of_order,
    ) -> None:
        self._market = market
        self._limits = limits
        self._book = Book(session, market.name, now, monotonic)
        self._clock = self._book.clock
        self._calls = Calls(submit, self._clock)
        self._waits = Waits()
        self._watch = Watch(market, self._book.prefix, self._clock(), limits)
        self._orders = Orders(self._book, market, self._calls, self._waits, self._watch, limits, terms_of)
        self._returns = Returns(self._book, market, self._calls, self._waits, self._watch)
        self._bills = Bills(self._book, market, self._calls, self._waits)
        self._wants: dict[str, Want] = {}
        self._longer: dict[int, float] = {}

    def step(self, wants: Iterable[Want]) -> None:
        """Apply what was answered, decide, hand over what is due. `wants` is all that is wanted now: a machine that was
        never ready and is not in it any more is given back; one that was ready is given back by `release`, or at the
        end of its life. Never call it inside a transaction: an intent must be on disk before its order goes out."""
        self._wants = {want.key: want for want in wants}
        self._calls.apply_answers()
        now_s = self._clock()
        self._book.mind_limits()
        self._mind_time(now_s)
        self._orders.follow(tuple(self._wants.values()), now_s)
        self._hand_over(now_s)
        self._calls.apply_answers()
        self._orders.follow(tuple(self._wants.values()), now_s)
        self._book.write_news()

    def ready(self) -> dict[int, Handle]:
        """The machines that runs may be on now, by lease."""
        return {one.id: one.handle for one in self._book.open() if one.is_ready}

    def waits(self) -> dict[str, str]:
        """Why each want has no machine yet, in a sentence."""
        return {key: why for key in self._wants if (why := self._why_waiting(key))}

    def leases(self) -> tuple[Lease, ...]:
        """All leases, released ones too, by number."""
        return self._book.all()

    def lease_of(self, key: str) -> Lease | None:
        """The open lease of a want."""
        return self._book.of_want(key)

    def release(self, lease: int, because: str) -> None:
        """Give a machine back: everything worth keeping has been brought home. Raises KeyError for no lease of ours."""
        self._book.write([Change(decide.give_back(self._book.leases[lease], because, self._clock()))])

    def extend(self, lease: int, ttl_s: float) -> str:
        """Let a machine live until `ttl_s` seconds after it was ordered; why not, or '' when it has been begun.

        The machine's own switch is told first, and only what it has confirmed counts here. Raises KeyError for no lease
        of ours.
        """
        found, now_s = self._book.leases[lease], self._clock()
        longer = decide.extended(found, ttl_s)
        if not found.is_ready:
            return f"{found.label} is not ready"
        if longer.ttl_end_s <= found.ttl_end_s:
            return ""
        longest_s = found.order.get("duration_s")
        if longest_s is not None and longer.terms.ttl_s > longest_s - HOST_ENDS_S:
            return f"its host lets it live for {longest_s / 3600.0:.2f} h only"
        more_usd = longer.bound_usd(now_s) - found.bound_usd(now_s)
        problem = why_unaffordable(more_usd, self.bound_usd(found.purse), found.max_usd)
        if not problem:
            self._longer[lease] = ttl_s
        return problem

    def moved(self, lease: int, up_bytes: int, down_bytes: int) -> None:
        """Count traffic out of and into a machine. Raises KeyError for no lease of ours."""
        found = self._book.leases[lease]
        self._book.write([Change(replace(found, meter=found.meter.moved(up_bytes, down_bytes)))])

    def bound_usd(self, purse: str) -> float:
        """What the leases of a purse may cost at most: bills of those that are over, outlooks of the others."""
        now_s = self._clock()
        return sum(as_counted(one).bound_usd(now_s) for one in self._book.all() if one.purse == purse)

    def spent_usd(self, purse: str) -> float:
        """What the leases of a purse have cost until now."""
        return sum(as_counted(one.until(self._clock())).bill.usd for one in self._book.all() if one.purse == purse)

    @property
    def provider(self) -> str:
        """The name of the place."""
        return self._market.name

    @property
    def prefix(self) -> str:
        """How all labels of this home begin."""
        return self._book.prefix

    @property
    def is_idle(self) -> bool:
        """Whether nothing is rented, under way, or may still come to light."""
        return not (self._book.open() or self._calls.any_under_way or self._watch.is_needed((), self._clock()))

    def sweep(self) -> None:
        """Look once more at all that the account holds, and give back what carries our name and is no lease of ours."""
        self._watch.sweep(self._clock())

    @property
    def is_swept(self) -> bool:
        """Whether all that the account holds was seen since the start, or since the last `sweep`."""
        return self._watch.is_swept

    @property
    def on_the_way_back(self) -> tuple[Handle, ...]:
        """What is being given back and not proven gone."""
        return (*(one.handle for one in self._book.to_release()), *self._watch.extras)

    @property
    def awaits_bill_s(self) -> float:
        """When the next bill of a machine that was given back is asked for; infinite when none is."""
        return self._bills.due_s()

    @property
    def foreign(self) -> tuple[Handle, ...]:
        """What else is in the account, as the last complete list shows it; never touched."""
        return self._watch.foreign

    def next_due_s(self) -> float:
        """When the next step has something to do (seconds since the epoch); infinite when nothing is to be done."""
        now_s, open_leases = self._clock(), self._book.open()
        due = [self._returns.due_s(), self._bills.due_s(), self._orders.due_s(now_s)]
        due += [self._waits.due_s("inspect", ("inspect", one.id)) for one in self._to_inspect()]
        due += [self._waits.due_s(("extend", number)) for number in self._longer]
        due += [self._waits.due_s("money")] if self._are_paused() else []
        due += [one.ttl_end_s for one in open_leases if not one.because]
        if self._watch.is_needed(open_leases, now_s):
            due.append(max(self._watch.due_s, self._waits.due_s("observe")))
        return min(due)

    def _mind_time(self, now_s: float) -> None:
        changed = []
        for lease in self._book.open():
            spent_usd = 0.0 if lease.max_usd is None else self.spent_usd(lease.purse)
            change = decide.after_time(lease, lease.want in self._wants, spent_usd, now_s)
            if decide.may_forget(change.lease) and not self._orders.is_ordering(lease):
                change = decide.forgotten(change, now_s)
            if change.lease is not lease:
                changed.append(change)
        if changed:
            self._book.write(changed)

    def _hand_over(self, now_s: float) -> None:
        if self._calls.is_free(RELEASE):
            self._returns.hand_over(now_s)
        if self._calls.is_free(LOOK):
            self._look(now_s)
        if self._calls.is_free(ASK):
            _ = (
                self._orders.place(now_s)
                or self._list(now_s)
                or self._orders.search(now_s)
                or self._bills.hand_over(now_s)
                or self._look_at_money(now_s)
            )

    def _are_paused(self) -> bool:
        return any(one.was_ready and one.is_kept and one.stage == HALTED for one in self._book.open())

    def _look_at_money(self, now_s: float) -> bool:
        """An empty account pauses all machines, and each of them looks as if it was outbid."""
        if not self._are_paused() or self._waits.due_s("money") > now_s:
            return False
        self._calls.begin(ASK, self._market.balance_usd, self._on_money)
        return True

    def _on_money(self, answer: Answer) -> None:
        if answer.error is not None:
            self._waits.after("money", answer.now_s, answer.error)
            return
        self._waits.at("money", answer.now_s + MONEY_AGAIN_S)
        name = self._market.name
        if answer.result <= 0.0:
            said = f"the account at {name} is empty ({answer.result:.2f} USD): its machines are paused; pay in to go on"
            self._book.tell_once("money", said)
        else:
            self._book.well("money", f"there is money at {name} again")

    def _list(self, now_s: float) -> bool:
        due_s = max(self._watch.due_s, self._waits.due_s("observe"))
        if due_s > now_s or not self._watch.is_needed(self._book.open(), now_s):
            return False
        about = self._book.open()
        labels = [self._watch.sentinel, *(one.label for one in about)]
        self._calls.begin(ASK, lambda: self._market.observe(labels), lambda answer: self._on_observe(about, answer))
        return True

    def _on_observe(self, about: tuple[Lease, ...], answer: Answer) -> None:
        now_s, provider = answer.now_s, self._market.name
        if answer.error is not None:
            self._waits.after("observe", now_s, answer.error)
            self._watch.failed(str(answer.error), now_s)
            if isinstance(answer.error, AuthenticationFailed):
                said = f"{provider} refuses our key, asked again until it works: {answer.error}"
                self._book.tell_once("key", said)
        else:
            self._waits.well("observe")
            self._apply_observation(about, answer)
        if self._watch.problem:
            said = f"{provider} gives no list ({self._watch.problem}); what is rented stays so, and it is asked again"
            self._book.tell_once("silent", said)
        else:
            self._book.well("silent", f"{provider} gives lists again")

    def _apply_observation(self, about: tuple[Lease, ...], answer: Answer) -> None:
        changed = []
        for then in about:
            lease = self._book.leases[then.id]
            # Only for a lease as it was when it was asked about: it may have been released since.
            if (then.state, then.host, then.unsure_s) == (lease.state, lease.host, lease.unsure_s):
                seen = answer.result[lease.label]
                changed.append(_after_observation(lease, seen, self._watch.listed_s, answer.now_s, self._limits))
        if any(one.lease.unsure_s is not None or not one.lease.is_open for one in changed):
            self._watch.doubt(answer.now_s)
        self._book.write(changed)
        nothing = answer.result[self._watch.sentinel]
        is_complete = isinstance(nothing, Absent)
        why = "" if is_complete else str(getattr(nothing, "reason", ""))
        self._watch.seen(is_complete, why, answer.asked_s, answer.now_s, self._book.all())
        if is_complete:
            self._book.well("key", f"{self._market.name} takes our key again")

    def _to_inspect(self) -> list[Lease]:
        return [
            one
            for one in self._book.open()
            if one.is_kept and one.stage == REACHABLE and one.fit_s is None and not one.leaving
        ]

    def _look(self, now_s: float) -> None:
        for number, ttl_s in self._longer.items():
            lease = self._book.leases[number]
            if not lease.is_ready:
                del self._longer[number]
                return
            if self._waits.due_s(("extend", number)) <= now_s:
                self._extend(lease, ttl_s)
                return
        for lease in self._to_inspect():
            if self._waits.due_s("inspect", ("inspect", lease.id)) <= now_s:
                self._inspect(lease)
                return

    def _inspect(self, lease: Lease) -> None:
        self._calls.begin(
            LOOK,
            lambda: self._market.inspect(lease.handle, lease.gpus),
            lambda answer: self._on_inspect(lease, answer),
        )

    def _on_inspect(self, then: Lease, answer: Answer) -> None:
        lease, found = self._book.leases[then.id], answer.result
        if (lease.stage, lease.stage_since_s, lease.because) != (then.stage, then.stage_since_s, ""):
            return
        if answer.error is not None:
            self._waits.after(("inspect", lease.id), answer.now_s, answer.error)
            self._book.write([Change(replace(lease, why=str(answer.error)))])
            return
        self._waits.at(("inspect", lease.id), answer.now_s + INSPECT_AGAIN_S)
        if isinstance(found, Fit):
            self._watch.soon(answer.now_s)
            self._book.write([decide.after_fit(lease, answer.now_s)])
        elif isinstance(found, Unfit):
            self._book.write([decide.after_unfit(lease, found.why, answer.now_s)])
        else:
            self._book.write([Change(replace(lease, why=found.why))])

    def _extend(self, lease: Lease, ttl_s: float) -> None:
        self._calls.begin(
            LOOK,
            lambda: self._market.extend(lease.handle, ttl_s),
            lambda answer: self._on_extend(lease.id, ttl_s, answer),
        )

    def _on_extend(self, number: int, ttl_s: float, answer: Answer) -> None:
        if answer.error is not None:
            self._waits.after(("extend", number), answer.now_s, answer.error)
            return
        self._waits.well(("extend", number))
        self._longer.pop(number, None)
        longer = decide.extended(self._book.leases[number], ttl_s)
        told = Told("renting:extended", f"{longer.label} may live {ttl_s / 3600.0:.2f} h")
        self._book.write([Change(longer, (told,))])

    def _why_waiting(self, key: str) -> str:
        """'' for one that has its machine."""
        lease = self._book.of_want(key)
        if lease is None:
            return self._orders.why.get(key, "a machine is looked for")
        if lease.is_ready:
            return ""
        if lease.because:
            return f"{lease.label} ({lease.host or 'not known'}) is being given back first: {lease.because}"
        said = f": {lease.why}" if lease.why else ""
        if lease.unsure_s is not None:
            return f"it is not known whether {lease.label} was made; the provider's lists will tell{said}"
        name = lease.host or lease.label
        if lease.stage == REACHABLE and not lease.leaving:
            return f"{name} is there, and looked over before runs go to it{said}"
        return f"{name} is {lease.stage or 'ordered'}{said}"


def _after_observation(lease: Lease, seen: Observation, listed_s: float, now_s: float, limits: Limits) -> Change:
    """What the provider's word means. A frozen machine is a halted one to everybody but its meter."""
    if not isinstance(seen, Present) or seen.stage != FROZEN:
        return decide.after_observation(lease, seen, listed_s, now_s, limits)
    # A halted one may wait for as long as it worked, for that costs its disk only; this one has the shortest limit.
    paused = replace(lease, meter=replace(lease.meter, gpu_s=0.0))
    change = decide.after_observation(paused, replace(seen, stage=HALTED), listed_s, now_s, limits)
    if change.lease is paused:
        return Change(lease)
    return replace(change, lease=replace(change.lease, meter=lease.meter.until(now_s, FROZEN)))
