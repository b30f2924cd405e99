"""`runner offers`: what could be rented now, what the planned use of it would cost, and why the rest does not fit.

Rents nothing. One search (a second, wider one where nothing is found) and one look at the account's balance.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from provisioning.base import AuthenticationFailed, ProvisioningError
from provisioning.vast.account import KEY_VARIABLE, WHERE_KEYS_ARE_MADE, money_left_usd, vast_account
from provisioning.vast.api import VastApi
from provisioning.vast.errors import TooEarly
from provisioning.vast.offers import Choice, Ranked, Wanted, asked, choose, explain, query, wide_query
from runner.clock import Clock, SystemClock
from runner.errors import EXIT_INFRASTRUCTURE, EXIT_OK, InfrastructureError, UsageError
from runner.screen import printable

MOST_WAIT_S = 90.0
"""A person waits at the terminal; a service that wants more than this is left alone."""
MOST_BALANCE_WAIT_S = 10.0
"""The balance is worth less: the offers are there already."""
WIDE = 118
PIPE_WIDTH = 140
"""Cells of a table that goes to a file or a pipe."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Market:
    """What came of one look: the choice, whether it was cut, and the money left (None: `unread` says why)."""

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
                print(printable(str(early)), file=sys.stderr, flush=True)
                self.clock.wait(wait_s)
                self.waited_s += wait_s


def offers(
    wanted: Wanted, environment: Mapping[str, str], *, as_json: bool, limit: int, clock: Clock | None = None
) -> int:
    """Print at most `limit` offers that fit, best first, as a table or as one JSON document; 3 when none fits.

    Raises UsageError without a usable key, InfrastructureError when the service does not answer.
    """
    clock = clock or SystemClock()
    try:
        url, key = vast_account(environment)
        api = VastApi(key, clock.monotonic, random.random, url=url)
    except ValueError as problem:
        raise UsageError(str(problem)) from None
    try:
        market = look(api, wanted, clock)
    except AuthenticationFailed as problem:
        said = str(problem).rstrip(": ")  # a refusal may come without a word
        raise UsageError(f"{said}; check {KEY_VARIABLE}; keys are made at {WHERE_KEYS_ARE_MADE}") from None
    except ProvisioningError as problem:
        raise InfrastructureError(f"{problem}; nothing was rented; try again") from None
    if as_json:
        print(json.dumps(document(market, wanted, limit), allow_nan=False))
    else:
        _print(market, wanted, limit)
    return EXIT_OK if market.choice.ranked else EXIT_INFRASTRUCTURE


def wanted_of(options: Mapping[str, Any]) -> Wanted:
    """What the command line asks for, by the fields of `Wanted`; None leaves the default. Raises UsageError."""
    try:
        return Wanted.from_json({name: value for name, value in options.items() if value is not None})
    except ValueError as problem:
        raise UsageError(str(problem)) from None


def look(api: VastApi, wanted: Wanted, clock: Clock) -> Market:
    """Search and read the balance. Raises ProvisioningError; a balance that cannot be read is no reason to fail."""
    patience = _Patience(clock, MOST_WAIT_S)
    asking = query(wanted)
    found = patience.ask(lambda: api.search(asking))
    if not found.offers:
        asking = wide_query(wanted)
        found = patience.ask(lambda: api.search(asking))
    left_usd, unread = None, "the account does not say"
    try:
        left_usd = money_left_usd(_Patience(clock, MOST_BALANCE_WAIT_S).ask(api.account))
    except (ProvisioningError, InfrastructureError) as problem:
        unread = str(problem)
    is_cut = len(found.offers) + found.unreadable >= asking.limit
    return Market(
        choose(found.offers, wanted), is_cut, found.unreadable, left_usd, "" if left_usd is not None else unread
    )


def document(market: Market, wanted: Wanted, limit: int) -> dict[str, Any]:
    """Everything as JSON values; `excluded` and `fit` count all offers, `offers` holds at most `limit`."""
    choice = market.choice
    return {
        "wanted": wanted.to_json(),
        "found": choice.found,
        "fit": len(choice.ranked),
        "unreadable": market.unreadable,
        "is_cut": market.is_cut,
        "says": explain(choice),
        "excluded": [
            {"filter": one.name, "count": one.count, "unknown": one.unknown, "why": one.why, "nearest": one.nearest}
            for one in choice.excluded
        ],
        "offers": [_row(one, wanted) for one in choice.ranked[:limit]],
        "account": {"left_usd": market.left_usd, "unread": market.unread},
        "remarks": remarks(market, wanted),
    }


def _row(one: Ranked, wanted: Wanted) -> dict[str, Any]:
    offer = one.offer
    return {
        "offer": offer.offer_id,
        "machine": offer.machine_id,
        "gpu_name": offer.gpu_name,
        "gpus": offer.num_gpus,
        "is_whole_machine": one.is_whole,
        "vram_gib": None if offer.gpu_ram_mb is None else round(offer.gpu_ram_mb / 1024, 2),
        "reliability": offer.reliability,
        "place": offer.geolocation,
        "inet_down_mbit_per_s": offer.inet_down_mbit_per_s,
        "inet_up_mbit_per_s": offer.inet_up_mbit_per_s,
        "cuda": offer.cuda_max_good,
        "min_bid_usd_per_h": offer.min_bid_usd_per_h,
        "bid_usd_per_h": one.prices.gpu_usd_per_h if wanted.is_interruptible else None,
        "usd_per_h": one.prices.usd_per_h,
        "plan_usd": one.cost.total_usd,
        "gpu_usd": one.cost.gpu_usd,
        "storage_usd": one.cost.storage_usd,
        "traffic_usd": one.cost.traffic_usd,
    }


def remarks(market: Market, wanted: Wanted) -> list[str]:
    """What a person must know besides: a list that was cut, records that were left out, money that will not do."""
    said = []
    if market.is_cut:
        said.append("the service gave only its cheapest offers, there may be more: ask for a GPU by its name")
    if market.unreadable:
        said.append(f"{market.unreadable} records of the answer have no number and are left out")
    if market.left_usd is None:
        said.append(f"the balance of the account could not be read: {market.unread}")
        return said
    if market.left_usd <= 0.0:
        said.append(f"the account is empty ({market.left_usd:.2f} USD): nothing can be rented until it is paid in")
    elif market.choice.ranked and market.left_usd < (least := market.choice.ranked[0].cost.total_usd):
        said.append(
            f"the account's {market.left_usd:.2f} USD are less than the {least:.2f} USD that {wanted.hours:g} h of the "
            "first offer cost; at 0 the service stops every instance"
        )
    return said


def _print(market: Market, wanted: Wanted, limit: int) -> None:
    ranked = market.choice.ranked
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    if ranked:
        console.print(_table(ranked[:limit], wanted, is_wide=console.width >= WIDE))
    lines = [f"{len(ranked) - limit:,} more fit: --limit {len(ranked)}"] if len(ranked) > limit else []
    lines.append(explain(market.choice))
    if not ranked:
        lines.insert(0, f"nothing to rent: {asked(wanted)}")
    if ranked:
        lines.append(
            f"the plan: {wanted.hours:g} h, {wanted.disk_gb:g} GB of disk, {wanted.traffic_up_gb:g} GB out, "
            f"{wanted.traffic_down_gb:g} GB in"
        )
    if market.left_usd is not None:
        lines.append(f"left in the account: {market.left_usd:.2f} USD")
    for line in (*lines, *remarks(market, wanted)):
        console.print(printable(line), markup=False, soft_wrap=True)


def _table(ranked: tuple[Ranked, ...], wanted: Wanted, *, is_wide: bool) -> Table:
    """The offers; where the terminal is narrow, without place, network and the parts of the cost."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("offer", "machine"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("GPUs", overflow="fold")
    for name in ("GiB", "reliable", "USD/h", f"{wanted.hours:g} h USD"):
        table.add_column(name, justify="right", no_wrap=True)
    if is_wide:
        table.add_column("= GPU + disk + net", no_wrap=True)
        table.add_column("Mbit/s in/out", justify="right", no_wrap=True)
        table.add_column("place", overflow="fold")
    for one in ranked:
        cells = _cells(one)
        table.add_row(*(Text(printable(cell)) for cell in (cells if is_wide else cells[:7])))
    return table


def _cells(one: Ranked) -> list[str]:
    offer, cost = one.offer, one.cost
    part = "" if one.is_whole else f" ({offer.gpu_frac:.3g} of it)" if offer.gpu_frac else " (part)"
    return [
        str(offer.offer_id),
        str(offer.machine_id),
        f"{offer.num_gpus} x {offer.gpu_name or '?'}{part}",
        _shown(None if offer.gpu_ram_mb is None else offer.gpu_ram_mb / 1024, ".2f"),
        _shown(offer.reliability, ".3f"),
        f"{one.prices.usd_per_h:.3f}",
        f"{cost.total_usd:.2f}",
        f"{cost.gpu_usd:.2f} + {cost.storage_usd:.2f} + {cost.traffic_usd:.2f}",
        f"{_shown(offer.inet_down_mbit_per_s, '.0f')}/{_shown(offer.inet_up_mbit_per_s, '.0f')}",
        offer.geolocation or "?",
    ]


def _shown(value: float | None, form: str) -> str:
    return "?" if value is None else format(value, form)
