"""Listing, showing, changing and destroying instances."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.fakes.vast.answers import TEXT, Answer, refused, said
from tests.fakes.vast.call import Call
from tests.fakes.vast.machine import Instance
from tests.fakes.vast.market import matches
from tests.fakes.vast.paging import after_token, token
from tests.fakes.vast.records import instance_record

if TYPE_CHECKING:
    from tests.fakes.vast.fake import Fake

PAGE_MAX, PAGE_DEFAULT = 25, 5
COMPUTED = ("dph_total", "num_gpus", "uptime_mins", "duration", "ports")
LOGS_READY_S = 1.0


def list_all(fake: Fake, call: Call) -> Answer:
    """One page. What the list shows may lie some seconds behind, each instance by its own lag."""
    try:
        last = after_token(call.query.get("after_token"))
    except ValueError:
        return refused(400, "invalid_token", "Invalid pagination token", fake.shapes)
    try:
        shown = _matching(fake, call.parameter("select_filters", {}))
        limit = int(call.query.get("limit", 0))
        backwards = _backwards(call.parameter("order_by", []))
        columns = call.parameter("select_cols", ["*"])
    except (ValueError, TypeError, AttributeError, KeyError) as wrong:
        return refused(400, "invalid_request", str(wrong), fake.shapes)
    shown.sort(key=lambda instance: instance.id, reverse=backwards)
    limit = PAGE_DEFAULT if limit <= 0 else min(limit, PAGE_MAX)
    rest = [each for each in shown if last is None or (each.id < last if backwards else each.id > last)]
    page = [_record(fake, each) for each in rest[:limit]]
    if "*" not in columns:
        page = [{name: record.get(name) for name in columns} for record in page]
    return said(
        {
            "success": True, "instances_found": len(page), "total_instances": len(shown),
            "label_counts": Counter(each.label or "" for each in shown),
            "next_token": token(rest[limit - 1].id) if len(rest) > limit else None,
            "instances": page or fake.shapes.empty_list,
        }
    )  # fmt: skip


def _matching(fake: Fake, filters: dict[str, Any]) -> list[Instance]:
    for name in filters:
        if name in COMPUTED:
            raise ValueError(f"{name} is computed and cannot be filtered")
    shown = [each for number in fake.world.instances if (each := as_listed(fake, number)) is not None]
    if set(filters) <= {"id", "label"}:  # the usual question needs no whole records
        return [each for each in shown if matches({"id": each.id, "label": each.label}, filters)]
    return [each for each in shown if matches(_record(fake, each), filters)]


def _record(fake: Fake, instance: Instance) -> dict[str, Any]:
    return instance_record(instance, fake.world.now_s, fake.world.balance_usd, fake.shapes)


def _backwards(order: list[dict[str, str]]) -> bool:
    """Order by number, either way; other columns of the real one are not modelled."""
    for directive in order:
        if directive["col"] != "id":
            raise ValueError(f"invalid column {directive['col']!r}")
        return directive.get("dir") == "desc"
    return False


def as_listed(fake: Fake, number: int) -> Instance | None:
    """The instance as the list knows it: as it was some seconds ago; None when it was not there then."""
    lag_s, _ = fake.plan.lags_s(number)
    known: Instance | None = None
    for change in fake.world.history[number]:
        if change.at_s + lag_s <= fake.world.now_s:
            known = change.after
    return known if known is not None and known.living else None


def old_list(fake: Fake, call: Call) -> Answer:
    """The list of the first version is no more."""
    return refused(410, "gone", "use /api/v1/instances/", fake.shapes)


def show(fake: Fake, call: Call) -> Answer:
    """One record under the plural name, or null: not there, no more, or not yet."""
    instance = fake.world.instances.get(call.numbers[0])
    if instance is None or not instance.living:
        return said({"instances": None})
    _, null_s = fake.plan.lags_s(instance.id)
    if fake.world.now_s < instance.created_s + null_s:
        return said({"instances": None})
    record = instance_record(instance, fake.world.now_s, fake.world.balance_usd, fake.shapes)
    return said({"instances": record})


def manage(fake: Fake, call: Call) -> Answer:
    """Start, stop, or label."""
    instance, fields = _living(fake, call), call.fields
    if instance is None:
        return _no_such(fake)
    if not set(fields) & {"state", "label"} or fields.get("state", "running") not in ("running", "stopped"):
        return refused(400, "invalid_args", "state (running, stopped) or label is required", fake.shapes)
    if "label" in fields:
        fake.world.change(replace(instance, label=fields["label"]))
    if fields.get("state") == "stopped":
        fake.world.happen(instance.id, "stop")
    if fields.get("state") == "running":
        if instance.expired or fake.world.balance_usd <= 0:
            why = "the contract has ended" if instance.expired else "your balance is too low"
            return said({"success": False, fake.shapes.message_name: why})
        fake.world.happen(instance.id, "start")
    return said({"success": True})


def destroy(fake: Fake, call: Call) -> Answer:
    """The end of an instance and of its bill; a second time there is nothing to end."""
    instance = _living(fake, call)
    if instance is None:
        return refused(404, fake.shapes.destroyed_error, "no such instance", fake.shapes)
    fake.world.happen(instance.id, "destroy")
    return said({"success": True, "msg": f"instance {instance.id} destroyed"})


def destroy_many(fake: Fake, call: Call) -> Answer:
    """Several at once; those that are no more are passed over."""
    numbers = call.fields.get("instance_ids")
    if not isinstance(numbers, list):
        return refused(400, "invalid_args", "instance_ids must be a list", fake.shapes)
    for number in numbers:
        if number in fake.world.instances:
            fake.world.happen(number, "destroy")
    return said({"success": True})


def reboot(fake: Fake, call: Call) -> Answer:
    """Stop and start the container without losing the GPU."""
    instance = _living(fake, call)
    if instance is None:
        return _no_such(fake)
    fake.world.happen(instance.id, "restart")
    return said({"success": True})


def change_bid(fake: Fake, call: Call) -> Answer:
    """A new bid: below the least one it pauses the instance, at or above it brings a paused one back."""
    instance = _living(fake, call)
    if instance is None:
        return _no_such(fake)
    price = call.fields.get("price")
    most = 32.0 * len(instance.offer.gpu_ids)
    if not instance.is_bid or not isinstance(price, int | float) or not 0.001 <= price <= most:
        return refused(400, "invalid_price", f"a bid from 0.001 to {most} on an interruptible instance", fake.shapes)
    fake.world.change(replace(instance, gpu_usd_per_h=float(price)))
    offers = fake.market.offers.values()
    least = [each.min_bid_usd_per_h for each in offers if each.machine_id == instance.offer.machine_id]
    enough = price >= max(least, default=instance.offer.min_bid_usd_per_h)
    fake.world.happen(instance.id, "win" if enough else "outbid")
    return said({"success": True})


def request_logs(fake: Fake, call: Call) -> Answer:
    """Order the log; it lies under `result_url` a moment later."""
    instance = _living(fake, call)
    if instance is None:
        return refused(403, "not_authorized", "not your own", fake.shapes)
    name = f"{instance.id}-{len(fake.log_requests)}"
    tail = int(call.fields.get("tail") or 1000)
    fake.log_requests[name] = (instance.id, fake.world.now_s + LOGS_READY_S, tail, call.fields.get("filter") or "")
    return said({"success": True, "result_url": f"{fake.base_url}/_logs/{name}"})


def log_text(fake: Fake, name: str) -> Answer:
    """The ordered log as text; 404 for none, 403 until it is ready. Needs no key, as a signed address needs none."""
    if name not in fake.log_requests:
        return Answer(404, TEXT, b"no such key")
    number, ready_s, tail, wanted = fake.log_requests[name]
    if fake.world.now_s < ready_s:
        return Answer(403, TEXT, b"access denied")
    lines = [line for line in [*fake.logs.get(number, []), *fake.container_log(number)] if wanted in line]
    return Answer(200, TEXT, "".join(f"{line}\n" for line in lines[-tail:]).encode())


def price_increases(fake: Fake, call: Call) -> Answer:
    """Instances whose host wants more from now on; nothing changes until somebody accepts."""
    rows = [
        _increase(place, fake.world.instances[number], usd_per_h)
        for place, (number, usd_per_h) in enumerate(fake.world.wanted_usd_per_h.items())
        if fake.world.instances[number].living
    ]
    return said({"success": True, "count": len(rows), "pending_price_increases": rows, "truncated": False})


def _increase(place: int, instance: Instance, usd_per_h: float) -> dict[str, Any]:
    disk_usd_per_s = instance.storage_usd_per_h / 3600
    return {
        "pending_price_increase_id": place + 1, "contract_id": instance.id, "host_id": instance.offer.host_id,
        "new_gpu_costpersec": usd_per_h / 3600, "old_gpu_costpersec": instance.gpu_usd_per_h / 3600,
        "new_disk_ram_costpersec": disk_usd_per_s, "old_disk_ram_costpersec": disk_usd_per_s,
        "contract_end_date": instance.end_s, "ask_end_date": instance.end_s, "created_at": instance.created_s,
    }  # fmt: skip


def list_instance_keys(fake: Fake, call: Call) -> Answer:
    """The keys inside an instance; they come as JSON within a string."""
    instance = _living(fake, call)
    if instance is None:
        return _no_such(fake)
    keys = [{"id": number + 1, "public_key": public} for number, public in enumerate(instance.ssh_keys)]
    return said({"success": True, "ssh_keys": json.dumps(keys)})


def add_instance_key(fake: Fake, call: Call) -> Answer:
    """One more key for an instance that exists."""
    instance, public = _living(fake, call), call.fields.get("ssh_key")
    if instance is None:
        return _no_such(fake)
    if not isinstance(public, str) or not public.startswith(("ssh-", "ecdsa-")):
        return refused(400, "invalid_args", "ssh_key is no public key", fake.shapes)
    fake.world.change(replace(instance, ssh_keys=(*instance.ssh_keys, public)))
    return said({"success": True})


def drop_instance_key(fake: Fake, call: Call) -> Answer:
    """One key less in an instance."""
    instance, place = _living(fake, call), call.numbers[1] - 1
    if instance is None or not 0 <= place < len(instance.ssh_keys):
        return _no_such(fake)
    kept = instance.ssh_keys[:place] + instance.ssh_keys[place + 1 :]
    fake.world.change(replace(instance, ssh_keys=kept))
    return said({"success": True})


def _living(fake: Fake, call: Call) -> Instance | None:
    instance = fake.world.instances.get(call.numbers[0])
    return instance if instance is not None and instance.living else None


def _no_such(fake: Fake) -> Answer:
    return refused(404, "no_such_instance", "no such instance", fake.shapes)


VERBS = {
    "list": list_all, "old_list": old_list, "show": show, "manage": manage, "destroy": destroy,
    "destroy_many": destroy_many, "reboot": reboot, "change_bid": change_bid, "request_logs": request_logs,
    "price_increases": price_increases, "list_instance_keys": list_instance_keys, "add_instance_key": add_instance_key,
    "drop_instance_key": drop_instance_key,
}  # fmt: skip
