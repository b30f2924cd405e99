"""Searching offers and creating an instance from one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tests.fakes.vast.answers import Answer, refused, said
from tests.fakes.vast.call import Call
from tests.fakes.vast.strict import oversize
from tests.fakes.vast.world import Wish

if TYPE_CHECKING:
    from tests.fakes.vast.fake import Fake

PRICE_USD_PER_H = (0.001, 128.0)
DISK_MIN_GB = 8.0


def search(fake: Fake, call: Call) -> Answer:
    """POST: the filters are the body."""
    return _offers(fake, call.fields)


def search_put(fake: Fake, call: Call) -> Answer:
    """The newer form: the filters are under `q`."""
    wanted = call.fields.get("q")
    return _offers(fake, wanted if isinstance(wanted, dict) else {})


def search_get(fake: Fake, call: Call) -> Answer:
    """The form with everything in the URL."""
    try:
        wanted = json.loads(call.query.get("q", "{}"))
    except ValueError:
        return refused(400, "invalid_args", "error 400/3461: q is no JSON", fake.shapes)
    return _offers(fake, wanted)


def _offers(fake: Fake, wanted: Mapping[str, Any]) -> Answer:
    try:
        return said({"offers": fake.market.search(wanted, fake.world.now_s)})
    except (ValueError, TypeError, KeyError) as wrong:
        return refused(400, "invalid_args", f"error 400/3461: {wrong}", fake.shapes)


def gone(fake: Fake, ask_id: int) -> Answer:
    """The offer is no longer to be had."""
    text = f"error 404/3603: no_such_ask Instance type by id {ask_id} is not available."
    if fake.shapes.ask_gone_status == 410:
        return refused(410, "no_such_ask", f"error 410/3907: {ask_id} no longer available.", fake.shapes, ask_id=ask_id)
    return refused(404, "invalid_args", text, fake.shapes, ask_id=ask_id)


def create(fake: Fake, call: Call) -> Answer:
    """Use up an offer. A bid below the least one is an error, and yet makes a stopped contract that its body names."""
    (ask_id,), fields, shapes = call.numbers, call.fields, fake.shapes
    offer = fake.market.offers.get(ask_id)
    if offer is None or offer.rented:
        return gone(fake, ask_id)
    wrong = _wrong(fields, offer.disk_space_gb)
    if wrong is not None:
        return refused(400, wrong[0], f"error 400/3467: {wrong[1]}", shapes, ask_id=ask_id)
    if fake.world.balance_usd <= 0:
        return refused(400, "insufficient_credit", "error 400/3470: your balance is too low", shapes, ask_id=ask_id)
    price = fields.get("price")
    wanted_running = fields.get("target_state", "running") == "running"
    short = price is not None and price < offer.min_bid_usd_per_h
    if offer.unschedulable and fields.get("cancel_unavail", price is None and wanted_running):
        return refused(410, "no_such_ask", f"error 410/3907: {ask_id} no longer available.", shapes, ask_id=ask_id)
    fake.market.take(ask_id)
    runs = wanted_running and not short and not offer.unschedulable
    instance = fake.world.create(offer, _wish(fields, runs), tuple(fake.account.ssh_keys.values()))
    key = fake.account.key_of_instance(instance.id, fake.seed)
    fake.world.give_key(instance.id, key.secret)
    if short:
        text = f"error 400/3468: the bid {price} is below {offer.min_bid_usd_per_h}"
        return refused(shapes.short_bid_status, "invalid_price", text, shapes, new_contract=instance.id, ask_id=ask_id)
    answer: dict[str, Any] = {"success": True, "new_contract": instance.id}
    if shapes.key_in_create:
        answer["instance_api_key"] = key.secret
    return said(answer)


def _wrong(fields: Mapping[str, Any], disk_space_gb: float) -> tuple[str, str] | None:
    """What is not acceptable in a create, as (error, text)."""
    if not isinstance(fields.get("image"), str) or not fields["image"]:
        return "invalid_args", "image is required"
    environment = fields.get("env")
    if environment is not None and not isinstance(environment, dict):
        return "invalid_args", "env must be an object"
    if too_big := oversize(fields):
        return "invalid_args", "; ".join(too_big)
    disk = fields.get("disk", 10.0)
    if not isinstance(disk, int | float) or not DISK_MIN_GB <= disk <= disk_space_gb:
        return "invalid_args", f"disk must be from {DISK_MIN_GB} to {disk_space_gb} GB"
    price, (least, most) = fields.get("price"), PRICE_USD_PER_H
    if price is not None and not (isinstance(price, int | float) and least <= price <= most):
        return "invalid_price", f"price must be from {least} to {most}"
    if fields.get("target_state", "running") not in ("running", "stopped"):
        return "invalid_args", "target_state must be running or stopped"
    return None


def _wish(fields: Mapping[str, Any], running: bool) -> Wish:
    environment = fields.get("env") or {}
    return Wish(
        label=fields.get("label"),
        image=fields["image"],
        onstart=fields.get("onstart") or "",
        arguments=tuple(str(part) for part in fields.get("args") or []),
        environment=tuple((str(name), str(value)) for name, value in environment.items()),
        runtype=fields.get("runtype") or "args",
        disk_gb=float(fields.get("disk", 10.0)),
        price_usd_per_h=fields.get("price"),
        running=running,
    )


VERBS = {"search": search, "search_put": search_put, "search_get": search_get, "create": create}
