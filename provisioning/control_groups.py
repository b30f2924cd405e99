"""The control groups that hold this process, and the numbers in their files (versions 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def groups_with(controller: str, cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> Iterator[Path]:
    """The folders of our groups, and of all groups above them, that may limit what `controller` (cpu, memory) counts.

    Inside a container the paths of /proc/self/cgroup may be those of the host, which do not exist here; the top of the
    mount is then what limits us. Not every folder that is named here need exist.
    """
    for hierarchy, path in _memberships(controller, membership):
        yield from _group_and_above(_mounts(controller, cgroups, hierarchy), path)


def numbers(path: Path) -> list[int]:
    """Whole numbers in a file; [] when it is not there or says `max`."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []


def _memberships(controller: str, membership: Path) -> Iterator[tuple[str, str]]:
    """(controllers, path) of each hierarchy that may limit us; '' stands for version 2."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            yield controllers, path


def _mounts(controller: str, cgroups: Path, hierarchy: str) -> tuple[Path, ...]:
    """Where a hierarchy may be mounted: at the top or beside version 1, or in a folder named like its controllers."""
    return (cgroups, cgroups / "unified") if hierarchy == "" else (cgroups / hierarchy, cgroups / controller)


def _group_and_above(mounts: Iterable[Path], path: str) -> Iterator[Path]:
    for mount in mounts:
        group = mount / path.lstrip("/")
        yield group
        for above in group.parents:
            if not above.is_relative_to(mount):
                break
            yield above
