"""`runner offers`: what could be rented now, what the planned use of it would cost, and why the rest does not fit.

Rents nothing. One search and one look at the account's balance; a wider search where nothing is found, or a GPU has
another name there, and then one with that name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from provisioning.vast.offers import Ranked, Wanted, asked, explain
from runner.clock import Clock, SystemClock
from runner.errors import EXIT_INFRASTRUCTURE, EXIT_OK
from runner.renting.offered import Market, account_api, looked, remarks
from runner.screen import printable

WIDE = 118
PIPE_WIDTH = 140
"""Cells of a table that goes to a file or a pipe."""


def offers(
    wanted: Wanted, environment: Mapping[str, str], *, as_json: bool, limit: int, clock: Clock | None = None
) -> int:
    """Print at most `limit` offers that fit, best first, as a table or as one JSON document; 3 when none fits.

    Raises UsageError without a usable key, InfrastructureError when the service does not answer.
    """
    clock = clock or SystemClock()
    market = looked(account_api(environment, clock), wanted, clock)
    if as_json:
        print(json.dumps(document(market, limit), allow_nan=False))
    else:
        _print(market, limit)
    return EXIT_OK if market.choice.ranked else EXIT_INFRASTRUCTURE


def document(market: Market, limit: int) -> dict[str, Any]:
    """Everything as JSON values; `excluded` and `fit` count all offers, `offers` holds at most `limit`."""
    choice, wanted = market.choice, market.wanted
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
        "remarks": remarks(market),
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


def _print(market: Market, limit: int) -> None:
    ranked, wanted = market.choice.ranked, market.wanted
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    if ranked:
        console.print(_table(ranked[:limit], wanted, is_wide=console.width >= WIDE))
    more = len(ranked) - limit
    lines = [f"{more:,} more {'fits' if more == 1 else 'fit'}: --limit {len(ranked)}"] if more > 0 else []
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
    for line in (*lines, *remarks(market)):
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
