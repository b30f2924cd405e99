"""A faithful Vast.ai: the published REST interface with its quirks, prices and failures, and a clock of its own.

`Fake` (fake.py) is a plain object: `handle(method, path, query, headers, body, now_s)` answers one request. `server.py`
puts it behind a real HTTP server on loopback, or behind a `requests` session without any socket. `instances.py` makes
its instances real machines with sshd, and `command.py` is all of it by hand. Nothing here rents.
"""

from tests.fakes.vast.answers import Answer
from tests.fakes.vast.clock import FollowingClock, VirtualClock
from tests.fakes.vast.fake import Fake
from tests.fakes.vast.faults import Fault, FaultPlan, Rates
from tests.fakes.vast.machine import Boot, Endpoint, Instance
from tests.fakes.vast.market import Market, Offer

__all__ = [
    "Answer",
    "Boot",
    "Endpoint",
    "Fake",
    "Fault",
    "FaultPlan",
    "FollowingClock",
    "Instance",
    "Market",
    "Offer",
    "Rates",
    "VirtualClock",
]
