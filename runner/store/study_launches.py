"""Of the runs of a study, for its report: what their launches were given, and where their processes worked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from provisioning.vast.wanted import Wanted
from reports.study import LaunchView
from runner.spec.models import ResolvedArm
from runner.spec.resolve import SET
from runner.store import tables
from runner.store.outbox import BY_THE_TRAINER

STARTED = "started"
"""The first event of our trainer: what it runs on and what it trains."""

_ASKED: Mapping[str, str] = {
    "max_usd_per_h": "--max-usd-per-h", "hours": "--hours", "disk_gb": "--disk-gb", "traffic_up_gb": "--traffic-up-gb",
    "traffic_down_gb": "--traffic-down-gb", "min_reliability": "--reliability", "min_cuda": "--cuda",
    "min_inet_down_mbit_per_s": "--inet-down-mbit", "min_inet_up_mbit_per_s": "--inet-up-mbit", "image": "--image",
    "bid_usd_per_h": "--bid-usd-per-h",
}  # fmt: skip
_SWITCHES = {"is_verified": (False, "--unverified"), "is_datacenter": (True, "--datacenter"),
             "is_interruptible": (True, "--interruptible")}  # fmt: skip


def launches(connection: Connection, rows: Sequence[Row[Any]]) -> dict[str, LaunchView]:
    """By run: the options of the launch that it last came from."""
    requests = tables.requests
    numbers = {row.launch for row in rows}
    stored = connection.execute(
        select(requests.c.id, requests.c.payload).where(requests.c.id.in_(numbers), requests.c.kind == "launch")
    )
    payloads = {row.id: row.payload for row in stored}
    return {row.run: _launch(row, payloads.get(row.launch)) for row in rows}


def command_line_sets(arm: ResolvedArm) -> tuple[tuple[str, Any], ...]:
    """Those of an arm's changes that came from --set: a file names each key once, and what is set there comes first."""
    found, seen = [], set()
    for key, value in arm.changes:
        file, _ = arm.origins.get(f"changes.{key}", ("", None))
        if file == SET or key in seen:
            found.append((key, value))
        seen.add(key)
    return tuple(found)


def own_changes(arm: ResolvedArm) -> tuple[tuple[str, Any], ...]:
    """The changes that the arm's own files declare."""
    count = len(arm.changes) - len(command_line_sets(arm))
    return arm.changes[:count]


def places(connection: Connection, attempts: Sequence[Row[Any]]) -> dict[int, dict[str, Any]]:
    """By attempt number: what the runner knows of the slot that it has, from slot, lease and list of hosts."""
    listed = {row.name: row.document for row in connection.execute(select(tables.hosts))}
    return {row.attempt: _place(row, listed.get(row.host) if row.provider == "ssh" else None) for row in attempts}


def said(connection: Connection, run: str) -> dict[int, Mapping[str, Any]]:
    """By attempt number: what the process announced of itself when it began. It may be anything."""
    events = tables.events
    rows = connection.execute(
        select(events.c.attempt, events.c.data)
        .where(events.c.run == run, events.c.what == STARTED, events.c.reason == BY_THE_TRAINER)
        .order_by(events.c.id)
    )
    return {attempt: data for attempt, data in rows if attempt is not None and isinstance(data, dict)}


def _place(row: Row[Any], host: Mapping[str, Any] | None) -> dict[str, Any]:
    order = (row.lease_document or {}).get("order") or {}
    found = {
        "gpus": len(row.slot.get("gpu_uuids") or ()),
        "vram_mib": row.slot.get("vram_mib"),
        "cores": len(row.slot.get("cores") or ()),
        "gpu_name": order.get("gpu_name"),
        "gpus_rented": order.get("gpus"),
        "python": None if host is None else host.get("python"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _launch(row: Row[Any], payload: Mapping[str, Any] | None) -> LaunchView:
    options: list[str] = []
    if payload is not None:
        if payload.get("slots") is not None:
            options += ["--slots", str(payload["slots"])]
        if payload.get("priority"):
            options += ["--priority", str(payload["priority"])]
        if payload.get("share_gpus"):
            options.append("--share-gpus")
    hosts = tuple(str(one["name"]) for one in (payload or {}).get("hosts") or ())
    options += _asked_of_machine((row.wanted or {}).get("wanted") or {})
    declares_seeds = "seeds" in row.arm_document["origins"]
    return LaunchView(row.provider, tuple(options), hosts, payload is not None, declares_seeds)


def _asked_of_machine(wanted: Mapping[str, Any]) -> list[str]:
    """What was asked of a rented machine beside the defaults; its GPUs follow from the arms and --slots."""
    usual, words = Wanted().to_json(), []
    for name in wanted.get("gpu_names") or ():
        words += ["--gpu", str(name)]
    for key, option in _ASKED.items():
        value = wanted.get(key)
        if value is not None and value != usual[key]:
            words += [option, f"{value:g}" if isinstance(value, float) else str(value)]
    return [*words, *(word for key, (value, word) in _SWITCHES.items() if wanted.get(key) is value)]
