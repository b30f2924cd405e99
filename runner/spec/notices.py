"""What a person can be told of, and which addresses a notice may go to. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from os.path import defpath, join, pathsep
from typing import Any, Literal, get_args
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


def notice_problems(
    notify: Mapping[str, Any] | None, folder: str, environment: Mapping[str, str], is_program: Callable[[str], bool]
) -> tuple[str, ...]:
    """Why receivers of a resolved `notify` block (None = nobody asked) could not be told: a sentence for each, without
    the address.

    `folder` is where the command will run (the home), `environment` what it will have, and `is_program` says whether
    a path is a file that may be executed. Whether the receiver then does its work is not known here.
    """
    if notify is None:
        return ()
    found = (_program_problem(notify["command"], folder, environment, is_program),
             _webhook_problem(notify["webhook"], environment))  # fmt: skip
    return tuple(problem for problem in found if problem is not None)


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


def _program_problem(
    command: list[str] | None, folder: str, environment: Mapping[str, str], is_program: Callable[[str], bool]
) -> str | None:
    """The places looked at are those where the kernel will look: as in a shell, PATH counts for bare names alone."""
    if command is None:
        return None
    program = command[0]
    if "/" in program:
        place = join(folder, program)
        return None if is_program(place) else f"notify.command: {place} is no executable file, so it can tell nobody"
    folders = environment.get("PATH", defpath).split(pathsep)
    if any(is_program(join(folder, one, program)) for one in folders):
        return None
    return f"notify.command: there is no program {program} on PATH, so it can tell nobody"


def _webhook_problem(webhook: str | Mapping[str, str] | None, environment: Mapping[str, str]) -> str | None:
    if webhook is None or isinstance(webhook, str):
        return None
    name = webhook["from"]
    if name not in environment:
        return f"notify.webhook: the variable {name} is not set in this shell, so it can tell nobody"
    problem = address_problem(environment[name])
    return None if problem is None else f"notify.webhook: the address in {name} {problem}, so it can tell nobody"


def holds_secret(address: str) -> bool:
    """Whether an address looks as if knowing it were enough to use it: credentials, or a long random word in it."""
    parts = urlsplit(address)
    words = _LONG_WORD.findall(f"{parts.path} {parts.query} {parts.fragment}")
    return "@" in parts.netloc or any(re.search("[0-9]", word) and re.search("[A-Za-z]", word) for word in words)
