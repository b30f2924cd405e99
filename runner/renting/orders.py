"""From a want to a machine: get the account ready, search, write the intent, place the order once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from provisioning.base import Ambiguous, NoCapacity, Offer, RateLimited, Refused, SkipOffer
from runner.renting import decide
from runner.renting.bills import as_counted
from runner.renting.book import Book
from runner.renting.decide import Creation, Limits, NotMade, OfferGone
from runner.renting.lanes import ASK, Answer, Calls, Waits
from runner.renting.leases import Change, Lease, Told, Want
from runner.renting.market import Market
from runner.renting.money import Meter, Terms
from runner.renting.watch import Watch

KEEP_OFFERS_S = 60.0
"""Offers that were found earlier are old: somebody else may have taken them."""

KEEP_ORDER_S = 300.0
"""An order that could not be placed for so long is not placed any more: its price may have become another."""

SEARCH_AGAIN_S = 120.0
"""A market that had nothing is asked again so much later."""


class Orders:
    """Looks for machines for the wants that have none."""

    def __init__(
        self,
        book: Book,
        market: Market,
        calls: Calls,
        waits: Waits,
        watch: Watch,
        limits: Limits,
        terms_of: Callable[[Mapping[str, Any]], Terms],
    ) -> None:
        self._book = book
        self._market = market
        self._calls = calls
        self._waits = waits
        self._watch = watch
        self._limits = limits
        self._terms_of = terms_of
        self._wants: tuple[Want, ...] = ()
        self._offers: dict[str, tuple[float, tuple[Offer, ...]]] = {}
        self._is_prepared = False
        self._ordering: int | None = None
        self.why: dict[str, str] = {}

    def follow(self, wants: tuple[Want, ...], now_s: float) -> None:
        """Which of the wants have no lease and may look for a machine now."""
        found = []
        for want in wants:
            if self._book.of_want(want.key) is not None:
                continue
            why = decide.why_not_rent(want, self._book.all(), now_s, self._limits)
            if why:
                self.why[want.key] = why
            else:
                found.append(want)
        self._wants = tuple(found)

    def is_ordering(self, lease: Lease) -> bool:
        """Whether its order has been handed over and not been answered."""
        return self._ordering == lease.id

    def due_s(self, now_s: float) -> float:
        """When there is something to ask; infinite when there is not."""
        due = [
            self._waits.due_s("create", ("create", one.id))
            for one in self._book.open()
            if decide.may_create(one) and not self.is_ordering(one)
        ]
        for want in self._wants:
            if not self._is_prepared:
                due.append(self._waits.due_s("prepare"))
            elif self._has_offers(want, now_s):
                due.append(self._waits.due_s("create"))
            else:
                due.append(self._waits.due_s("search", ("search", want.key)))
        return min(due, default=float("inf"))

    def place(self, now_s: float) -> bool:
        """Hand over the order of an intended lease, after making one where an offer is known; false: nothing to do."""
        if self._waits.due_s("create") > now_s:
            return False
        for lease in self._book.open():
            if decide.may_create(lease) and self._waits.due_s(("create", lease.id)) <= now_s:
                if now_s - lease.created_s <= KEEP_ORDER_S:
                    self._order(lease)
                    return True
                self._book.write([Change(decide.give_back(lease, "its offer has become old", now_s))])
        for want in self._wants:
            if self._is_prepared and self._has_offers(want, now_s):
                intended = self._intend(want, now_s)
                if intended is not None:
                    self._order(intended)
                    return True
        return False

    def search(self, now_s: float) -> bool:
        """Ask for offers, or for what must be done before; false: nothing to do."""
        for want in self._wants:
            if not self._is_prepared:
                if self._waits.due_s("prepare") <= now_s:
                    self._calls.begin(ASK, self._market.prepare, self._on_prepare)
                    return True
            elif not self._has_offers(want, now_s) and self._waits.due_s("search", ("search", want.key)) <= now_s:
                self._search(want)
                return True
        return False

    def _search(self, want: Want) -> None:
        self._calls.begin(
            ASK, lambda: self._market.offers(want.request), lambda answer: self._on_search(want.key, answer)
        )

    def _order(self, lease: Lease) -> None:
        offer = Offer(
            lease.provider, lease.offer_id, lease.gpus, 0, lease.terms.prices.usd_per_h, lease.machine, lease.order
        )
        self._ordering = lease.id
        self._calls.begin(
            ASK, lambda: self._market.create(offer, lease.label), lambda answer: self._on_create(lease.id, answer)
        )

    def _intend(self, want: Want, now_s: float) -> Lease | None:
        """The committed row of a lease on the best offer; None when none can be taken."""
        found_s, offers = self._offers[want.key]
        priced: list[tuple[Offer, Terms]] = []
        for offer in offers:
            try:
                priced.append((offer, self._terms_of(offer.order)))
            except ValueError as problem:
                self.why[want.key] = f"offer {offer.offer_id}: {problem}"
        ceilings = [(offer, terms.ceiling_usd) for offer, terms in priced]
        counted = [as_counted(one) for one in self._book.all()]
        choice = decide.choose(want, ceilings, counted, now_s, self._limits)
        if choice.offer is None:
            self.why[want.key] = choice.why
            del self._offers[want.key]
            self._waits.at(("search", want.key), now_s + SEARCH_AGAIN_S)
            return None
        taken = choice.offer
        # Had or lost, it can be ordered once.
        self._offers[want.key] = found_s, tuple(one for one in offers if one is not taken)
        terms = next(terms for offer, terms in priced if offer is taken)
        self.why.pop(want.key, None)
        return self._book.add(
            lambda number: _intended(number, f"{self._book.prefix}{number}", want, taken, terms, now_s),
            lambda lease: Told(
                "renting:ordered", f"{lease.label}: offer {taken.offer_id}, at most {terms.ceiling_usd:.2f} USD"
            ),
        )

    def _has_offers(self, want: Want, now_s: float) -> bool:
        found = self._offers.get(want.key)
        return found is not None and bool(found[1]) and now_s - found[0] <= KEEP_OFFERS_S

    def _on_prepare(self, answer: Answer) -> None:
        if answer.error is None:
            self._waits.well("prepare")
            self._is_prepared = bool(answer.result)
            return
        self._waits.after("prepare", answer.now_s, answer.error)
        if not isinstance(answer.error, RateLimited):  # to be asked to wait for a second is no news
            self.why |= dict.fromkeys((want.key for want in self._wants), str(answer.error))

    def _on_search(self, key: str, answer: Answer) -> None:
        if answer.error is None:
            self._waits.well(("search", key))
            self._offers[key] = answer.now_s, answer.result
            return
        if not isinstance(answer.error, RateLimited):
            self.why[key] = str(answer.error)
        if isinstance(answer.error, NoCapacity | ValueError):
            self._waits.at(("search", key), answer.now_s + SEARCH_AGAIN_S)
        else:
            self._waits.after("search" if isinstance(answer.error, RateLimited) else ("search", key), answer.now_s,
                              answer.error)  # fmt: skip

    def _on_create(self, number: int, answer: Answer) -> None:
        self._ordering = None
        error, now_s = answer.error, answer.now_s
        outcome: Creation
        if error is None:
            outcome = answer.result
        elif isinstance(error, SkipOffer):
            outcome = OfferGone(str(error))
        elif isinstance(error, ValueError):
            outcome = Refused(f"the offer cannot be ordered: {error}")
        else:
            outcome = NotMade(str(error))
            self._waits.after("create" if isinstance(error, RateLimited) else ("create", number), now_s, error)
        if isinstance(outcome, Ambiguous):
            self._watch.doubt(now_s)
        self._watch.soon(now_s)
        self._book.write([decide.after_create(self._book.leases[number], outcome, answer.asked_s, now_s)])


def _intended(number: int, label: str, want: Want, offer: Offer, terms: Terms, now_s: float) -> Lease:
    return Lease(
        id=number,
        provider=offer.provider,
        label=label,
        want=want.key,
        purse=want.purse,
        terms=terms,
        ttl_end_s=now_s + terms.ttl_s,
        created_s=now_s,
        meter=Meter(now_s, ""),
        machine=offer.machine,
        gpus=offer.gpus,
        max_usd=want.max_usd,
        offer_id=offer.offer_id,
        order=offer.order,
        slots_requested=want.request.slots,
    )
