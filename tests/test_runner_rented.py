"""What a controller has to do with rented machines: bills that are not read, and the limit that is in force."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from provisioning.base import HomeKeyError, NotYetReleased, Unknown
from runner.accept import Accept
from runner.errors import UsageError
from runner.home import Home
from runner.records import RunState
from runner.rented import BILL_S, Rented
from runner.spec.models import DEFAULT_BUDGET
from runner.store import requests
from runner.store.facts import open_runs
from runner.store.requests import Answer, Request
from tests.fakes.arms import command_arm
from tests.fakes.renting_case import at_once
from tests.fakes.stored_study import StoredStudy
from tests.fakes.vast import VirtualClock
from tests.test_runner_renting_loop import Market

WANTED = {
    "key": "launch-1/trial", "slots": 4, "gpus": 1, "cpus": 1, "min_vram_gib": 0.0, "wanted": {}, "max_usd": 1.0,
}  # fmt: skip
PLACES = cast("Any", SimpleNamespace(reach_anew=lambda _lease: None, known=lambda _lease: None))


class Bench:
    """A home, a clock, an account, and one controller after the other."""

    def __init__(self, folder: Path) -> None:
        self.stored = StoredStudy(Home(folder))
        self.clock = VirtualClock()
        self.market: Any = Market(self.stored.home.database)
        self.rented = self.begin()

    def begin(self, providers: Any = None) -> Rented:
        """A new controller."""
        known = {"vast": self.market} if providers is None else providers
        self.rented = Rented(self.stored.session, known, PLACES, self.clock, self.clock, at_once)
        return self.rented

    def step(self, for_s: float) -> None:
        """Rounds of a second."""
        for _ in range(round(for_s)):
            with self.stored.session.reading() as connection:
                runs = open_runs(connection)
            self.rented.step(runs)
            self.clock.advance(1.0)

    def rent(self) -> None:
        """One machine for one run, which then ends; the controller leaves when there is nothing more to do."""
        limited = {**DEFAULT_BUDGET, "study": {"max_hours": None, "max_usd": 50.0}}
        run = self.stored.run(command_arm(budget=limited), state=RunState.QUEUED, provider="vast", wanted=WANTED)
        self.step(30.0)
        self._set(run, "finished")
        self.step(90.0 + BILL_S)

    def charges(self) -> int:
        """How often the account was asked for charges."""
        return int(self.market.count("charges"))

    def _set(self, run: str, state: str) -> None:
        with sqlite3.connect(self.stored.home.database) as writer:
            writer.execute("UPDATE runs SET state = ? WHERE run = ?", (state, run))
        writer.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path / "home")
    yield found
    found.stored.close()


def test_a_run_is_bound_by_the_limit_that_its_study_has_now(bench: Bench) -> None:
    bench.rent()  # its launch said 1 USD, which pays for no offer
    assert bench.market.count("create") == 1
    (lease,) = bench.rented._renting["vast"].leases()
    assert lease.max_usd == 50.0


def test_the_next_controller_asks_for_the_rest_of_a_bill_and_stays_for_none(bench: Bench) -> None:
    bench.rent()
    assert bench.charges() == 1
    assert not bench.rented.is_open
    bench.begin()
    bench.step(10.0)
    assert not bench.rented.is_open  # the last reading is an hour away
    bench.clock.advance(3900.0)
    bench.begin()
    assert bench.rented.is_open
    bench.step(10.0)
    assert bench.charges() == 2
    assert not bench.rented.is_open
    bench.begin()
    assert not bench.rented.is_open
    bench.step(10.0)
    assert bench.charges() == 2


def test_a_controller_that_lives_on_asks_when_it_is_time(bench: Bench) -> None:
    bench.rent()
    bench.begin()
    bench.step(10.0)
    bench.clock.advance(3900.0)
    bench.step(10.0)
    assert bench.charges() == 2


def test_nobody_stays_for_the_bill_of_a_silent_account(bench: Bench) -> None:
    bench.rent()
    bench.clock.advance(3900.0)
    bench.market.script["observe"] = [Unknown("no answer")] * 10_000
    bench.begin()
    bench.step(BILL_S - 10.0)
    assert bench.rented.is_open
    bench.step(20.0)
    assert not bench.rented.is_open


class NoKey(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        raise HomeKeyError(f"no key for {name}")


def test_without_a_key_a_bill_stays_unread_and_nothing_else_is_kept_from_work(bench: Bench) -> None:
    bench.rent()
    bench.begin(NoKey())
    assert not bench.rented.is_open
    bench.step(5.0)


def swept(bench: Bench) -> Answer:
    """What `runner gc` is answered."""
    request = requests.ask(bench.stored.home, "gc", {})
    accept = Accept(
        bench.stored.session, bench.stored.home, cast("Any", None), bench.clock, bench.clock, bench.rented.gc
    )
    for _ in range(60):
        accept(Request(request, "gc", {}))
        with bench.stored.session.reading() as connection:
            answer = requests.read_answer(connection, request)
        if answer is not None:
            return answer
        bench.step(1.0)
    raise AssertionError("never answered")


def test_gc_says_what_is_held_and_that_all_is_proven(bench: Bench) -> None:
    assert swept(bench) == Answer(True, "vast: 0 machines are held for runs")


def test_gc_is_no_success_while_nobody_lists_the_account(bench: Bench) -> None:
    bench.market.script["observe"] = [Unknown("no answer")] * 10_000
    answer = swept(bench)
    assert not answer.accepted
    assert "vast gave no complete list, so nothing is proven" in answer.message
    assert "the controller of this home asks again as long as it is at work; to look again: runner gc" in answer.message


def test_gc_is_no_success_while_a_machine_is_not_proven_gone(bench: Bench) -> None:
    left = bench.market.make(f"armature/{bench.stored.session.home_id}/77")
    bench.market.script["release"] = [NotYetReleased("429")] * 10_000
    answer = swept(bench)
    assert not answer.accepted
    assert f"{left} (armature/{bench.stored.session.home_id}/77) not proven given back yet" in answer.message
    assert "to look again: runner gc" in answer.message


def test_a_controller_without_a_key_says_how_to_end_it() -> None:
    def provider(_name: str) -> Any:
        raise ValueError("VAST_API_KEY is not set")

    accept = Accept(cast("Any", None), cast("Any", None), cast("Any", SimpleNamespace(provider=provider)), lambda: 0.0)
    with pytest.raises(UsageError, match=r"`kill \d+` ends it \(its runs go on\), then launch again"):
        accept._require_account("vast")
