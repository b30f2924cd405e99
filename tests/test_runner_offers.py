"""`runner offers` against the fake service behind a real HTTP server: what a person reads, and the exit codes."""

from __future__ import annotations

import json
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from provisioning.vast.offers import Wanted
from runner.commands.offers import offers
from runner.errors import EXIT_INFRASTRUCTURE, EXIT_OK, EXIT_USAGE, InfrastructureError, UsageError
from runner.renting.offered import MOST_BALANCE_WAIT_S, MOST_WAIT_S, QUIET_S, wanted_of
from tests.fakes.vast import Fake, Fault, FaultPlan, FollowingClock, Offer
from tests.fakes.vast.account import FULL_KEY, ApiKey
from tests.fakes.vast.server import Server, example_offers

SEARCH = ("POST", "/api/v0/bundles/")
ACCOUNT = ("GET", "/api/v0/users/current/")
WRONG_KEY = "0123456789abcdef-planted-key"


class QuickClock:
    """Waiting takes no time, and is remembered; the service's own clock goes on as fast as the real one."""

    def __init__(self) -> None:
        self.passed_s = 0.0
        self.waits_s: list[float] = []

    def now(self) -> float:
        return 1_800_000_000.0 + self.passed_s

    def monotonic(self) -> float:
        return self.passed_s

    def wait(self, seconds: float, descriptors: Collection[int] = ()) -> frozenset[int]:
        self.waits_s.append(seconds)
        self.passed_s += seconds
        return frozenset()


@contextmanager
def service(
    market: list[Offer] | None = None, *faults: tuple[tuple[str, str], list[Fault]], balance_usd: float = 100.0
) -> Iterator[tuple[Fake, dict[str, str]]]:
    """The fake on loopback, and the environment that leads to it."""
    clock, plan = FollowingClock(), FaultPlan()
    for route, scripted in faults:
        plan.script(*route, *scripted)
    fake = Fake(example_offers() if market is None else market, start_s=clock(), plan=plan, balance_usd=balance_usd)
    with Server(fake, clock) as server:
        yield fake, {"VAST_URL": server.url, "VAST_API_KEY": FULL_KEY}


def printed(
    capsys: pytest.CaptureFixture[str], wanted: Wanted, environment: Mapping[str, str], limit: int = 20
) -> tuple[int, str]:
    code = offers(wanted, environment, as_json=False, limit=limit, clock=QuickClock())
    return code, capsys.readouterr().out


def as_document(
    capsys: pytest.CaptureFixture[str], wanted: Wanted, environment: Mapping[str, str], limit: int = 20
) -> tuple[int, Any]:
    code = offers(wanted, environment, as_json=True, limit=limit, clock=QuickClock())
    return code, json.loads(capsys.readouterr().out)


def test_a_table_of_what_fits_with_the_cost_of_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    with service() as (fake, environment):
        code, page = printed(capsys, Wanted(gpus=4, gpu_names=("RTX_4090",), hours=10), environment)
        fake.assert_clean()
    rows = [line.split() for line in page.splitlines() if line.lstrip().startswith("10")]
    assert code == EXIT_OK
    assert [row[0] for row in rows] == ["1010", "1020"]
    # 10 h at 1.6 USD, 40 GB at 0.15 USD a month, 5 GB out at 0.02 and 20 GB in at 0.01.
    assert "16.38" in rows[0]
    assert "16.00 + 0.08 + 0.30" in page
    assert "2 offers: 2 fit" in page
    assert "left in the account: 100.00 USD" in page
    assert fake.counts() == {"POST /api/v0/bundles/": 1, "GET /api/v0/users/current/": 1}
    assert fake.existing() == []


def test_one_document_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with service() as (_, environment):
        code, found = as_document(capsys, Wanted(max_usd_per_h=1.0), environment, limit=3)
    assert code == EXIT_OK
    assert (found["found"], found["fit"], len(found["offers"])) == (11, 9, 3)
    assert found["excluded"] == [
        {
            "filter": "max_usd_per_h",
            "count": 2,
            "unknown": 0,
            "why": "cost more than 1.0 USD/h",
            "nearest": "the cheapest: 1.6082",
        }
    ]
    first = found["offers"][0]
    assert first["plan_usd"] == pytest.approx(first["gpu_usd"] + first["storage_usd"] + first["traffic_usd"])
    assert first["plan_usd"] == min(one["plan_usd"] for one in found["offers"])
    assert Wanted.from_json(found["wanted"]) == Wanted(max_usd_per_h=1.0)
    assert found["account"] == {"left_usd": 100.0, "unread": ""}
    assert found["remarks"] == []


def test_where_nothing_fits_it_says_what_there_is_instead(capsys: pytest.CaptureFixture[str]) -> None:
    with service() as (fake, environment):
        code, page = printed(capsys, Wanted(gpus=8, gpu_names=("RTX 4090",)), environment)
        fake.assert_clean()
    assert code == EXIT_INFRASTRUCTURE
    assert "nothing to rent: 8 x RTX 4090 on one machine" in page
    assert "11 offers: 11 have fewer than 8 GPUs (the most: 4)" in page
    assert fake.counts()["POST /api/v0/bundles/"] == 2


def test_an_empty_market_is_no_riddle(capsys: pytest.CaptureFixture[str]) -> None:
    with service([]) as (_, environment):
        code, found = as_document(capsys, Wanted(), environment)
    assert (code, found["offers"], found["says"]) == (EXIT_INFRASTRUCTURE, [], "there are no such offers at all")


def test_bids_are_shown_at_what_they_cost(capsys: pytest.CaptureFixture[str]) -> None:
    with service() as (_, environment):
        wanted = Wanted(gpus=4, is_interruptible=True, bid_usd_per_h=0.25)
        code, found = as_document(capsys, wanted, environment)
    assert code == EXIT_OK
    assert {one["bid_usd_per_h"] for one in found["offers"]} == {0.25}
    assert {one["min_bid_usd_per_h"] for one in found["offers"]} == {0.2}


@pytest.mark.parametrize("environment", [{}, {"VAST_API_KEY": " "}, {"VAST_API_KEY": "a b"}])
def test_without_a_key_nothing_is_asked(environment: dict[str, str]) -> None:
    with service() as (fake, there), pytest.raises(UsageError, match="VAST_API_KEY") as refused:
        offers(Wanted(), {"VAST_URL": there["VAST_URL"], **environment}, as_json=False, limit=5)
    assert refused.value.exit_code == EXIT_USAGE
    assert "manage-keys" in str(refused.value)
    assert fake.requests == []


def test_an_address_that_must_not_see_the_key_is_refused() -> None:
    with pytest.raises(UsageError, match="VAST_URL"):
        offers(Wanted(), {"VAST_API_KEY": WRONG_KEY, "VAST_URL": "https://example.org"}, as_json=False, limit=5)


def test_a_wrong_key_is_said_and_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    with service() as (_, environment), pytest.raises(UsageError, match="key is wrong") as refused:
        offers(Wanted(), {**environment, "VAST_API_KEY": WRONG_KEY}, as_json=True, limit=5)
    said = str(refused.value) + "".join(capsys.readouterr())
    assert "VAST_API_KEY" in said
    assert WRONG_KEY not in said


def test_a_key_that_may_only_search_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    with service() as (fake, environment):
        fake.account.keys["only-search"] = ApiKey("search", "only-search", frozenset({"misc"}))
        code, found = as_document(capsys, Wanted(), {**environment, "VAST_API_KEY": "only-search"})
    assert code == EXIT_OK
    assert len(found["offers"]) == 11
    assert found["account"]["left_usd"] is None
    assert "403" in found["account"]["unread"]
    assert "the balance of the account could not be read" in found["remarks"][0]


def test_an_empty_account_is_said_and_the_offers_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with service(balance_usd=0.0) as (_, environment):
        code, page = printed(capsys, Wanted(), environment)
    assert code == EXIT_OK
    assert "2003" in page
    assert "the account is empty (0.00 USD)" in page


def test_money_that_does_not_last_for_the_plan_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with service(balance_usd=3.0) as (_, environment):
        _, short = as_document(capsys, Wanted(hours=8), environment)
    with service(balance_usd=3.0) as (_, environment):
        _, enough = as_document(capsys, Wanted(hours=1), environment)
    assert "3.00 USD are less than the 3.57 USD" in short["remarks"][0]
    assert enough["remarks"] == []


def test_a_service_that_wants_to_be_asked_later_is_asked_later(capsys: pytest.CaptureFixture[str]) -> None:
    faults = (SEARCH, [Fault("too_many_text"), Fault("too_many_json")] * 2)
    with service(None, faults) as (fake, environment):
        clock = QuickClock()
        assert offers(Wanted(), environment, as_json=True, limit=5, clock=clock) == EXIT_OK
        assert fake.counts()["POST /api/v0/bundles/"] == 5
    said = capsys.readouterr()
    assert json.loads(said.out)["fit"] == 11
    assert len(clock.waits_s) == 4
    assert all(wait_s >= 1.0 for wait_s in clock.waits_s)
    long = [wait_s for count, wait_s in enumerate(clock.waits_s, 1) if sum(clock.waits_s[:count]) >= QUIET_S]
    assert 0 < len(long) < 4
    assert said.err.count("Vast.ai asks us to slow down") == len(long)


def test_a_short_wait_is_one_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    with service(None, (SEARCH, [Fault("too_many_text")])) as (_, environment):
        clock = QuickClock()
        assert offers(Wanted(), environment, as_json=True, limit=5, clock=clock) == EXIT_OK
    assert 1.0 <= sum(clock.waits_s) < QUIET_S
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["rtx4090", "Rtx_4090", "RTX4090"])
def test_a_gpu_is_found_however_its_name_is_typed(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with service() as (fake, environment):
        code, found = as_document(capsys, Wanted(gpus=4, gpu_names=(name,)), environment)
        fake.assert_clean()
    assert code == EXIT_OK
    assert {one["gpu_name"] for one in found["offers"]} == {"RTX 4090"}
    assert found["wanted"]["gpu_names"] == ["RTX 4090"], "what is rented is looked for by the name of the service"


def test_of_several_gpus_none_is_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    market = [Offer(1, 1), Offer(2, 2, gpu_name="RTX 5090")]
    with service(market) as (_, environment):
        _, found = as_document(capsys, Wanted(gpu_names=("RTX 4090", "rtx5090")), environment)
    assert {one["gpu_name"] for one in found["offers"]} == {"RTX 4090", "RTX 5090"}


def test_waiting_has_an_end() -> None:
    clock = QuickClock()
    refusing = service(None, (SEARCH, [Fault("too_many_text")] * 50))
    with refusing as (_, environment), pytest.raises(InfrastructureError, match="try again later") as given_up:
        offers(Wanted(), environment, as_json=True, limit=5, clock=clock)
    assert given_up.value.exit_code == EXIT_INFRASTRUCTURE
    assert 0 < sum(clock.waits_s) <= MOST_WAIT_S


def test_a_balance_that_never_comes_does_not_take_the_offers_away(capsys: pytest.CaptureFixture[str]) -> None:
    clock = QuickClock()
    with service(None, (ACCOUNT, [Fault("too_many_text")] * 50)) as (_, environment):
        assert offers(Wanted(), environment, as_json=True, limit=5, clock=clock) == EXIT_OK
    found = json.loads(capsys.readouterr().out)
    assert (found["fit"], found["account"]["left_usd"]) == (11, None)
    assert sum(clock.waits_s) <= MOST_BALANCE_WAIT_S


@pytest.mark.parametrize("kind", ["html", "malformed", "empty", "server_error", "drop", "refused"])
def test_an_answer_that_is_none_is_infrastructure(kind: str) -> None:
    with service(None, (SEARCH, [Fault(kind)])) as (_, environment), pytest.raises(InfrastructureError) as failed:
        offers(Wanted(), environment, as_json=True, limit=5, clock=QuickClock())
    assert "nothing was rented" in str(failed.value)


def test_a_service_that_is_not_there_is_infrastructure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    environment = {"VAST_URL": f"http://127.0.0.1:{port}", "VAST_API_KEY": FULL_KEY}
    with pytest.raises(InfrastructureError, match="connection failed"):
        offers(Wanted(), environment, as_json=True, limit=5, clock=QuickClock())


def test_what_a_host_calls_itself_is_only_text(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = Offer(1, 1, gpu_name="[red]RTX[/red]\x1b[31m", geolocation="[bold]\x1b]0;title\x07\u202e")
    with service([hostile]) as (_, environment):
        _, page = printed(capsys, Wanted(), environment)
        _, other = printed(capsys, Wanted(gpu_names=("H100",)), environment)
    for text in (page, other):
        assert "[red]RTX[/red]\\x1b[31m" in text
        assert not {"\x1b", "\x07", "\u202e"} & set(text)


def test_a_narrow_terminal_keeps_the_price(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "80"), ("TERM", "dumb")):
        monkeypatch.setenv(name, value)
    with service() as (_, environment):
        _, page = printed(capsys, Wanted(gpus=4), environment)
    table = [line for line in page.splitlines() if "4 x RTX 4090" in line]
    assert len(table) == 2
    assert all(len(line) <= 80 and "13.17" in line for line in table)


def test_a_list_that_the_service_may_have_cut_is_called_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for most, is_cut in ((11, True), (12, False)):
        monkeypatch.setattr("provisioning.vast.offers.MOST_OFFERS", most)
        with service() as (_, environment):
            _, found = as_document(capsys, Wanted(), environment)
        assert found["is_cut"] == is_cut
        assert any("there may be more" in line for line in found["remarks"]) == is_cut


def test_more_than_the_limit_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with service() as (_, environment):
        _, page = printed(capsys, Wanted(), environment, limit=2)
    assert "9 more fit: --limit 11" in page


def test_options_become_a_wish_and_a_wrong_one_is_named() -> None:
    assert wanted_of({"gpus": 4, "max_usd_per_h": None, "gpu_names": ["A"]}) == Wanted(gpus=4, gpu_names=("A",))
    with pytest.raises(UsageError, match="gpus 0: allowed: 1 to 64"):
        wanted_of({"gpus": 0})
