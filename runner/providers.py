"""The places of this home's runs, each made when something first asks for it: most homes use one of them."""

from __future__ import annotations

from collections.abc import Mapping

from provisioning import PROVIDERS, Setting
from provisioning.base import Provider
from runner.detach import SUPERVISOR
from runner.home import Home
from runner.store.hosts import read_hosts
from runner.store.session import Session


class Providers(dict[str, Provider]):
    """Providers by name. Raises KeyError for a name that is in no table."""

    def __init__(self, home: Home, session: Session, environment: Mapping[str, str]) -> None:
        self._home = home
        self._session = session
        self._environment = environment

    def __missing__(self, name: str) -> Provider:
        with self._session.reading() as connection:
            hosts, listed = read_hosts(connection)
        setting = Setting(str(SUPERVISOR), self._environment, self._home.root, hosts, listed)
        made = self[name] = PROVIDERS[name](setting)
        return made
