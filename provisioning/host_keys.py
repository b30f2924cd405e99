"""Which host is which: the keys that hosts showed when we first met them, and what happens when they show another."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import paramiko

from provisioning.base import AuthenticationFailed
from provisioning.ssh_host import UnknownHostKey


class ChangedHostKey(AuthenticationFailed):
    """The host shows another key than it did: another machine, or somebody in between."""

    def __init__(self, place: str, known: str, shown: str) -> None:
        super().__init__(
            f"{place} shows another key than before: it was {known} and is {shown}. Nothing was sent to it. "
            "If the host was set up anew, take its line out of known_hosts"
        )


class HostKeys:
    """The keys of one home, in the format of ssh's own known_hosts, and those that the person's ssh already knows.

    `accepts` is asked for a host that is in neither, with its name and the key's fingerprint; a yes is written down.
    """

    def __init__(
        self, path: Path, accepts: Callable[[str, str], bool], also: Path | None = Path("~/.ssh/known_hosts")
    ) -> None:
        self._path = path
        self._accepts = accepts
        self._also = None if also is None else also.expanduser()

    def load_into(self, client: paramiko.SSHClient) -> None:
        """Make a client hold hosts to their keys."""
        if self._also is not None and self._also.is_file():
            client.load_system_host_keys(str(self._also))
        if self._path.is_file():
            client.load_host_keys(str(self._path))
        client.set_missing_host_key_policy(_Ask(self))

    def meet(self, place: str, key: paramiko.PKey) -> None:
        """A host that nobody knows shows this key. Raises UnknownHostKey unless it is accepted."""
        if not self._accepts(place, fingerprint(key)):
            raise UnknownHostKey(place, fingerprint(key))
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "a") as file:
            file.write(f"{place} {key.get_name()} {key.get_base64()}\n")

    @staticmethod
    def changed(place: str, known: paramiko.PKey, shown: paramiko.PKey) -> ChangedHostKey:
        """The error for a host whose key is another one now."""
        return ChangedHostKey(place, fingerprint(known), fingerprint(shown))


class _Ask(paramiko.MissingHostKeyPolicy):
    def __init__(self, keys: HostKeys) -> None:
        self._keys = keys

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        self._keys.meet(hostname, key)


def fingerprint(key: paramiko.PKey) -> str:
    """`ssh-ed25519 SHA256:…`, as ssh-keygen -l prints it."""
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"
