"""Why a file of a set that is elsewhere did not come. No torch.

DataError
├── NotReachable   nothing is known to be wrong with the data: the network, the server, or who asks
├── NotThere       the server says that it has no such file
├── Cut            an answer ended early, or the server is busy: the same may succeed a little later
└── Abandoned      another file failed, so this one was not brought to its end
"""

from __future__ import annotations

from trainer.errors import DataError


class NotReachable(DataError):
    """Nothing is known to be wrong with the data: the network, the server, or who asks."""


class NotThere(DataError):
    """The server says that it has no such file."""


class Cut(DataError):
    """An answer ended early, or the server is busy: the same may succeed a little later."""


class Abandoned(DataError):
    """Another file failed, so this one was not brought to its end."""
