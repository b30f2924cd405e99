"""Puts the parts together: the account of the environment, the key pair of a home, and the hosts behind instances."""

from __future__ import annotations

import getpass
import random
import time
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from provisioning.agent_archive import agent_archive
from provisioning.home_key import home_key
from provisioning.host_workers import HostWorkers
from provisioning.vast.account import vast_account
from provisioning.vast.api import VastApi
from provisioning.vast.provider import VastProvider
from provisioning.vast.rented_hosts import RentedHosts

KEY_FILE = "rented_key"
FOLDER = ".rented"
"""Names in the home: the private key that rented machines let in, and what is known of each machine."""


def vast_provider(supervisor_path: str, environment: Mapping[str, str], home: Path) -> VastProvider:
    """The provider of one home. Raises ValueError without a usable key, HomeKeyError for a key pair that cannot be
    used.

    Another process may have asked the service a moment ago, so its intervals are kept from the start.
    """
    url, secret = vast_account(environment)
    api = VastApi(secret, time.monotonic, random.random, url=url, was_asked_before=True)
    key = home_key(home / KEY_FILE)
    workers = HostWorkers(agent_archive(supervisor_path), home)
    hosts = RentedHosts(api, workers, key.path, home / FOLDER, time.monotonic, user=_user(url))
    return VastProvider(api, hosts, key.public_line, time.monotonic, url=url)


def _user(url: str) -> str:
    """Rented containers let root in; what plays them on this machine runs as we do."""
    host = urlsplit(url).hostname or ""
    try:
        is_here = ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost"
    return getpass.getuser() if is_here else "root"
