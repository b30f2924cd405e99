"""How a machine is reached over ssh: what a person writes down of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from provisioning.base import AuthenticationFailed


@dataclass(frozen=True, slots=True)
class SshHost:
    """A machine that is reached over ssh.

    `name` is what tables show. `user` '' is the name of who runs us. `keys` are private key files; without any, those
    that ssh itself would try. `jump` is the host that the connection goes through. `python` runs the agent there,
    `folder` is where runs live there, `~` being the home folder of the user. `may_ask_agent`: the keys of the person's
    ssh agent may be tried; a rented host is shown none of them.
    """

    name: str
    address: str
    port: int = 22
    user: str = ""
    keys: tuple[str, ...] = ()
    jump: SshHost | None = None
    python: str = "python3"
    folder: str = "~/.armature"
    may_ask_agent: bool = True

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> SshHost:
        """A host as `dataclasses.asdict` and JSON have left it."""
        jump = document["jump"]
        values = {**document, "keys": tuple(document["keys"]), "jump": None if jump is None else cls.from_json(jump)}
        return cls(**values)

    @property
    def place(self) -> str:
        """`user@address:port`, as a message says it."""
        return f"{self.user + '@' if self.user else ''}{self.address}:{self.port}"


class UnknownHostKey(AuthenticationFailed):
    """Nobody has said yet that this key is the host's."""

    def __init__(self, place: str, fingerprint: str) -> None:
        self.place = place
        self.fingerprint = fingerprint
        super().__init__(
            f"{place} is not known yet; its key is {fingerprint}. Compare it with the host's own and use --accept-new"
        )


@runtime_checkable
class ListsHosts(Protocol):
    """A provider that is told which hosts there are; `silent` says why one is not among the last offers, by name."""

    @property
    def silent(self) -> Mapping[str, Exception]: ...

    def know(self, hosts: Sequence[SshHost]) -> None:
        """Runs are placed on these hosts from now on, and reached as they say; what runs on others goes on."""
        ...
