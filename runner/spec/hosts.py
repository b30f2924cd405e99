"""The list of machines that are reached over ssh, as it is written in a file (hosts.yaml)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from provisioning.ssh_host import SshHost
from runner.errors import SpecError, Where
from runner.spec.load import load_document
from runner.spec.schema import Block, Mistake, Name, Text, nearest, validate
from runner.spec.yaml12 import Document, Path, dotted


class HostBlock(Block):
    """One machine. `jump` is the name of another one of the file; `runs: false` is for one that is only passed."""

    address: Text
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    user: Text | None = None
    keys: list[Text] = Field(default_factory=list)
    jump: Text | None = None
    python: Text = "python3"
    folder: Text = "~/.armature"
    runs: bool = True


class HostsBlock(Block):
    """The whole file."""

    hosts: Annotated[dict[Name, HostBlock], Field(min_length=1)]


def read_hosts(file: str) -> tuple[SshHost, ...]:
    """The hosts of a file that runs may be placed on, in its order. Raises SpecError with file, line and key."""
    document = load_document(file)
    try:
        blocks = validate(document.values, HostsBlock).hosts
    except Mistake as mistake:
        raise _error(document, mistake.path, mistake.problem, mistake.allowed, mistake.nearest) from None
    _check_names(document, blocks)
    hosts = {name: _host(document, blocks, name, ()) for name in blocks}
    if not any(block.runs for block in blocks.values()):
        raise _error(document, ("hosts",), "every host has `runs: false`", "at least one that runs may be placed on")
    return tuple(hosts[name] for name, block in blocks.items() if block.runs)


def _check_names(document: Document, blocks: Mapping[str, HostBlock]) -> None:
    seen: dict[str, str] = {}
    for name in blocks:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise _error(document, ("hosts", name), f"differs from {other} only in its case", "names that differ")


def _host(document: Document, blocks: Mapping[str, HostBlock], name: str, passed: tuple[str, ...]) -> SshHost:
    """One host with all that lies between; `passed` are the hosts that lead here."""
    block = blocks[name]
    jump = None
    if block.jump is not None:
        here = ("hosts", name, "jump")
        if block.jump not in blocks:
            raise _error(document, here, f"there is no host {block.jump!r}", tuple(blocks), nearest(block.jump, blocks))
        if block.jump in (name, *passed):
            circle = " -> ".join((*passed, name, block.jump))
            raise _error(document, here, f"goes round in a circle: {circle}", "a host that is reached in another way")
        jump = _host(document, blocks, block.jump, (*passed, name))
    beside = os.path.dirname(os.path.abspath(document.file))
    keys = tuple(os.path.join(beside, os.path.expanduser(key)) for key in block.keys)
    return SshHost(name, block.address, block.port, block.user or "", keys, jump, block.python, block.folder)


def _error(
    document: Document, path: Path, problem: str, allowed: tuple[str, ...] | str = (), close: str | None = None
) -> SpecError:
    """The place is that of the key, or of the nearest block around it that stands in the file."""
    known = next(path[:end] for end in range(len(path), -1, -1) if end == 0 or path[:end] in document.lines)
    return SpecError(
        Where(document.file, document.lines.get(known), dotted(path)), problem, allowed=allowed, nearest=close
    )
