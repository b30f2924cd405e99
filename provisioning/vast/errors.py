"""What can go wrong between us and Vast.ai. Each error is a verb for the caller, as in provisioning/base.py.

ProvisioningError
├── RateLimited
│   └── TooEarly       asked too often, by our own spacing or by the service: ask again after `wait_s`
├── AuthenticationFailed   the key is wrong, expired, or may not do this: stop and tell the person
├── SkipOffer          this offer is gone: take the next one
├── NotYetReleased     destroy was asked for and is not proven: ask again
├── CallRefused        the service understood and said no: asking the same again gives the same
└── NoAnswer           nothing that could be understood came back: nobody knows whether it was carried out
    └── NeverSent      no connection: certainly nothing was carried out
"""

from __future__ import annotations

from provisioning.base import ProvisioningError, RateLimited


class TooEarly(RateLimited):
    """Ask again after `wait_s` seconds. `was_sent` is false when the call stayed here, so that nothing was used up."""

    def __init__(self, what: str, wait_s: float, *, was_sent: bool) -> None:
        self.wait_s = wait_s
        self.was_sent = was_sent
        who = "Vast.ai asks us to slow down" if was_sent else "called too soon after the last such call"
        super().__init__(f"{what}: {who}; wait {wait_s:.1f} s")


class CallRefused(ProvisioningError):
    """The service said no; `status` is the HTTP status (200 too: the answer then says `success: false`)."""

    def __init__(self, what: str, status: int, said: str) -> None:
        self.status = status
        self.said = said
        super().__init__(f"{what}: Vast.ai refused ({status}): {said or 'without a reason'}")


class NoAnswer(ProvisioningError):
    """No answer, or none that could be understood. A call that changes something may have been carried out."""


class NeverSent(NoAnswer):
    """There was no connection, so nothing was carried out."""
