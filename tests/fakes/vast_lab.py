"""A home whose runs are placed on rented machines: a fake account in this process whose instances are real."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from provisioning.vast.provider import VastProvider
from runner.controller import Controller, Round
from runner.home import Home
from runner.launching import Options, commit, prepare
from runner.providers import Providers
from runner.rented import Rented
from runner.renting.decide import Limits
from runner.renting.leases import Lease
from runner.renting.rows import read_leases
from runner.store.database import reading
from runner.store.session import Session
from tests.fakes.lab import DEADLINE_S
from tests.fakes.ssh_lab import QuickClock, SshLab
from tests.fakes.vast import Boot, Fake, FollowingClock, Instance, Offer
from tests.fakes.vast.account import SCOPES, ApiKey
from tests.fakes.vast.command import offers
from tests.fakes.vast.instances import Instances
from tests.fakes.vast.server import Server

KEY = "fake-lab-7d1f0c52e9ab46308c11"
QUICK_BOOT = Boot(contract_s=0.1, created_s=0.1, loading_s=0.2)
RENT = ("--provider", "vast", "--max-usd", "40", "--hours", "1", "--yes")
SLOTS = 4


@dataclass
class VastLab(SshLab):
    """A lab beside its account. `fake` may be asked and disturbed by a test, holding `fake.lock`."""

    fake: Fake = field(default_factory=Fake)
    clock: FollowingClock = field(default_factory=FollowingClock)
    machines: Instances | None = None

    @property
    def home_id(self) -> str:
        return str(self.rows("SELECT home_id FROM home")[0][0])

    def launch(self, *arguments: str | Path, code: int | None = 0) -> Any:
        """`runner launch` on one rented machine, to its end."""
        return self.run("launch", *arguments, *RENT, code=code)

    def boots(self, *boots: Boot) -> None:
        """How the next machines start; those after them start quickly."""
        with self.fake.lock:
            self.fake.world.boots = [*boots, *[QUICK_BOOT] * 50]

    def ours(self) -> list[Instance]:
        """The instances that exist now, but for planted ones."""
        return [one for one in self.ever() if one.living]

    def ever(self) -> list[Instance]:
        """All instances that ever were, but for planted ones."""
        with self.fake.lock:
            self.fake.advance_to(self.clock())
            return [one for one in self.fake.world.instances.values() if one.image != "planted/image:1"]

    def happen(self, event: str) -> int:
        """Let something befall the one machine that we have; its number."""
        (machine,) = self.ours()
        with self.fake.lock:
            self.fake.world.happen(machine.id, event)
        return machine.id

    def home_there(self, machine: Instance | int) -> Path:
        """HOME of a machine."""
        assert self.machines is not None
        return self.machines.home(machine if isinstance(machine, int) else machine.id)

    def leases(self) -> tuple[Lease, ...]:
        """All rented leases of the home."""
        with reading(Home(self.home)) as connection:
            return read_leases(connection, "vast")

    def check_nothing_is_left(self, machines: int = 1) -> None:
        """So many machines were rented in all, none of them exists, each lease has its proof, and no call was wrong."""
        assert self.ours() == []
        assert len(self.ever()) == machines
        assert self.fake.double_rents() == []
        leases = self.leases()
        assert [one.state for one in leases if one.host] == ["released"] * machines
        assert all(one.state == "released" and one.proof for one in leases), leases
        self.fake.assert_clean()

    def until_released(self, deadline_s: float = DEADLINE_S) -> None:
        """Wait for the proof of every lease: a viewer ends before that."""
        self.until(lambda: all(not one.is_open for one in self.leases()), "all leases to be released", deadline_s)

    def clean_up(self) -> None:
        """Leave nothing alive: first who starts things, then the machines."""
        pid = self.controller_pid() if self.home.exists() else None
        if pid is not None and pid != os.getpid():
            self.kill_controller()
        if self.machines is not None:
            self.machines.close()
        super().clean_up()


@contextmanager
def vast_lab(folder: Path, market: list[Offer] | None = None, *, balance_usd: float = 100.0) -> Iterator[VastLab]:
    """A lab with an account of its own, whose key only the lab's commands know."""
    (folder / "lab").mkdir()
    (folder / "person").mkdir()
    clock = FollowingClock()
    fake = Fake(offers(SLOTS, 0) if market is None else market, start_s=clock(), balance_usd=balance_usd)
    fake.account.keys[KEY] = ApiKey("lab", KEY, frozenset(SCOPES))
    with Server(fake, clock) as server:
        machines = Instances(fake, folder / "machines")
        person = {"HOME": str(folder / "person"), "VAST_URL": server.url, "VAST_API_KEY": KEY}
        lab = VastLab(folder / "lab", person, fake=fake, clock=clock, machines=machines, draws_reports=False)
        lab.boots()
        try:
            yield lab
        finally:
            lab.clean_up()


@dataclass
class VastRounds:
    """Rounds of a controller in this process that looks at its machines every second."""

    lab: VastLab
    limits: Limits = field(default_factory=Limits)
    controller: Controller | None = None
    _providers: Providers | None = None

    def launch(self, *arms: Path, **options: Any) -> None:
        """Ask for a launch on a rented machine, and begin."""
        chosen = {"provider": "vast", "wanted": {"hours": 1.0}, "sets": ("budget.study.max_usd=40",), **options}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.lab.extra_environment.items():
                patch.setenv(name, value)
            commit(prepare(Home(self.lab.home), arms, Options(**chosen)))
        if self.controller is None:
            self.begin()

    def begin(self) -> None:
        """A new controller."""
        home = Home(self.lab.home)
        session = Session(home.database, pid=os.getpid(), now=time.time())
        environment = {"PATH": os.environ["PATH"], **self.lab.extra_environment}
        self._providers = Providers(home, session, environment)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("runner.controller.Rented", functools.partial(Rented, limits=self.limits))
            self.controller = Controller(home, session, self._providers, QuickClock(), environment, _no_report)

    def end(self) -> None:
        """Close it, as a signal would; what runs lives on."""
        if self.controller is None or self._providers is None:
            return
        self.controller.close()
        self.controller = None
        for provider in self._providers.values():
            if isinstance(provider, VastProvider):
                provider.close()

    def step(self) -> Round:
        """One round."""
        assert self.controller is not None
        return self.controller.step()


@contextmanager
def vast_rounds(lab: VastLab, limits: Limits | None = None) -> Iterator[VastRounds]:
    """Rounds of a lab, ended in the end; intervals are as short as the service allows."""
    found = VastRounds(lab, limits=limits or Limits())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runner.renting.watch.WATCH_S", 0.5)
        patch.setattr("runner.renting.watch.STEADY_S", 1.2)
        patch.setattr("runner.renting.loop.INSPECT_AGAIN_S", 0.2)
        patch.setattr("runner.renting.orders.SEARCH_AGAIN_S", 1.0)
        patch.setattr("runner.renting.bills.AFTER_S", (0.5,))
        patch.setattr("runner.rented.BILL_S", 5.0)
        patch.setattr("provisioning.vast.rented_hosts.AGAIN_S", 0.2)
        patch.setattr("provisioning.vast.provider.SETTLE_S", 2.0)
        patch.setattr("runner.reporting.history.studies_without_report", lambda *_: {})
        try:
            yield found
        finally:
            found.end()


def _no_report(_home: Home, _study: str) -> Any:
    raise AssertionError("these tests ask for reports themselves")


def step_all(waiting: dict[str, tuple[VastRounds, Callable[[], Any]]], deadline_s: float = DEADLINE_S) -> None:
    """Rounds of several homes in turn until the condition of each has held once."""
    end = time.monotonic() + deadline_s
    missing = set(waiting)
    while missing:
        for what, (rounds, holds) in waiting.items():
            rounds.step()
            if what in missing and holds():
                missing.remove(what)
        assert time.monotonic() < end, _late(deadline_s, {what: waiting[what][0].lab for what in missing})
        time.sleep(0.02)


def _late(deadline_s: float, labs: dict[str, VastLab]) -> str:
    """What stood when time was up."""
    said = [f"not within {deadline_s} s:"]
    for what, lab in labs.items():
        events = lab.rows("SELECT what, reason FROM events ORDER BY id DESC LIMIT 8")
        said += [what, *map(str, lab.status().values()), *map(str, lab.leases()), *map(str, reversed(events))]
    return "\n".join(said)
