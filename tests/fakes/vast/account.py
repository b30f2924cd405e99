"""The account: its API keys and what each may do, and its ssh keys."""

from __future__ import annotations

from dataclasses import dataclass, field

SCOPES = ("misc", "instance_read", "instance_write", "user_read", "user_write", "billing_read")
FULL_KEY = "fake-full-3f1c9a77d2"
LIMITED_KEY = "fake-reader-88ab01c4e6"


@dataclass
class ApiKey:
    """One API key. With `only_instance` it is a container's own and reaches nothing but that instance."""

    name: str
    secret: str
    scopes: frozenset[str]
    expired: bool = False
    only_instance: int | None = None

    def may(self, scope: str, numbers: tuple[int, ...]) -> bool:
        """Whether it may call a route of this scope, with these numbers in the path."""
        if self.only_instance is not None:
            return scope in ("instance_read", "instance_write") and numbers[:1] == (self.only_instance,)
        return scope in self.scopes


@dataclass
class Account:
    """Two keys from the start: one that may do everything, one that may only look."""

    keys: dict[str, ApiKey] = field(
        default_factory=lambda: {
            FULL_KEY: ApiKey("full", FULL_KEY, frozenset(SCOPES)),
            LIMITED_KEY: ApiKey("reader", LIMITED_KEY, frozenset({"misc", "instance_read", "user_read"})),
        }
    )
    ssh_keys: dict[int, str] = field(default_factory=dict)
    next_ssh_key: int = 501

    def add_ssh_key(self, public: str) -> int:
        """Keep a public key for instances created from now on; its number."""
        number, self.next_ssh_key = self.next_ssh_key, self.next_ssh_key + 1
        self.ssh_keys[number] = public
        return number

    def key_of_instance(self, number: int, seed: int) -> ApiKey:
        """Make the key that a container finds in its environment."""
        key = ApiKey(f"instance-{number}", f"fake-instance-{seed}-{number}", frozenset(), only_instance=number)
        self.keys[key.secret] = key
        return key
