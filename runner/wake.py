"""Waits for the next round, and no longer than until the first watched process ends.

Only an ear: what a round finds out, it finds out by looking, so a signal that is missed costs one waiting time and
nothing else. That is why a host elsewhere, which gives none, is asked nothing here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from provisioning.base import ProcessIdentity, Shell
from runner.clock import Clock


class Wake:
    """Descriptors of living processes that turn readable at their end. Each wakes us once."""

    def __init__(self) -> None:
        self._descriptors: dict[ProcessIdentity, int] = {}
        self._heard: set[ProcessIdentity] = set()
        self._ended = False

    def watch(self, processes: Iterable[tuple[Shell, ProcessIdentity]]) -> None:
        """Watch exactly these from now on."""
        wanted = {identity: shell for shell, identity in processes}
        for identity in [known for known in self._descriptors if known not in wanted]:
            self._forget(identity)
        self._heard &= set(wanted)
        for identity, shell in wanted.items():
            if identity not in self._descriptors and identity not in self._heard:
                descriptor = shell.end_descriptor(identity)
                if descriptor is not None:
                    self._descriptors[identity] = descriptor
                elif shell.is_here and shell.can_see(identity) and not shell.is_alive(identity):
                    self._heard.add(identity)
                    self._ended = True  # between the last look and now: nobody else would wake us

    def wait(self, clock: Clock, seconds: float) -> None:
        """Wait so long, or until one of them ends."""
        readable = clock.wait(0.0 if self._ended else seconds, tuple(self._descriptors.values()))
        self._ended = False
        for identity in [known for known, descriptor in self._descriptors.items() if descriptor in readable]:
            self._forget(identity)
            self._heard.add(identity)

    def close(self) -> None:
        """Watch nothing any more."""
        for identity in list(self._descriptors):
            self._forget(identity)

    def _forget(self, identity: ProcessIdentity) -> None:
        with suppress(OSError):
            os.close(self._descriptors.pop(identity))
