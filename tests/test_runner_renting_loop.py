"""The loop against a strict little provider: what is on disk before what is asked, what is asked once only, what is
repeated until it is proven, and what a restart goes on with."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from provisioning.base import (
    Absent,
    Ambiguous,
    AuthenticationFailed,
    Handle,
    HostLost,
    NoCapacity,
    NotYetReleased,
    Observation,
    Offer,
    Present,
    ProvisioningError,
    RateLimited,
    Refused,
    Released,
    Request,
    SkipOffer,
    Unknown,
)
from provisioning.fitness import Fit, NotYet, Unfit
from runner.errors import HomeError
from runner.home import Home
from runner.renting.lanes import LaneThreads
from runner.renting.leases import State, Want
from runner.renting.loop import Renting
from runner.store.opening import driver_of
from runner.store.session import Session
from tests.fakes.renting_case import at_once, new_home
from tests.fakes.vast import VirtualClock

ORDER = {
    "gpu_usd_per_h": 1.0, "storage_usd_per_h": 0.01, "inet_up_usd_per_gb": 0.02, "inet_down_usd_per_gb": 0.01,
    "ttl_s": 7200.0, "traffic_up_gb": 1.0, "traffic_down_gb": 1.0,
}  # fmt: skip
WANT = Want("study/0", Request(4, 1, 1), "study", 10.0)


@dataclass(frozen=True)
class Others:
    ours: tuple[Handle, ...]
    foreign: tuple[Handle, ...]


class Market:
    """A provider that makes machines in memory. `script` holds answers or errors that come before the usual ones."""

    name = "vast"

    def __init__(self, database: Path) -> None:
        self.database = database
        self.machines: dict[str, tuple[str, str]] = {}  # number -> (label, stage)
        self.script: dict[str, list[Any]] = {}
        self.asked: list[tuple[str, Any]] = []
        self.offered = [Offer("vast", str(100 + n), 4, 8, 1.01, f"m{n}", ORDER) for n in range(6)]
        self.extended_s: float | None = None
        self.is_listed = True

    def _next(self, verb: str, about: Any) -> Any:
        self.asked.append((verb, about))
        answers = self.script.get(verb)
        answer = answers.pop(0) if answers else None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def count(self, verb: str) -> int:
        return sum(name == verb for name, _ in self.asked)

    def prepare(self) -> bool:
        self._next("prepare", None)
        return True

    def offers(self, request: Request) -> tuple[Offer, ...]:
        self._next("offers", request)
        return tuple(self.offered)

    def make(self, label: str, stage: str = "reachable") -> str:
        number = str(20 + len(self.asked))
        self.machines[number] = (label, stage)
        return number

    def create(self, offer: Offer, label: str) -> Handle | Refused | Ambiguous:
        with sqlite3.connect(self.database) as reader:  # another process would find the intent on disk
            rows = reader.execute("SELECT state FROM leases WHERE label = ?", (label,)).fetchall()
        reader.close()
        assert rows == [("intended",)]
        assert all(held != label for held, _ in self.machines.values()), "ordered twice under one label"
        answer = self._next("create", (offer.offer_id, label))
        if answer == "made, and no answer":
            self.make(label)
            return Ambiguous("the connection was cut")
        if answer is not None:
            found: Refused | Ambiguous = answer
            return found
        return Handle(self.name, label, self.make(label))

    def observe(self, labels: Sequence[str]) -> Mapping[str, Observation]:
        answer = self._next("observe", tuple(labels))
        if answer is not None:
            return dict.fromkeys(labels, answer)
        shown = {label: (number, stage) for number, (label, stage) in self.machines.items()} if self.is_listed else {}
        return {label: Present(shown[label][1], shown[label][0]) if label in shown else Absent() for label in labels}

    def duplicates(self, label: str, keep: str = "") -> tuple[Handle, ...]:
        return tuple(
            Handle(self.name, label, number)
            for number, (name, _) in self.machines.items()
            if name == label and number != keep
        )

    def strangers(self, prefix: str, known: Collection[str]) -> Others:
        others = [Handle(self.name, name, number) for number, (name, _) in self.machines.items() if name not in known]
        ours = tuple(one for one in others if one.label.startswith(prefix))
        return Others(ours, tuple(one for one in others if one not in ours))

    def release(self, handle: Handle) -> Released:
        self._next("release", handle.host)
        self.machines.pop(handle.host, None)
        return Released(f"instance {handle.host} destroyed")

    def inspect(self, handle: Handle, gpus: int) -> Fit | NotYet | Unfit:
        return self._next("inspect", handle.host) or Fit("192.0.2.1", gpus, 16)

    def extend(self, handle: Handle, ttl_s: float) -> None:
        self._next("extend", ttl_s)
        self.extended_s = ttl_s

    def balance_usd(self) -> float:
        found = self._next("balance_usd", None)
        return 100.0 if found is None else float(found)

    def charges(self, handles: Sequence[Handle], from_time: float, to_time: float) -> Mapping[str, float] | None:
        self._next("charges", tuple(handles))
        return {one.label: 1.25 for one in handles}


class Bench:
    """A home, a clock, a provider, and the loop over them."""

    def __init__(self, folder: Path) -> None:
        self.home: Home = new_home(folder)
        self.clock = VirtualClock()
        self.market = Market(self.home.database)
        self.session: Session | None = None
        self.restart()

    def restart(self) -> None:
        """As after a kill -9: a new process, and the rows."""
        if self.session is not None:
            self.session.close()
        self.session = Session(self.home.database, pid=1, now=self.clock())
        self.renting = Renting(self.session, self.market, self.clock, self.clock, at_once)

    def step(self, *wants: Want, for_s: float = 0.0) -> None:
        """Rounds until nothing is due for so many seconds."""
        until_s = self.clock() + for_s
        while True:
            self.renting.step(wants)
            due_s = max(self.renting.next_due_s(), self.clock() + 0.01)
            if due_s > until_s:
                self.clock.advance(max(0.0, until_s - self.clock()))
                return
            self.clock.advance(due_s - self.clock())

    def events(self) -> list[tuple[str, str]]:
        reader = sqlite3.connect(self.home.database)
        found = [(what, reason) for what, reason in reader.execute("SELECT what, reason FROM events ORDER BY id")]
        reader.close()
        return found

    def told(self, what: str) -> list[str]:
        return [reason for name, reason in self.events() if name == what]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path / "home")
    yield found
    assert found.session is not None
    found.session.close()


def test_a_want_gets_a_machine_and_gives_it_back(bench: Bench) -> None:
    bench.step(WANT, for_s=30.0)
    ((lease, handle),) = bench.renting.ready().items()
    assert handle.label == f"{bench.renting.prefix}{lease}"
    assert bench.renting.waits() == {}
    assert bench.market.count("create") == 1
    bench.step(WANT, for_s=600.0)
    assert bench.market.count("create") == 1
    bench.renting.release(lease, "everything is home")
    assert bench.renting.ready() == {}
    bench.step(for_s=1.0)
    assert bench.market.machines == {}
    assert bench.renting.leases()[0].proof.endswith("destroyed")
    assert [name for name, _ in bench.events()] == ["renting:ordered", "renting:ready", "released"]
    assert bench.renting.is_idle


def test_the_bill_is_asked_for_after_the_return(bench: Bench) -> None:
    bench.step(WANT, for_s=60.0)
    bench.renting.release(1, "done")
    bench.step(for_s=8000.0)
    assert bench.renting.leases()[0].charged_usd == 1.25
    assert bench.market.count("charges") == 2
    assert bench.renting.spent_usd("study") == bench.renting.bound_usd("study") == 1.25
    assert bench.renting.next_due_s() == float("inf")


def test_a_part_of_a_bill_frees_no_budget(bench: Bench) -> None:
    bench.step(WANT, for_s=6900.0)
    bench.renting.release(1, "done")
    bench.step(for_s=600.0)
    (lease,) = bench.renting.leases()
    assert (lease.charged_usd, lease.charges_asked) == (1.25, 1)
    assert lease.bill.metered_usd > 1.9
    assert bench.renting.spent_usd("study") == bench.renting.bound_usd("study") == lease.bill.metered_usd
    want = replace(WANT, key="study/1", max_usd=lease.terms.ceiling_usd + 1.3)  # enough beside 1.25 USD
    bench.step(want, for_s=60.0)
    assert bench.market.count("create") == 1
    bench.step(want, for_s=4000.0)
    assert bench.market.count("create") == 2


def test_a_bill_that_cannot_be_read_is_left_for_long_after_a_minute(bench: Bench) -> None:
    bench.market.script["charges"] = [AuthenticationFailed("this key reads no bills")] * 1000
    bench.step(WANT, for_s=60.0)
    bench.renting.release(1, "done")
    bench.step(for_s=300.0)
    assert bench.renting.awaits_bill_s > bench.clock() + 3000.0
    bench.step(for_s=86400.0)
    assert bench.market.count("charges") < 200


def test_the_limit_is_that_of_the_study_now(bench: Bench) -> None:
    bench.step(WANT, for_s=30.0)
    assert "max_usd is 10.00" in bench.renting.extend(1, 100_000.0)
    set_limit(bench, 50.0)
    bench.step(for_s=1.0)
    assert bench.renting.extend(1, 100_000.0) == ""
    set_limit(bench, None)  # what is rented never is without one
    bench.restart()
    bench.step(for_s=1.0)
    assert bench.renting.leases()[0].max_usd == 50.0
    set_limit(bench, 0.001)
    bench.step(for_s=60.0)
    assert "max_usd is used up" in bench.renting.leases()[0].because


def set_limit(bench: Bench, max_usd: float | None) -> None:
    """As `launch --max-usd … --amend` does."""
    assert bench.session is not None
    document = json.dumps({"budget": {"study": {"max_hours": None, "max_usd": max_usd}}})
    with bench.session.transaction() as connection:
        driver_of(connection).execute(
            "REPLACE INTO studies (study, document, source, lint, created) VALUES ('study', ?, '', '[]', 0.0)",
            (document,),
        )


def test_a_frozen_machine_is_a_halted_one_whose_gpus_are_paid_for(bench: Bench) -> None:
    bench.step(WANT, for_s=3000.0)
    ((number, (label, _)),) = bench.market.machines.items()
    bench.market.machines[number] = (label, "frozen")
    bench.step(WANT, for_s=100.0)
    before = bench.renting.leases()[0]
    bench.step(WANT, for_s=700.0)
    (lease,) = bench.renting.leases()
    assert (lease.stage, lease.is_ready, lease.because) == ("halted", False, "")
    assert lease.meter.gpu_s - before.meter.gpu_s == pytest.approx(lease.meter.at_s - before.meter.at_s)
    assert lease.meter.gpu_s > 3000.0 + 600.0
    bench.step(WANT, for_s=300.0)  # a pause that is paid for ends after the shortest limit
    assert bench.renting.leases()[0].because.startswith("it is halted")


def test_an_empty_account_is_told_of_where_it_pauses_a_machine(bench: Bench) -> None:
    bench.step(WANT, for_s=3000.0)
    assert bench.market.count("balance_usd") == 0
    ((number, (label, _)),) = bench.market.machines.items()
    bench.market.machines[number] = (label, "halted")
    bench.market.script["balance_usd"] = [HostLost("no answer"), -0.25, -0.5]
    bench.step(WANT, for_s=1000.0)
    (told,) = [one for one in bench.told("renting:trouble") if "empty" in one]
    assert "-0.25 USD" in told
    assert "pay in" in told
    bench.step(WANT, for_s=1000.0)
    assert [one for one in bench.told("renting:answers") if "there is money" in one]
    assert bench.market.count("balance_usd") == 5
    assert bench.renting.leases()[0].because == "", "it may be paused for as long as it has worked"


def test_no_life_is_made_longer_than_its_host_allows(bench: Bench) -> None:
    bench.market.offered = [replace(one, order={**ORDER, "duration_s": 20_000.0}) for one in bench.market.offered]
    bench.step(WANT, for_s=30.0)
    assert bench.renting.extend(1, 19_000.0) == "its host lets it live for 5.56 h only"
    assert bench.renting.extend(1, 18_000.0) == ""
    bench.step(WANT, for_s=30.0)
    assert bench.market.extended_s == 18_000.0


def test_a_machine_that_was_ready_is_not_taken_away_with_its_want(bench: Bench) -> None:
    bench.step(WANT, for_s=30.0)
    bench.step(for_s=600.0)
    assert list(bench.renting.ready()) == [1]


def test_a_machine_that_starts_is_given_back_with_its_want(bench: Bench) -> None:
    bench.market.script["inspect"] = [NotYet("booting")] * 50
    bench.step(WANT, for_s=30.0)
    assert bench.renting.waits()["study/0"].endswith("booting")
    bench.step(for_s=5.0)
    assert bench.market.machines == {}


@pytest.mark.parametrize("exists", [True, False])
def test_an_unknown_outcome_is_settled_before_anything_else_is_ordered(bench: Bench, exists: bool) -> None:
    bench.market.script["create"] = ["made, and no answer" if exists else Ambiguous("502")]
    bench.market.is_listed = False
    bench.step(WANT, for_s=50.0)
    assert bench.market.count("create") == 1
    assert "lists will tell" in bench.renting.waits()["study/0"]
    bench.market.is_listed = True
    bench.step(WANT, for_s=60.0)
    assert bench.market.count("create") == (1 if exists else 2)
    assert len(bench.market.machines) == len(bench.renting.ready()) == 1


def test_no_list_means_no_second_order_however_long_it_takes(bench: Bench) -> None:
    bench.market.script["create"] = [Ambiguous("502")]
    bench.market.script["observe"] = [Unknown("no answer")] * 10_000
    bench.step(WANT, for_s=5400.0)
    assert bench.market.count("create") == 1
    assert bench.market.count("observe") < 250  # asked twice a minute, and not as fast as it may
    assert len(bench.told("renting:trouble")) == 1  # said once
    bench.market.script["observe"] = []
    bench.step(WANT, for_s=300.0)
    assert len(bench.renting.ready()) == 1
    assert len(bench.told("renting:answers")) == 1


@pytest.mark.parametrize(
    "error", [RateLimited("429"), AuthenticationFailed("expired"), ProvisioningError("never sent"), SkipOffer("gone")]
)
def test_an_order_that_made_nothing_is_placed_again(bench: Bench, error: ProvisioningError) -> None:
    bench.market.script["create"] = [error]
    bench.step(WANT, for_s=60.0)
    assert bench.market.count("create") == 2
    assert len(bench.market.machines) == 1
    offers = [about[0] for verb, about in bench.market.asked if verb == "create"]
    assert (offers[0] != offers[1]) is isinstance(error, SkipOffer)


def test_an_order_that_could_not_be_placed_for_long_is_searched_anew(bench: Bench) -> None:
    bench.market.script["create"] = [AuthenticationFailed("expired")] * 9
    bench.step(WANT, for_s=600.0)
    first, second = bench.renting.leases()
    assert first.proof.startswith("never made: its offer has become old")
    assert second.is_ready
    assert bench.market.count("offers") == 2


def test_what_a_refusal_left_is_destroyed_before_the_next_order(bench: Bench) -> None:
    label = f"{bench.renting.prefix}1"
    left = bench.market.make(label, "halted")
    del bench.market.machines[left]

    class Leaves(list[Any]):
        def pop(self, place: Any = -1) -> Any:
            bench.market.machines["99"] = (label, "halted")
            return super().pop(0)

    bench.market.script["create"] = Leaves([Refused("the bid is too low", Handle("vast", label, "99"))])
    bench.market.script["release"] = [NotYetReleased("429"), NotYetReleased("success: false")]
    bench.step(WANT, for_s=60.0)
    verbs = [verb for verb, _ in bench.market.asked if verb in ("create", "release")]
    assert verbs == ["create", "release", "release", "release", "create"]
    assert "99" not in bench.market.machines
    assert len(bench.renting.ready()) == 1


def test_a_release_is_asked_for_until_it_is_proven(bench: Bench) -> None:
    bench.step(WANT, for_s=30.0)
    bench.market.script["release"] = [NotYetReleased("success: false")] * 200
    bench.renting.release(1, "done")
    bench.step(for_s=3 * 3600.0)
    assert bench.market.count("release") > 150  # once a minute, for hours
    assert bench.renting.leases()[0].state is State.OWNED
    assert len([one for one in bench.told("renting:trouble") if "not given back yet" in one]) == 1
    bench.step(for_s=3600.0)
    assert bench.market.machines == {}
    assert bench.renting.leases()[0].state is State.RELEASED


def test_an_expired_key_is_said_once_and_the_release_goes_on(bench: Bench) -> None:
    bench.step(WANT, for_s=30.0)
    expired = AuthenticationFailed("Session expired")
    bench.market.script = {"release": [expired] * 60, "observe": [expired] * 60}
    bench.renting.release(1, "done")
    bench.step(for_s=3 * 3600.0)
    assert bench.market.machines == {}
    assert len([one for one in bench.told("renting:trouble") if "refuses our key" in one]) == 1
    assert len([one for one in bench.told("renting:answers") if "takes our key again" in one]) == 1


def test_an_unfit_machine_is_given_back_and_not_rented_again(bench: Bench) -> None:
    bench.market.script["inspect"] = [NotYet("booting"), Unfit("3 of 4 GPUs")]
    bench.step(WANT, for_s=120.0)
    assert [lease.machine for lease in bench.renting.leases()] == ["m0", "m1"]
    assert len(bench.market.machines) == len(bench.renting.ready()) == 1


def test_a_market_full_of_bad_machines_costs_a_bounded_number_of_tries(bench: Bench) -> None:
    bench.market.script["inspect"] = [Unfit("no GPU")] * 100
    bench.market.offered = [replace(one, machine=f"n{n}") for n, one in enumerate(bench.market.offered * 5)]
    bench.step(WANT, for_s=3000.0)
    assert bench.market.count("create") == 5
    assert "5 machines have failed" in bench.renting.waits()["study/0"]
    bench.step(WANT, for_s=1200.0)
    assert bench.market.count("create") > 5


def test_nothing_is_ordered_beyond_the_money(bench: Bench) -> None:
    poor = replace(WANT, max_usd=2.0)  # two hours of 1.01 USD, and traffic
    bench.step(poor, for_s=600.0)
    assert bench.market.count("create") == 0
    assert "max_usd is 2.00" in bench.renting.waits()["study/0"]


def test_two_wants_share_one_purse(bench: Bench) -> None:
    one, two = replace(WANT, max_usd=3.5), replace(WANT, key="study/1", max_usd=3.5)
    bench.step(one, two, for_s=600.0)
    assert bench.market.count("create") == 1
    assert "2.0" in bench.renting.waits()["study/1"]
    bench.renting.release(1, "done")
    bench.step(two, for_s=600.0)
    assert bench.market.count("create") == 2


def test_the_end_of_its_life_ends_a_machine(bench: Bench) -> None:
    bench.step(WANT, for_s=30.0)
    bench.step(for_s=7200.0)
    assert bench.market.machines == {}
    assert any("its time is over" in one for one in bench.told("renting:trouble"))


def test_a_life_is_extended_when_the_machine_has_confirmed_it_and_the_money_allows(bench: Bench) -> None:
    bench.step(WANT, for_s=30.0)
    assert "max_usd" in bench.renting.extend(1, 100_000.0)
    assert bench.renting.extend(1, 10_000.0) == ""
    bench.market.script["extend"] = [HostLost("no answer")]
    bench.step(WANT, for_s=1.0)
    assert bench.renting.leases()[0].terms.ttl_s == 7200.0  # not before the machine said so
    bench.step(WANT, for_s=10.0)
    assert bench.market.extended_s == bench.renting.leases()[0].terms.ttl_s == 10_000.0
    bench.step(WANT, for_s=8000.0)
    assert len(bench.market.machines) == 1


def test_an_empty_market_says_why_and_is_asked_again(bench: Bench) -> None:
    bench.market.script["offers"] = [NoCapacity("37 offers: 20 have fewer than 4 GPUs")]
    bench.step(WANT, for_s=60.0)
    assert "37 offers" in bench.renting.waits()["study/0"]
    bench.step(WANT, for_s=120.0)
    assert len(bench.renting.ready()) == 1


def test_machines_of_this_home_without_a_lease_are_destroyed_and_no_others(bench: Bench) -> None:
    machines = bench.market.machines
    machines |= {"1": (f"{bench.renting.prefix}77", "reachable"), "2": ("somebody/else", "reachable")}
    machines |= {"3": ("armature/otherhome0000/77", "reachable"), "4": ("", "reachable")}
    bench.step(for_s=30.0)
    assert set(machines) == {"2", "3", "4"}
    assert {one.host for one in bench.renting.foreign} == {"2", "3", "4"}
    assert "no lease of this home holds it" in bench.told("released")[0]


def test_the_second_of_two_machines_under_one_label_is_destroyed(bench: Bench) -> None:
    bench.step(WANT, for_s=30.0)
    ((_, handle),) = bench.renting.ready().items()
    bench.market.machines = {**{"999": (handle.label, "loading")}, **bench.market.machines}
    bench.step(WANT, for_s=200.0)
    assert list(bench.market.machines) == [handle.host]
    assert bench.renting.ready() == {1: handle}


def test_a_machine_that_vanished_needs_the_providers_word_too(bench: Bench) -> None:
    bench.step(WANT, for_s=30.0)
    bench.market.machines.clear()
    bench.market.script["release"] = [NotYetReleased("404; a list must agree")]
    bench.step(for_s=300.0)
    assert bench.market.count("release") == 2
    assert bench.renting.leases()[0].state is State.RELEASED


class Killed(BaseException):
    pass


@pytest.mark.parametrize("is_made", [True, False])
def test_a_kill_during_an_order(bench: Bench, is_made: bool) -> None:
    bench.market.script["create"] = [Killed()]
    with pytest.raises(Killed):
        bench.step(WANT, for_s=60.0)
    label = bench.market.asked[-1][1][1]
    if is_made:
        bench.market.make(label)
    bench.restart()
    bench.step(WANT, for_s=50.0)
    assert bench.market.count("create") == 1
    bench.step(WANT, for_s=60.0)
    assert bench.market.count("create") == (1 if is_made else 2)
    assert len(bench.market.machines) == len(bench.renting.ready()) == 1


def test_a_kill_during_a_release(bench: Bench) -> None:
    bench.step(WANT, for_s=30.0)
    bench.renting.release(1, "done")
    bench.market.script["release"] = [Killed()]
    with pytest.raises(Killed):
        bench.step(for_s=10.0)
    bench.restart()
    bench.step(WANT, for_s=0.5)  # wanted again, or not: what is being given back is not handed out
    assert bench.market.count("release") == 2
    assert bench.renting.leases()[0].state is State.RELEASED


def test_a_restart_goes_on_with_what_is_ready(bench: Bench) -> None:
    bench.step(WANT, for_s=100.0)
    before = bench.renting.leases()[0]
    bench.restart()
    assert bench.renting.ready() == {1: before.handle}
    bench.step(WANT, for_s=100.0)
    assert bench.market.count("create") == 1
    assert bench.renting.leases()[0].meter.gpu_s > before.meter.gpu_s


def test_a_clock_that_is_set_back_lengthens_no_life(bench: Bench) -> None:
    wall = [1_000_000.0]
    assert bench.session is not None
    bench.renting = Renting(bench.session, bench.market, lambda: wall[0], bench.clock, at_once)
    bench.step(WANT, for_s=30.0)
    wall[0] -= 50_000.0
    for _ in range(200):
        bench.clock.advance(40.0)
        bench.renting.step([WANT])
        if not bench.market.machines:
            break
    assert any("its time is over" in one for one in bench.told("renting:trouble"))


def test_a_row_that_cannot_be_read_is_named_and_nothing_is_done(bench: Bench) -> None:
    bench.step(WANT, for_s=30.0)
    with sqlite3.connect(bench.home.database) as writer:
        writer.execute('UPDATE leases SET document = \'{"stage": "loading"}\'')
    writer.close()
    with pytest.raises(HomeError, match=f"{bench.renting.prefix}1"):
        bench.restart()


def test_what_is_no_answer_of_a_provider_is_not_swallowed(bench: Bench) -> None:
    bench.market.script["observe"] = [KeyError("a bug")]
    with pytest.raises(KeyError, match="a bug"):
        bench.step(WANT)


def _until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_nothing_that_hangs_holds_up_a_release(tmp_path: Path) -> None:
    """With real threads: a list and a look that do not come back, and a machine to be given back."""
    home = new_home(tmp_path / "home")
    session, lanes, let_go = Session(home.database, pid=1, now=1.0), LaneThreads(), threading.Event()
    market = Market(home.database)
    renting = Renting(session, market, time.time, time.monotonic, lanes)
    try:

        def is_ready() -> bool:
            renting.step([WANT])
            return bool(renting.ready())

        _until(is_ready)
        market.observe = lambda labels: (let_go.wait(30), {label: Unknown("late") for label in labels})[1]  # type: ignore
        renting._watch.soon(0.0)
        began_s = time.monotonic()
        renting.step([WANT])
        assert time.monotonic() - began_s < 20.0  # a step waits for nobody: the list comes after thirty seconds
        renting.release(1, "done")

        def is_gone() -> bool:
            renting.step([])
            return not market.machines and not renting.leases()[0].is_open

        _until(is_gone)
        assert not let_go.is_set()
    finally:
        let_go.set()
        lanes.close()
        session.close()


def test_an_answer_about_what_has_changed_meanwhile_is_not_applied(bench: Bench) -> None:
    """A list that was asked for while the machine was still ours comes back after its release."""
    held: list[Callable[[], None]] = []

    def submit(lane: str, verb: Callable[[], Any]) -> Future[Any]:
        if lane == "ask" and bench.renting.ready():
            future: Future[Any] = Future()
            held.append(lambda: future.set_result(verb()))
            return future
        return at_once(lane, verb)

    assert bench.session is not None
    bench.renting = Renting(bench.session, bench.market, bench.clock, bench.clock, submit)  # type: ignore[arg-type]
    bench.step(WANT, for_s=30.0)
    bench.clock.advance(60.0)
    bench.renting.step([WANT])
    assert len(held) == 1
    machine = dict(bench.market.machines)
    bench.renting.release(1, "done")
    bench.renting.step([])
    assert not bench.renting.leases()[0].is_open
    bench.market.machines.update(machine)  # the list is behind and still has it
    held[0]()
    bench.renting.step([])
    assert bench.renting.leases()[0].state is State.RELEASED
    assert bench.renting.ready() == {}
