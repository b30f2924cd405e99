"""A provider of rented machines over the fake, whose machines are real containers, for tests of all providers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from pydantic import SecretStr

from provisioning.agent_archive import agent_archive
from provisioning.base import Ambiguous, Handle, NoCapacity, Observation, Offer, Refused, Released, Request, Shell
from provisioning.fitness import NotYet
from provisioning.home_key import home_key
from provisioning.host_workers import HostWorkers
from provisioning.ssh_connection import Deadlines
from provisioning.vast.api import VastApi
from provisioning.vast.errors import TooEarly
from provisioning.vast.provider import VastProvider
from provisioning.vast.rented_hosts import RentedHosts
from provisioning.vast.switch import SwitchTimes
from tests.fakes.attempts import SUPERVISOR, until
from tests.fakes.vast import Boot, Fake, FollowingClock
from tests.fakes.vast.account import FULL_KEY
from tests.fakes.vast.instances import Instances
from tests.fakes.vast.server import Server, example_offers

FACTOR = 200.0
Found = TypeVar("Found")


class Patient(VastProvider):
    """Comes again by itself when it was too early, boots what it creates, and has every shell copy `here`: what the
    loops of the runner do."""

    fake: Fake
    clock: FollowingClock
    here: Path

    def offers(self, request: Request) -> tuple[Offer, ...]:
        try:
            return self._again(lambda: super(Patient, self).offers(request))
        except NoCapacity:
            return ()

    def create(self, offer: Offer, label: str) -> Handle | Refused | Ambiguous:
        while not self._again(self.prepare):
            pass
        self.fake.world.boots = [Boot(0, 0, 0)]
        made = self._again(lambda: super(Patient, self).create(offer, label))
        assert isinstance(made, Handle)
        self.fake.advance_to(self.clock())
        self.observe([label])
        until(lambda: not isinstance(self._again(lambda: self.inspect(made, 1)), NotYet))
        return made

    def observe(self, labels: Sequence[str]) -> Mapping[str, Observation]:
        return self._again(lambda: super(Patient, self).observe(labels))

    def release(self, handle: Handle) -> Released:
        return self._again(lambda: super(Patient, self).release(handle))

    def shell(self, handle: Handle) -> Shell:
        shell = super().shell(handle)
        shell.follow({str(self.here): ()})
        return shell

    def _again(self, verb: Callable[[], Found]) -> Found:
        while True:
            try:
                return verb()
            except TooEarly as error:
                time.sleep(error.wait_s / FACTOR + 0.001)


def rented(folder: Path, cleanup: ExitStack) -> tuple[Patient, Path]:
    """The provider, and where runs of the home `test` lie on the first machine that it rents."""
    clock = FollowingClock(FACTOR)
    fake = Fake(example_offers(), start_s=clock())
    server = cleanup.enter_context(Server(fake, clock))
    instances = cleanup.enter_context(Instances(fake, folder / "instances"))
    api = VastApi(SecretStr(FULL_KEY), clock, random.Random(1).random, url=server.url)
    workers = HostWorkers(
        agent_archive(str(SUPERVISOR)), folder / "here", Deadlines(10, 20), answer_s=20.0, look_s=0.02
    )
    key = home_key(folder / "key")
    hosts = RentedHosts(api, workers, key.path, folder / "rented", clock)
    times = SwitchTimes(1000, 1000, 0.5, 0.5)
    provider = Patient(api, hosts, key.public_line, clock, url=server.url, times=times)
    provider.fake, provider.clock, provider.here = fake, clock, folder / "here"
    cleanup.callback(provider.close)
    first = 20_000_001
    return provider, instances.home(first) / ".armature" / "runs" / "test"
