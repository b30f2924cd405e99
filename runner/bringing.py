"""Sees to it that frozen code and checkpoints stand on the hosts that need them, and waits for nobody: each round asks
again.
"""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from provisioning.base import HostLost, StagingFailed
from provisioning.questions import CarriesOut, Steps
from runner.places import Place

Key = tuple[int, str]
"""(lease, path here)."""


class Bringing:
    """What is on its way to hosts and what has arrived. Holds nothing that a host could not be asked again."""

    def __init__(self) -> None:
        self._on_the_way: dict[Key, Future[Any]] = {}
        self._there: set[Key] = set()

    def code(self, place: Place, code: Path) -> bool:
        """Whether frozen code (a folder named by its hash) stands on a host; else it is brought. Raises StagingFailed
        when it cannot be, HostLost when the host does not answer: then it is begun again by the next call."""
        shell = place.shell
        if not isinstance(shell, CarriesOut) or (place.lease, str(code)) in self._there:
            return True
        from provisioning.staging import code_archive, staging_steps  # loaded only where something is brought

        there = shell.path_there(str(code.parent))
        return self._is_there(shell, (place.lease, str(code)), lambda: staging_steps(code_archive(code), there))

    def checkpoint(self, place: Place, folder: Path) -> bool:
        """Whether a checkpoint that is here stands on a host; else it is brought. Raises as `code` does, and
        StagingFailed when it is not whole here."""
        shell = place.shell
        if not isinstance(shell, CarriesOut) or (place.lease, str(folder)) in self._there:
            return True
        there = shell.path_there(str(folder))
        if folder.name in shell.names_there(str(folder.parent)):
            self._there.add((place.lease, str(folder)))
            return True
        if not (folder / "state.json").is_file() or not any(folder.glob("*.safetensors")):
            raise StagingFailed(f"{folder}: this checkpoint is not here, and not on {place.host or 'the host'} either")
        from provisioning.sending import sending_steps

        return self._is_there(shell, (place.lease, str(folder)), lambda: sending_steps(folder, there))

    def _is_there(self, shell: CarriesOut, key: Key, begin: Any) -> bool:
        if key not in self._on_the_way:
            steps: Steps[Any] = begin()
            self._on_the_way[key] = shell.carry_out(steps)
            return False
        if not self._on_the_way[key].done():
            return False
        work = self._on_the_way.pop(key)
        if isinstance(error := work.exception(), HostLost):
            raise error
        work.result()
        self._there.add(key)
        return True
