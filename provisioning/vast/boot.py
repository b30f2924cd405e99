"""How far a rented machine has come, out of the one record that the service shows of it. Pure.

    requested -> created -> loading -> running -> reachable
    halted: stopped, its disk is still paid for      failed: this start comes to nothing
    frozen: paused, its GPUs are still paid for      gone: the contract is over
    offline: its host is not heard of

The record does not say what came before, so it is for the caller to know how long a stage may last, and whether a
machine that is offline had ever been of use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from provisioning.vast.models import Instance


class Stage(StrEnum):
    """Where a contract stands."""

    REQUESTED = "requested"
    CREATED = "created"
    LOADING = "loading"
    RUNNING = "running"
    REACHABLE = "reachable"
    HALTED = "halted"
    FROZEN = "frozen"
    FAILED = "failed"
    OFFLINE = "offline"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Boot:
    """A stage, and what the service says about it ('' = nothing worth telling)."""

    stage: Stage
    why: str = ""


# What the service's own machine test looks for, and what docker says of an image that cannot be had.
_TROUBLE = re.compile(
    r"\berror\b|\bfailed\b|\bfailure\b|exception|traceback|oci runtime|permission denied"
    r"|\bmanifest unknown\b|\bunauthorized\b|\bdenied\b|no such image",
    re.IGNORECASE,
)
# An image may be called anything, "acme/failure-study:error" too, and is named in harmless messages. Such a name holds
# a slash, or a colon with something behind it; the word after "from" is one even without.
_NAME = re.compile(r"\S*/\S*|\S+:\S+|(?<=\bfrom )\S+", re.IGNORECASE)

_STARTS = {"created": Stage.CREATED, "loading": Stage.LOADING, "rebooting": Stage.LOADING, "restarting": Stage.LOADING}


def boot_of(instance: Instance) -> Boot:
    """The stage of an instance. A status that is not known here counts as loading, and is told."""
    status, said = instance.actual_status.lower(), instance.status_msg
    if instance.is_unloaded:
        return Boot(Stage.GONE, "the contract is over")
    if status in ("offline", "unknown"):
        return Boot(Stage.OFFLINE, "its host is not connected" if status == "offline" else "its host is silent")
    if instance.intended_status == "stopped":
        return Boot(Stage.HALTED, "outbid, or stopped" if instance.is_halted else "it is being stopped")
    if "frozen" in (status, instance.intended_status):
        return Boot(Stage.FROZEN, "frozen: its GPUs are still paid for")
    if status == "exited":
        return Boot(Stage.FAILED, said or "its container has ended")
    if status == "running":
        return _running(instance)
    if _TROUBLE.search(_NAME.sub(" ", said)):
        return Boot(Stage.FAILED, said)
    if status == "stopped":
        return Boot(Stage.REQUESTED, "it waits for its GPUs to be free again")
    if not status:
        return Boot(Stage.REQUESTED, said)
    return Boot(_STARTS[status], said) if status in _STARTS else Boot(Stage.LOADING, f"{status} {said}".strip())


def _running(instance: Instance) -> Boot:
    if instance.direct_endpoint is None and instance.proxy_endpoint is None:
        return Boot(Stage.RUNNING, "no address to reach it at yet")
    return Boot(Stage.REACHABLE)
