"""What an account is offered now, asked by a command that a person waits for: bounded patience, errors that say what to
do. Rents nothing."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from provisioning.base import AuthenticationFailed, ProvisioningError
from provisioning.vast.account import KEY_VARIABLE, WHERE_KEYS_ARE_MADE, money_left_usd, vast_account
from provisioning.vast.api import VastApi
from provisioning.vast.errors import TooEarly
from provisioning.vast.filters import is_gpu, spelled
from provisioning.vast.models import Offers
from provisioning.vast.offers import Choice, Wanted, choose, query, wide_query
from reports.wording import counted
from runner.clock import Clock
from runner.errors import InfrastructureError, UsageError
from runner.screen import printable

MOST_WAIT_S = 90.0
"""A person waits at the terminal; a service that wants more than this is left alone."""
MOST_BALANCE_WAIT_S = 10.0
"""The balance is worth less: the offers are there already."""
QUIET_S = 5.0
"""So long a command may wait without a word: the one before it has asked the same a moment ago."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Market:
    """What came of one look: what is wanted, as the service spells it, the choice, whether the list was cut, and the
    money left (None: `unread` says why)."""

    wanted: Wanted
    choice: Choice
    is_cut: bool
    unreadable: int
    left_usd: float | None
    unread: str = ""


@dataclass(slots=True)
class _Patience:
    """Asks again when the service wants to be asked later, for at most `most_s` in all."""

    clock: Clock
    most_s: float
    waited_s: float = field(default=0.0)

    def ask(self, call: Callable[[], Answer]) -> Answer:
        while True:
            try:
                return call()
            except TooEarly as early:
                wait_s = max(early.wait_s, 0.05)
                if self.waited_s + wait_s > self.most_s:
                    raise InfrastructureError(
                        f"{early}; that is more than the {self.most_s:g} s that this command waits "
                        f"({self.waited_s:.0f} s of them are used up); try again later"
                    ) from None
                self.waited_s += wait_s
                if self.waited_s >= QUIET_S:
                    print(printable(str(early)), file=sys.stderr, flush=True)
                self.clock.wait(wait_s)


def account_api(environment: Mapping[str, str], clock: Clock) -> VastApi:
    """The account that the environment names. Raises UsageError without a usable key."""
    try:
        url, key = vast_account(environment)
        return VastApi(key, clock.monotonic, random.random, url=url)
    except ValueError as problem:
        raise UsageError(f"{problem} (nothing was rented)") from None


def looked(api: VastApi, wanted: Wanted, clock: Clock, before: Market | None = None) -> Market:
    """As `look`, with errors for a person: UsageError for a key that is refused, InfrastructureError for the rest."""
    try:
        return look(api, wanted, clock, before)
    except AuthenticationFailed as problem:
        said = str(problem).rstrip(": ")  # a refusal may come without a word
        raise UsageError(
            f"{said}; check {KEY_VARIABLE}; keys are made at {WHERE_KEYS_ARE_MADE} (nothing was rented)"
        ) from None
    except ProvisioningError as problem:
        raise InfrastructureError(f"{problem}; nothing was rented; try again") from None


def wanted_of(options: Mapping[str, Any]) -> Wanted:
    """What the command line asks for, by the fields of `Wanted`; None leaves the default. Raises UsageError."""
    try:
        return Wanted.from_json({name: value for name, value in options.items() if value is not None})
    except ValueError as problem:
        raise UsageError(str(problem)) from None


def look(api: VastApi, wanted: Wanted, clock: Clock, before: Market | None = None) -> Market:
    """Search and read the balance, unless a look of this command `before` has read that. Raises ProvisioningError; a
    balance that cannot be read is no reason to fail."""
    meant, found = _search(api, wanted, _Patience(clock, MOST_WAIT_S))
    if before is not None:
        left_usd, unread = before.left_usd, before.unread
    else:
        left_usd, unread = _balance(api, clock)
    is_cut = len(found.offers) + found.unreadable >= query(meant).limit
    return Market(meant, choose(found.offers, meant), is_cut, found.unreadable, left_usd, unread)


def _search(api: VastApi, wanted: Wanted, patience: _Patience) -> tuple[Wanted, Offers]:
    """What is wanted, and what there is of it; where that is nothing, all that there is. The service knows a GPU by its
    exact name only, so one that it does not know is looked for in a wide list."""
    found = patience.ask(lambda: api.search(query(wanted)))
    is_known = all(any(is_gpu(name, offer.gpu_name) for offer in found.offers) for name in wanted.gpu_names)
    if found.offers and is_known:
        return wanted, found
    wide = patience.ask(lambda: api.search(wide_query(wanted)))
    meant = spelled(wanted, wide.offers)
    if query(meant).to_wire() != query(wanted).to_wire():
        found = patience.ask(lambda: api.search(query(meant)))
    return meant, found if found.offers else wide


def _balance(api: VastApi, clock: Clock) -> tuple[float | None, str]:
    """The money left; None, and why it could not be read."""
    try:
        left_usd = money_left_usd(_Patience(clock, MOST_BALANCE_WAIT_S).ask(api.account))
    except (ProvisioningError, InfrastructureError) as problem:
        return None, str(problem)
    return left_usd, "" if left_usd is not None else "the account does not say"


def remarks(market: Market) -> list[str]:
    """What a person must know besides: a list that was cut, records that were left out, money that will not do."""
    said = []
    if market.is_cut:
        said.append("the service gave only its cheapest offers, there may be more: ask for a GPU by its name")
    if market.unreadable:
        have = "has no number and is" if market.unreadable == 1 else "have no number and are"
        said.append(f"{counted(market.unreadable, 'record')} of the answer {have} left out")
    if market.left_usd is None:
        said.append(f"the balance of the account could not be read: {market.unread}")
        return said
    if market.left_usd <= 0.0:
        said.append(f"the account is empty ({market.left_usd:.2f} USD): nothing can be rented until it is paid in")
    elif market.choice.ranked and market.left_usd < (least := market.choice.ranked[0].cost.total_usd):
        said.append(
            f"the account's {market.left_usd:.2f} USD are less than the {least:.2f} USD that "
            f"{market.wanted.hours:g} h of the first offer cost; at 0 the service stops every instance"
        )
    return said
