"""Places where a process can run. A new one is a new file and one more line in the table below.

Importing this loads no driver and no library of a place that is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from provisioning.base import Provider
from provisioning.ssh_host import SshHost


@dataclass(frozen=True, slots=True)
class Setting:
    """What a place may need to know: the path of the supervisor's source on this machine, the environment that the
    program was started with (masks of visible GPUs, names of credentials), the folder of the runs, the hosts of our own
    and the names of those that runs may be placed on (None = all), and who says yes to the key of a host that is met
    for the first time (place, fingerprint)."""

    supervisor_path: str
    environment: Mapping[str, str]
    home: Path
    hosts: Sequence[SshHost] = ()
    listed: Collection[str] | None = None
    accepts: Callable[[str, str], bool] = lambda _place, _fingerprint: False


def _local(setting: Setting) -> Provider:
    from provisioning.local import LocalProvider

    return LocalProvider(setting.supervisor_path, setting.environment)


def _ssh(setting: Setting) -> Provider:
    from provisioning.host_keys import HostKeys
    from provisioning.ssh import SshProvider

    keys = HostKeys(setting.home / "known_hosts", setting.accepts)
    return SshProvider(setting.supervisor_path, setting.hosts, keys, setting.home, listed=setting.listed)


def _vast(setting: Setting) -> Provider:
    """Raises ValueError without a usable key, HomeKeyError for a key of this home that cannot be used."""
    from provisioning.vast.renter import vast_provider

    return vast_provider(setting.supervisor_path, setting.environment, setting.home)


PROVIDERS: Mapping[str, Callable[[Setting], Provider]] = {
    "local": _local,
    "ssh": _ssh,
    "vast": _vast,
}

RENTED = frozenset({"vast"})
"""Places where each machine costs money: they are rented for a launch and given back."""
