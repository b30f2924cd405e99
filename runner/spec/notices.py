"""What a person can be told of, and which addresses a notice may go to. Pure."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal, get_args
from urllib.parse import urlsplit

Notice = Literal[
    "finished", "failed", "aborted", "lost", "preempted", "cancelled",
    "warned", "hung", "quarantine", "study_ended",
]  # fmt: skip
"""A word of `notify.on`: how a run ended, what it showed while alive, or what concerns more than one run."""

NOTICES: tuple[Notice, ...] = get_args(Notice)

DEFAULT_NOTICES: tuple[Notice, ...] = ("failed", "aborted", "lost", "hung", "study_ended")
DEFAULT_NOTICE_S = 10.0
MAX_NOTICE_S = 300.0

_LONG_WORD = re.compile(r"[A-Za-z0-9_-]{16,}")


def address_problem(address: str) -> str | None:
    """What is wrong with a webhook's address, in words that do not repeat it; None when it may be used."""
    if any(character.isspace() or not character.isprintable() for character in address):
        return "holds a space or a control character"
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is no address"
    if parts.scheme not in ("http", "https") or not host:
        return "is no http or https address"
    if parts.scheme == "http" and not is_this_machine(host):
        return "would go over the network unencrypted"
    return None


def is_this_machine(host: str) -> bool:
    """Whether a host name or address can only mean the machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def holds_secret(address: str) -> bool:
    """Whether an address looks as if knowing it were enough to use it: credentials, or a long random word in it."""
    parts = urlsplit(address)
    words = _LONG_WORD.findall(f"{parts.path} {parts.query} {parts.fragment}")
    return "@" in parts.netloc or any(re.search("[0-9]", word) and re.search("[A-Za-z]", word) for word in words)
