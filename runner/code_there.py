"""Sees to it that frozen code stands on every host that runs it, and waits for nobody: each round asks again."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

from provisioning.base import HostLost
from provisioning.questions import CarriesOut
from provisioning.staging import Staged, code_archive, staging_steps
from runner.places import Place

Key = tuple[int, str]
"""(lease, hash of the code)."""


class CodeThere:
    """What is on its way to hosts and what has arrived. Holds nothing that a host could not be asked again."""

    def __init__(self) -> None:
        self._on_the_way: dict[Key, Future[Staged]] = {}
        self._there: set[Key] = set()

    def is_there(self, place: Place, code: Path) -> bool:
        """Whether the code (a folder named by its hash) stands on a host; else it is brought. Raises StagingFailed when
        it cannot be, HostLost when the host does not answer: then it is begun again by the next call."""
        shell, key = place.shell, (place.lease, code.name)
        if not isinstance(shell, CarriesOut) or key in self._there:
            return True
        if key not in self._on_the_way:
            steps = staging_steps(code_archive(code), shell.path_there(str(code.parent)))
            self._on_the_way[key] = shell.carry_out(steps)
            return False
        if not self._on_the_way[key].done():
            return False
        sent = self._on_the_way.pop(key)
        if isinstance(error := sent.exception(), HostLost):
            raise error
        sent.result()
        self._there.add(key)
        return True
