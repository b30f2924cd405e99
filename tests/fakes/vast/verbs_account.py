"""Who we are, what we have left, our ssh keys, and what was charged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.fakes.vast.answers import Answer, refused, said
from tests.fakes.vast.call import Call
from tests.fakes.vast.ledger import Line
from tests.fakes.vast.machine import Instance
from tests.fakes.vast.paging import after_token, token

if TYPE_CHECKING:
    from tests.fakes.vast.fake import Fake

USER = 424_242
CHARGES_MAX = 500


def whoami(fake: Fake, call: Call) -> Answer:
    """The account and its balance in USD. The published record holds an API key, so a caller must not log it."""
    balance, key = round(fake.world.balance_usd, 6), call.key.secret if call.key else ""
    return said(
        {
            "id": USER, "email": "someone@example.org", "balance": balance, "credit": 0.0, "ssh_key": None, "sid": "x",
            "api_key": key,
        }
    )  # fmt: skip


def list_keys(fake: Fake, call: Call) -> Answer:
    """The account's ssh keys."""
    return said({"success": True, "ssh_keys": [_key(*each) for each in fake.account.ssh_keys.items()]})


def add_key(fake: Fake, call: Call) -> Answer:
    """One more key, for instances that are created from now on."""
    public = call.fields.get("ssh_key")
    if not isinstance(public, str) or not public.startswith(("ssh-", "ecdsa-")):
        return refused(400, "invalid_args", "ssh_key is no public key", fake.shapes)
    return said({"success": True, "key": _key(fake.account.add_ssh_key(public), public)})


def drop_key(fake: Fake, call: Call) -> Answer:
    """One key less; instances that have it keep it."""
    if fake.account.ssh_keys.pop(call.numbers[0], None) is None:
        return refused(404, "not_found", "no such key", fake.shapes)
    return said({"success": True})


def _key(number: int, public: str) -> dict[str, Any]:
    return {"id": number, "user_id": USER, "public_key": public, "key": public, "deleted_at": None}


def charges(fake: Fake, call: Call) -> Answer:
    """What each contract has cost, newest first unless told otherwise.

    `day` chooses contracts that lived within the span; their whole bill is shown, not only its part in the span.
    """
    try:
        day = call.parameter("select_filters", {})["day"]
        from_s, to_s = float(day["gte"]), float(day["lte"])
    except (ValueError, KeyError, TypeError):
        return refused(400, "invalid_request", "Must provide both 'day' gte and lte filters for instance charges")
    try:
        last = after_token(call.query.get("after_token"))
        limit = min(CHARGES_MAX, max(1, int(call.query.get("limit", 100))))
    except ValueError:
        return refused(400, "invalid_token", "Invalid pagination token")
    backwards = call.query.get("latest_first", "true").lower() != "false"
    chosen = [each for each in fake.world.instances.values() if each.created_s <= to_s and _end(fake, each) >= from_s]
    chosen.sort(key=lambda each: each.id, reverse=backwards)
    rest = [each for each in chosen if last is None or (each.id < last if backwards else each.id > last)]
    page = rest[:limit]
    return said(
        {
            "success": True, "count": len(page), "total": len(chosen),
            "next_token": token(page[-1].id) if len(rest) > limit else None,
            "results": [_charge(fake, each) for each in page],
        }
    )  # fmt: skip


def _end(fake: Fake, instance: Instance) -> float:
    return fake.world.now_s if instance.gone_s is None else instance.gone_s


def _charge(fake: Fake, instance: Instance) -> dict[str, Any]:
    line = fake.world.ledger.lines.get(instance.id, Line())
    start, end = int(instance.created_s), int(_end(fake, instance))
    parts = {"gpu": line.gpu_usd, "disk": line.storage_usd, "bwd": line.down_usd, "bwu": line.up_usd}
    return {
        "start": start, "end": end, "type": "instance", "source": f"instance-{instance.id}",
        "description": f"Instance {instance.id} Charges", "amount": round(line.usd, 3),
        "metadata": {} if instance.label is None else {"label": instance.label},
        "items": [
            {
                "start": start, "end": end, "type": name, "source": None, "description": name, "amount": amount,
                "metadata": {}, "items": [],
            }
            for name, amount in parts.items()
        ],
    }  # fmt: skip


VERBS = {"whoami": whoami, "list_keys": list_keys, "add_key": add_key, "drop_key": drop_key, "charges": charges}
