"""What the loop asks of whoever rents machines out: the verbs of a provider, and those that only paid ones have.

Each is one bounded step. An error of `create` says that certainly nothing was made; what may have been made is in its
answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

from provisioning.base import Ambiguous, Handle, Observation, Offer, Refused, Released, Request
from provisioning.fitness import Fit, NotYet, Unfit


class Strangers(Protocol):
    """What the account holds besides the labels that were named."""

    @property
    def ours(self) -> tuple[Handle, ...]:
        """Under a label of our home."""
        ...

    @property
    def foreign(self) -> tuple[Handle, ...]:
        """Everybody else's: never touched."""
        ...


@runtime_checkable
class Market(Protocol):
    """A provider of rented machines (`provisioning.vast.provider.VastProvider`)."""

    name: str

    def prepare(self) -> bool:
        """Make the account ready for creates, one step at a time; true when it is."""
        ...

    def offers(self, request: Request) -> tuple[Offer, ...]:
        """Machines that hold all slots of the request, best first. Raises NoCapacity that says why there is none."""
        ...

    def create(self, offer: Offer, label: str) -> Handle | Refused | Ambiguous:
        """Rent the offered machine under a unique label."""
        ...

    def observe(self, labels: Sequence[str]) -> Mapping[str, Observation]:
        """What the provider says of each label; Absent only by a complete list begun after the last create."""
        ...

    def duplicates(self, label: str, keep: str = "") -> tuple[Handle, ...]:
        """What lives under a label besides the machine `keep`. Asks nobody."""
        ...

    def strangers(self, prefix: str, known: Collection[str]) -> Strangers | None:
        """What the last complete list holds besides the labels that are known; None before it. Asks nobody."""
        ...

    def release(self, handle: Handle) -> Released:
        """Give a machine back. Raises NotYetReleased until that is proven. May be called beside the others."""
        ...

    def inspect(self, handle: Handle, gpus: int) -> Fit | NotYet | Unfit:
        """Whether a machine is what was rented, and its switch armed."""
        ...

    def extend(self, handle: Handle, ttl_s: float) -> None:
        """Let a machine's own switch wait until so many seconds after its birth, and read it back. Raises HostLost."""
        ...

    def balance_usd(self) -> float:
        """The money that is left in the account."""
        ...

    def charges(self, handles: Sequence[Handle], from_time: float, to_time: float) -> Mapping[str, float] | None:
        """USD that were billed, by label; None while there is more to read."""
        ...
