"""The fake Vast.ai does what is published of the real one: states, bills, paging, spacing, and every known quirk."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.vast import Answer, Boot, Fake, Fault, FaultPlan, FollowingClock, Instance, Offer, Rates, VirtualClock
from tests.fakes.vast.account import FULL_KEY, LIMITED_KEY
from tests.fakes.vast.answers import Shapes
from tests.fakes.vast.machine import EVENTS, Endpoint
from tests.fakes.vast.market import HOURS_PER_MONTH
from tests.fakes.vast.server import Server, Wire, example_offers

HERE = "https://console.vast.ai"
ASKS = "/api/v0/asks/{id}/"
ONE = "/api/v0/instances/{id}/"
RUNTYPE = "ssh_direc ssh_proxy"
BOOTED_S = 120.0  # longer than any start here takes
APART_S = 13.0  # longer than any published interval and penalty


def market(count: int = 40) -> list[Offer]:
    return [Offer(ask_id=100 + number, machine_id=number) for number in range(count)]


class Caller:
    """A client that waits long enough between its calls."""

    def __init__(self, offers: list[Offer] | None = None, key: str = FULL_KEY, **options: Any) -> None:
        options.setdefault("shapes", Shapes())
        self.clock = VirtualClock()
        self.fake = Fake(market() if offers is None else offers, **options)
        self.session = requests.Session()
        self.session.mount(HERE, Wire(self.fake, self.clock))
        self.session.headers["Authorization"] = f"Bearer {key}"

    def ask(self, method: str, path: str, body: Any = None, **more: Any) -> requests.Response:
        self.clock.advance(APART_S)
        sent = {} if body is None and method != "GET" else body
        return self.session.request(method, HERE + path, json=sent, timeout=20, **more)

    def create(self, ask_id: int = 100, **fields: Any) -> requests.Response:
        wanted = {
            "client_id": "me",
            "image": "torch:2",
            "disk": 20,
            "label": "armature/h/1",
            "runtype": RUNTYPE,
            **fields,
        }
        return self.ask("PUT", f"/api/v0/asks/{ask_id}/", wanted)

    def rent(self, ask_id: int = 100, **fields: Any) -> int:
        return int(self.create(ask_id, **fields).json()["new_contract"])

    def running(self, ask_id: int = 100, **fields: Any) -> int:
        number = self.rent(ask_id, **fields)
        self.clock.advance(BOOTED_S)
        assert self.show(number)["actual_status"] == "running"
        return number

    def show(self, number: int) -> dict[str, Any]:
        return dict(self.ask("GET", f"/api/v0/instances/{number}/").json()["instances"] or {})

    def pages(self) -> Iterator[list[dict[str, Any]]]:
        token: str | None = ""
        while token is not None:
            answer = self.ask("GET", "/api/v1/instances/", params={"limit": 25, "after_token": token}).json()
            yield answer["instances"] or []
            token = answer["next_token"]

    def listed(self) -> list[int]:
        return [record["id"] for page in self.pages() for record in page]

    def destroy(self, number: int) -> requests.Response:
        return self.ask("DELETE", f"/api/v0/instances/{number}/")


# The bill.

STEPS = st.tuples(st.floats(0, 5000), st.sampled_from([*EVENTS, "bytes"]), st.integers(0, 2))


def model_usd(fake: Fake, number: int, traffic: list[tuple[int, int, int]]) -> float:
    """The bill from the history of states alone: prices times spans, added up once, after the fact."""
    history = fake.world.history[number]
    ends = [*(change.at_s for change in history[1:]), fake.world.now_s]
    usd = 0.0
    for change, end_s in zip(history, ends, strict=True):
        state = change.after
        if state.gone_s is not None:
            continue
        hours = (end_s - change.at_s) / 3600
        usd += state.offer.gpu_usd_per_h * hours * (state.actual in {"running", "frozen"})
        usd += 20 * state.offer.storage_usd_per_gb_month / HOURS_PER_MONTH * hours * (state.actual != "offline")
    offer = history[0].after.offer
    bytes_usd = [
        up / 1e9 * offer.inet_up_usd_per_gb + down / 1e9 * offer.inet_down_usd_per_gb for of, up, down in traffic
    ]
    return usd + sum(cost for cost, (of, _, _) in zip(bytes_usd, traffic, strict=True) if of == number)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=25), st.floats(0.05, 50), st.integers(0, 5))
def test_the_ledger_equals_a_model_over_random_histories(
    steps: list[tuple[float, str, int]], balance_usd: float, seed: int
) -> None:
    caller = Caller(balance_usd=balance_usd, seed=seed)
    numbers = [caller.rent(100 + place, label=f"armature/h/{place}") for place in range(3)]
    fake, traffic = caller.fake, []
    for later_s, event, place in steps:
        fake.advance_to(caller.clock.advance(later_s))
        number = numbers[place]
        if event != "bytes":
            fake.world.happen(number, event)
        elif fake.world.instances[number].living:
            fake.world.move_bytes(number, up_bytes=3_000_000_000, down_bytes=1_000_000)
            traffic.append((number, 3_000_000_000, 1_000_000))
    fake.advance_to(caller.clock.advance(3600))
    for number in numbers:
        assert fake.world.ledger.lines[number].usd == pytest.approx(
            model_usd(fake, number, traffic), rel=1e-9, abs=1e-12
        )
    paid = sum(line.usd for line in fake.world.ledger.lines.values())
    assert fake.world.balance_usd == pytest.approx(balance_usd - paid, rel=1e-9, abs=1e-9)
    assert set(fake.usd_by_label()) == {"armature/h/0", "armature/h/1", "armature/h/2"}


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 90_000), st.floats(0, 90_000), st.sampled_from(["stop", "offline", "exit", "freeze", "thaw"]))
def test_a_destroyed_instance_costs_nothing_more(lived_s: float, later_s: float, event: str) -> None:
    caller = Caller(balance_usd=1000.0)
    number = caller.rent()
    caller.fake.advance_to(caller.clock.advance(lived_s))
    caller.fake.world.happen(number, event)
    assert caller.destroy(number).json()["success"] is True
    exists_s, bill = caller.fake.seconds_by_label(), caller.fake.usd_by_label()
    caller.fake.advance_to(caller.clock.advance(later_s))
    assert caller.fake.world.happen(number, "run").gone_s is not None
    assert (caller.fake.seconds_by_label(), caller.fake.usd_by_label()) == (exists_s, bill)
    assert caller.fake.never_destroyed() == []
    with pytest.raises(ValueError, match="gone"):
        caller.fake.world.move_bytes(number, up_bytes=1)


def test_no_bill_without_an_instance_and_no_gpu_seconds_while_loading() -> None:
    caller = Caller()
    caller.fake.advance_to(caller.clock.advance(86400))
    assert caller.ask("GET", "/api/v0/users/current/").json()["balance"] == 100.0
    caller.fake.world.boots.append(Boot(trouble="loading_for_ever"))
    number = caller.rent()
    caller.fake.advance_to(caller.clock.advance(3600))
    line = caller.fake.world.ledger.lines[number]
    assert line.gpu_s == 0.0
    assert line.storage_s == pytest.approx(line.exists_s)
    assert line.storage_usd > 0


def test_charges_agree_with_the_ledger() -> None:
    caller = Caller()
    number = caller.running()
    caller.fake.world.move_bytes(number, up_bytes=5_000_000_000)
    caller.fake.advance_to(caller.clock.advance(7200))
    caller.destroy(number)
    wanted = json.dumps({"day": {"gte": 0, "lte": 4e9}})
    answer = caller.ask("GET", "/api/v0/charges/", params={"select_filters": wanted}).json()
    (row,) = answer["results"]
    line = caller.fake.world.ledger.lines[number]
    assert row["source"] == f"instance-{number}"
    assert {item["type"]: item["amount"] for item in row["items"]} == {
        "gpu": line.gpu_usd, "disk": line.storage_usd, "bwd": 0.0, "bwu": pytest.approx(0.1)
    }  # fmt: skip
    assert row["amount"] == pytest.approx(line.usd, abs=0.0005)
    assert caller.ask("GET", "/api/v0/charges/").status_code == 400


# The same every time.


def transcript(seed: int) -> list[tuple[Any, ...]]:
    rates = Rates(too_many=0.1, server_error=0.1, drop=0.1, malformed=0.1, destroy_404=0.2, slow=0.2, offline=0.5)
    caller = Caller(seed=seed, shapes=Shapes.of_seed(seed), plan=FaultPlan(seed, rates))
    lines: list[tuple[Any, ...]] = []
    for turn in range(30):
        method, path, body = [
            ("PUT", f"/api/v0/asks/{100 + turn}/", {"image": "i", "disk": 20, "label": f"armature/h/{turn}"}),
            ("GET", "/api/v1/instances/", None),
            ("DELETE", f"/api/v0/instances/{20_000_001 + turn // 6}/", None),
        ][turn % 3]
        try:
            answer = caller.ask(method, path, body)
            lines.append((answer.status_code, answer.content))
        except (requests.ConnectionError, requests.ReadTimeout) as cut:
            lines.append((type(cut).__name__,))
    return lines


def test_the_same_seed_gives_the_same_answers_and_another_seed_others() -> None:
    first = transcript(7)
    assert transcript(7) == first
    assert any(transcript(seed) != first for seed in (8, 9))
    kinds = [[FaultPlan(s, Rates(drop=0.5)).draw(n, "GET", "", 0, 0).kind for n in range(40)] for s in (1, 2)]
    assert kinds[0] != kinds[1]
    assert len({line[0] for line in first}) > 3  # many things went wrong, not one


# Paging.


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 70), st.lists(st.integers(0, 3), max_size=4), st.integers(0, 3))
def test_paging_shows_every_instance_once_while_others_are_created(
    before: int, created: list[int], destroyed: int
) -> None:
    caller = Caller([])
    for place in range(before):
        caller.fake.plant(f"someone/{place}")
    stable = [each.id for each in caller.fake.existing()]
    doomed, seen = stable[:destroyed], []
    for place, page in enumerate(caller.pages()):
        assert len(page) <= 25
        seen += [record["id"] for record in page]
        for number in range(created[place] if place < len(created) else 0):
            caller.fake.plant(f"new/{place}/{number}")
        for number in doomed:
            caller.fake.world.happen(number, "destroy")
    assert len(seen) == len(set(seen))
    assert set(stable) <= set(seen)


def test_a_page_has_five_by_default_and_bad_parameters_are_refused() -> None:
    caller = Caller([])
    for place in range(8):
        caller.fake.plant("b" if place % 2 else None)
    path = "/api/v1/instances/"
    first = caller.ask("GET", path).json()
    assert (first["instances_found"], first["total_instances"], first["label_counts"]) == (5, 8, {"b": 4, "": 4})
    chosen = {"select_filters": '{"label":{"in":["b",null]}}', "select_cols": '["id","wrong"]', "limit": 25}
    answer = caller.ask("GET", path, params=chosen).json()
    assert answer["total_instances"] == 8
    assert set(answer["instances"][0]) == {"id", "wrong"}
    assert caller.ask("GET", path, params={"after_token": "rubbish"}).json()["error"] == "invalid_token"
    for filters in ('{"dph_total":{"gt":1}}', '{"label":{"like":"b"}}', "no json"):
        assert caller.ask("GET", path, params={"select_filters": filters}).status_code == 400


# Spacing and strictness.


def test_calls_too_early_get_429_in_both_forms_and_are_counted() -> None:
    caller, statuses, texts = Caller(), [], []
    for _ in range(4):
        answer = caller.session.get(f"{HERE}/api/v1/instances/", timeout=20)
        statuses.append(answer.status_code)
        texts.append(answer.headers["Content-Type"])
    assert statuses == [200, 429, 429, 429]
    assert {text.split(";")[0] for text in texts[1:]} == {"application/json", "text/plain"}
    assert [early.route for early in caller.fake.spacing_violations()] == ["GET /api/v1/instances/"] * 3
    assert "Retry-After" not in answer.headers
    with pytest.raises(AssertionError, match="too early"):
        caller.fake.assert_clean()


def test_a_create_too_early_closes_the_route_for_twelve_seconds_and_other_keys_are_not_meant() -> None:
    caller = Caller()
    caller.create()
    put = f"{HERE}/api/v0/asks/101/"
    assert caller.session.put(put, json={"image": "i"}, timeout=20).status_code == 429
    caller.clock.advance(11)
    assert caller.session.put(put, json={"image": "i"}, timeout=20).status_code == 429
    other = {"Authorization": f"Bearer {LIMITED_KEY}"}
    assert caller.session.put(put, json={"image": "i"}, headers=other, timeout=20).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "wrong"),
    [
        ("GET", "/api/v1/instances", None, "trailing slash"),
        ("GET", "/api/v0/nothing/", None, "no such path"),
        ("PUT", "/api/v0/launch_instance/", {}, "not modelled"),
        ("GET", f"/api/v1/instances/?api_key={FULL_KEY}", None, "key in the URL"),
        ("POST", "/api/v0/bundles/", {"gpu_name": {"in": ["RTX_4090"]}}, "underscore"),
        ("PUT", "/api/v0/asks/100/", {"image": "i", "label": "x" * 257}, "label has 257"),
        ("PUT", "/api/v0/asks/100/", {"image": "i", "onstart": "x" * 4000, "args": ["y" * 97]}, "args has 4097"),
        ("PUT", "/api/v0/asks/100/", {"image": "i", "env": "-e A=1"}, "env is no object"),
        ("PUT", "/api/v0/asks/100/", {"image": "i", "env": {"A": "x" * 257}}, "env 'A'"),
        ("DELETE", "/api/v0/instances/5/", [], "no JSON object"),
    ],
)  # fmt: skip
def test_strict_mode_names_what_a_careful_client_never_does(method: str, path: str, body: Any, wrong: str) -> None:
    caller = Caller()
    caller.fake.assert_clean()
    caller.session.request(method, HERE + path, json=body, timeout=20)
    with pytest.raises(AssertionError, match=wrong):
        caller.fake.assert_clean()


def test_a_request_without_bearer_is_refused_and_noted() -> None:
    caller = Caller()
    del caller.session.headers["Authorization"]
    assert caller.ask("GET", "/api/v1/instances/").status_code == 401
    assert "Bearer" in caller.fake.breaches[0]


def test_keys_have_scopes_and_a_container_reaches_only_itself() -> None:
    caller = Caller(key=LIMITED_KEY)
    mine, other = caller.rent(), caller.rent(101, label="armature/h/2")
    assert caller.destroy(mine).status_code == 403
    assert caller.ask("POST", "/api/v0/ssh/", {"ssh_key": "ssh-ed25519 A"}).status_code == 403
    inside = caller.fake.container_environment(mine)
    caller.session.headers["Authorization"] = f"Bearer {inside['CONTAINER_API_KEY']}"
    assert caller.destroy(other).status_code == 403
    assert caller.destroy(int(inside["CONTAINER_ID"])).status_code == 200
    assert [each.id for each in caller.fake.existing()] == [other]


# Offers and prices.


def test_search_filters_orders_and_prices_storage() -> None:
    caller = Caller(example_offers())
    wanted = {
        "num_gpus": {"eq": 4}, "gpu_name": {"eq": "RTX 4090"}, "rentable": {"eq": True}, "gpu_ram": {"gte": 24000},
        "verified": {"eq": True}, "driver_version": {"gte": 535086005}, "type": "on-demand", "allocated_storage": 100,
        "order": [["dph_total", "asc"]], "limit": 5,
    }  # fmt: skip
    offers = caller.ask("POST", "/api/v0/bundles/", wanted).json()["offers"]
    assert {offer["machine_id"] for offer in offers} == {1, 2}
    assert offers[0]["dph_total"] - offers[0]["dph_base"] == pytest.approx(0.15 * 100 / HOURS_PER_MONTH)
    bids = caller.ask("POST", "/api/v0/bundles/", wanted | {"type": "bid"}).json()["offers"]
    assert bids[0]["dph_base"] == bids[0]["min_bid"] < offers[0]["dph_base"]
    got = caller.ask("GET", "/api/v0/bundles/", params={"q": json.dumps(wanted)}).json()["offers"]
    put = caller.ask("PUT", "/api/v0/search/asks/", {"select_cols": ["*"], "q": wanted}).json()["offers"]
    assert [each["id"] for each in got] == [each["id"] for each in put] == [each["id"] for each in offers]
    assert caller.ask("POST", "/api/v0/bundles/", {"gpus": {"eq": 1}}).status_code == 400
    assert caller.ask("POST", "/api/v0/bundles/", {"gpu_name": {"eq": "RTX_4090"}}).json() == {"offers": []}


def test_parts_of_one_machine_exclude_the_whole_and_come_back_under_new_numbers() -> None:
    caller = Caller(example_offers())

    def rentable(machine: int) -> list[tuple[int, int]]:
        wanted = {"machine_id": {"eq": machine}, "rentable": {"eq": True}}
        offers = caller.ask("POST", "/api/v0/bundles/", wanted).json()["offers"]
        return sorted((offer["num_gpus"], offer["id"]) for offer in offers)

    before = rentable(1)
    number = caller.rent(1012)
    assert [count for count, _ in rentable(1)] == [1, 1, 1]
    caller.destroy(number)
    again = rentable(1)
    assert [count for count, _ in again] == [count for count, _ in before] == [1, 1, 1, 1, 4]
    assert 1012 not in {ask for _, ask in again}
    assert len(caller.fake.market.offers) == len(example_offers())
    caller.fake.market.move_price(2, 2.0)
    assert caller.ask("POST", "/api/v0/bundles/", {"machine_id": {"eq": 2}}).json()["offers"][0]["dph_base"] == 3.2


# Section by section: the quirks that clients have met.


@pytest.mark.parametrize("status", [404, 410])
def test_an_offer_is_good_for_one_instance(status: int) -> None:
    caller = Caller(shapes=Shapes(ask_gone_status=status))
    caller.rent()
    again = caller.create()
    assert again.status_code == status
    assert again.json()["success"] is False
    caller.fake.plan.script("PUT", ASKS, Fault("offer_gone"))
    assert caller.create(101).status_code == status
    assert caller.create(101).status_code == status  # somebody else has it
    assert len(caller.fake.existing()) == 1


@pytest.mark.parametrize("commit", [False, True])
@pytest.mark.parametrize("kind", ["drop", "server_error", "malformed", "html", "empty"])
def test_a_create_whose_outcome_is_unknown_may_have_happened(kind: str, commit: bool) -> None:
    caller = Caller()
    caller.fake.plan.script("PUT", ASKS, Fault(kind, commit))
    if kind == "drop":
        with pytest.raises(requests.ConnectionError):
            caller.create()
    else:
        answer = caller.create()
        assert answer.status_code in (200, 502)
        with pytest.raises(requests.JSONDecodeError):
            answer.json()
    assert [each.label for each in caller.fake.existing()] == ["armature/h/1"] * commit
    assert caller.fake.counts()["PUT /api/v0/asks/{id}/"] == 1


def test_a_slow_create_times_out_and_has_happened_and_a_second_one_is_a_double_rent() -> None:
    caller = Caller()
    caller.fake.plan.script("PUT", ASKS, Fault(latency_s=60))
    with pytest.raises(requests.ReadTimeout):
        caller.create()
    assert caller.fake.double_rents() == []
    caller.create(101)
    assert caller.fake.double_rents() == ["armature/h/1"]


def test_the_list_lies_behind_and_show_is_null_at_first() -> None:
    caller = Caller(plan=FaultPlan(3, Rates(list_lag_max_s=400, null_max_s=400)))
    number = caller.rent()
    lag_s, null_s = caller.fake.plan.lags_s(number)
    created_s = caller.fake.world.instances[number].created_s
    assert min(lag_s, null_s) > APART_S + 1  # the seed was chosen so
    assert caller.listed() == []
    assert caller.show(number) == {}
    caller.clock.advance(created_s + max(lag_s, null_s) - caller.clock())
    assert caller.listed() == [number]
    assert caller.show(number)["label"] == "armature/h/1"
    caller.destroy(number)
    assert caller.listed() == [number]  # still the old state
    assert caller.show(number) == {}


def test_status_goes_from_null_to_running() -> None:
    caller = Caller()
    states: list[str | None] = []
    number = caller.rent()
    for _ in range(120):
        caller.fake.advance_to(caller.clock.advance(1))
        state = caller.fake.world.instances[number].actual
        states += [state] if states[-1:] != [state] else []
    assert states == [None, "created", "loading", "running"]


@pytest.mark.parametrize(
    ("trouble", "status", "message"),
    [
        ("loading_for_ever", "loading", "Pulling"), ("loading_error", "loading", "manifest"),
        ("oci", "created", ": OCI runtime create failed:"), ("exits", "exited", "exited"),
        ("no_ports", "running", "success"), ("ssh_refused", "running", "success"),
    ],
)  # fmt: skip
def test_a_start_can_go_wrong(trouble: str, status: str, message: str) -> None:
    caller = Caller()
    caller.fake.world.boots.append(Boot(trouble=trouble))
    number = caller.rent()
    caller.clock.advance(3600)
    record = caller.show(number)
    assert record["actual_status"] == status
    assert message in record["status_msg"]
    assert (record["ports"] is None) == (trouble != "ssh_refused")
    if trouble == "ssh_refused":
        assert record["public_ipaddr"] == "127.0.0.1"


@pytest.mark.parametrize("event", ["stop", "offline", "restart"])
def test_what_interrupts_a_start_ends_what_it_had_scheduled(event: str) -> None:
    caller = Caller()
    number = caller.running() if event == "restart" else caller.rent()
    caller.clock.advance(10)
    caller.fake.advance_to(caller.clock())
    before = caller.fake.world.happen(number, event)
    caller.clock.advance(BOOTED_S)
    states = {"stop": "stopped", "offline": "offline", "restart": "running"}
    assert caller.show(number)["actual_status"] == states[event]
    assert caller.fake.world.instances[number].epoch == before.epoch


def test_a_host_goes_offline_unbilled_and_comes_back_with_a_new_start() -> None:
    caller = Caller()
    number = caller.running()
    caller.fake.world.happen(number, "offline")
    bill = caller.fake.world.ledger.lines[number].usd
    assert caller.show(number)["actual_status"] == "offline"
    assert caller.fake.world.ledger.lines[number].usd == bill
    assert [each.id for each in caller.fake.existing()] == [number]
    caller.fake.world.happen(number, "back")
    caller.clock.advance(BOOTED_S)
    assert caller.show(number)["actual_status"] == "running"
    assert caller.fake.world.instances[number].starts == 2


def test_an_outbid_instance_pauses_keeps_its_disk_and_resumes_by_itself() -> None:
    caller = Caller()
    number = caller.running(price=0.25, type="bid")
    caller.fake.world.happen(number, "outbid")
    record = caller.show(number)
    assert {record[name] for name in ("cur_state", "intended_status", "next_state", "actual_status")} == {"stopped"}
    line = caller.fake.world.ledger.lines[number]
    gpu_s, storage_s = line.gpu_s, line.storage_s
    caller.fake.advance_to(caller.clock.advance(1000))
    assert line.gpu_s == gpu_s
    assert line.storage_s > storage_s + 999
    caller.fake.world.happen(number, "win")
    caller.clock.advance(BOOTED_S)
    assert caller.show(number)["actual_status"] == "running"
    path = f"/api/v0/instances/bid_price/{number}/"
    assert caller.ask("PUT", path, {"client_id": "me", "price": 0.1}).json()["success"]
    assert caller.show(number)["actual_status"] == "stopped"
    assert caller.ask("PUT", path, {"client_id": "me", "price": 0.3}).json()["success"]
    caller.clock.advance(BOOTED_S)
    assert caller.show(number)["dph_base"] == 0.3
    assert caller.ask("PUT", path, {"client_id": "me", "price": 33}).status_code == 400


@pytest.mark.parametrize("error", ["no_such_instance", "not_found"])
def test_destroy_answers_once_and_then_404(error: str) -> None:
    caller = Caller(shapes=Shapes(destroyed_error=error))
    number = caller.rent()
    faults = [Fault("refused"), Fault("too_many_text"), Fault("server_error"), Fault("not_found", commit=False)]
    caller.fake.plan.script("DELETE", ONE, *faults)
    answers = [caller.destroy(number) for _ in faults]
    assert [answer.status_code for answer in answers] == [200, 429, 502, 404]
    assert answers[0].json()["success"] is False
    assert caller.fake.never_destroyed() == [number]  # that 404 was a lie: only the list is a proof
    assert caller.listed() == [number]
    assert caller.destroy(number).json()["success"] is True
    assert caller.destroy(number).json()["error"] == error
    assert caller.listed() == []


def test_a_contract_ends_stops_cannot_restart_and_is_deleted_two_days_later() -> None:
    caller = Caller([Offer(ask_id=100, machine_id=1, duration_s=7200)])
    number = caller.running()
    caller.clock.advance(7200)
    assert caller.show(number)["actual_status"] == "stopped"
    assert caller.ask("PUT", f"/api/v0/instances/{number}/", {"state": "running"}).json()["success"] is False
    caller.fake.world.happen(number, "start")
    assert caller.show(number)["intended_status"] == "stopped"
    caller.clock.advance(48 * 3600)
    assert caller.show(number) == {}
    assert caller.fake.world.ledger.lines[number].exists_s == pytest.approx(7200 + 48 * 3600)


def test_everything_stops_when_the_balance_is_used_up() -> None:
    caller = Caller(balance_usd=1.0)
    numbers = [caller.rent(100 + place, label=f"armature/h/{place}") for place in range(3)]
    caller.clock.advance(3 * 3600)
    assert {caller.show(number)["actual_status"] for number in numbers} == {"stopped"}
    assert -0.1 < caller.ask("GET", "/api/v0/users/current/").json()["balance"] < 0  # the disks go on
    assert caller.create(110).json()["error"] == "insufficient_credit"
    path = f"/api/v0/instances/{numbers[0]}/"
    assert caller.ask("PUT", path, {"state": "running"}).json()["success"] is False
    caller.fake.world.top_up(10)
    assert caller.ask("PUT", path, {"state": "running"}).json()["success"] is True
    caller.clock.advance(BOOTED_S)
    assert caller.show(numbers[0])["actual_status"] == "running"


def test_without_a_card_an_empty_balance_destroys() -> None:
    caller = Caller(balance_usd=0.5, card=False)
    number = caller.rent()
    caller.clock.advance(3 * 3600)
    assert caller.show(number) == {}
    assert caller.fake.never_destroyed() == []
    assert caller.fake.world.balance_usd == pytest.approx(0.0, abs=1e-9)


def test_the_account_loses_its_money_and_its_keys_for_a_while() -> None:
    caller = Caller(plan=FaultPlan(5, Rates(no_balance=1.0, expired_key=1.0)))
    spells = {event: (from_s, to_s) for event, from_s, to_s in caller.fake.plan.spells()}
    seen = set()
    last_s = max(to_s for _, to_s in spells.values())
    while (since_s := caller.clock() - caller.fake.world.start_s) < last_s + 300:
        answer = caller.ask("GET", "/api/v0/users/current/")
        asked_s = since_s + APART_S
        expired = spells["expired_key"][0] <= asked_s < spells["expired_key"][1]
        poor = spells["no_balance"][0] <= asked_s < spells["no_balance"][1]
        assert answer.status_code == (401 if expired else 200)
        if not expired:
            assert answer.json()["balance"] == (0.0 if poor else 100.0)
        seen.add((expired, poor))
        caller.clock.advance(200)
    assert {(False, False), (True, True)} <= seen or {(True, False), (False, True)} <= seen


def test_with_args_as_runtype_there_is_no_ssh() -> None:
    caller = Caller()
    record = caller.show(caller.running(runtype="args"))
    assert (record["ssh_host"], record["public_ipaddr"], record["ports"]) == (None, None, None)


def test_a_price_increase_waits_to_be_accepted() -> None:
    caller = Caller()
    number = caller.running()
    caller.fake.world.wanted_usd_per_h[number] = 0.9
    answer = caller.ask("GET", "/api/v0/instances/pending-price-increases/").json()
    assert answer["pending_price_increases"][0]["new_gpu_costpersec"] * 3600 == pytest.approx(0.9)
    assert caller.show(number)["dph_base"] == 0.4


def test_a_bid_too_low_is_an_error_and_yet_a_contract() -> None:
    caller = Caller()
    answer = caller.create(price=0.01)
    assert answer.status_code == 400
    record = caller.show(answer.json()["new_contract"])
    assert record["actual_status"] == record["intended_status"] == "stopped"
    caller.fake.advance_to(caller.clock.advance(3600))
    line = caller.fake.world.ledger.lines[record["id"]]
    assert (line.gpu_s, line.storage_s > 3600) == (0.0, True)


def test_cancel_unavail_decides_what_becomes_of_a_create_that_cannot_start() -> None:
    caller = Caller([Offer(ask_id=100, machine_id=1, unschedulable=True)])
    assert caller.create().status_code == 410
    assert caller.fake.existing() == []
    assert caller.show(caller.rent(cancel_unavail=False))["actual_status"] == "stopped"


def test_a_stopped_instance_may_wait_for_its_gpu_for_ever() -> None:
    caller = Caller()
    number = caller.running()
    path = f"/api/v0/instances/{number}/"
    caller.ask("PUT", path, {"state": "stopped"})
    caller.fake.world.lost_gpus.add(number)
    assert caller.ask("PUT", path, {"state": "running"}).json() == {"success": True}
    caller.clock.advance(86400)
    record = caller.show(number)
    assert (record["actual_status"], record["intended_status"]) == ("stopped", "running")


def test_addresses_carry_whitespace_ports_are_strings_and_env_comes_back_in_pairs() -> None:
    where = Endpoint("127.0.0.1", 2222, "127.0.0.1", 2223)
    shapes = Shapes(address_suffix="\n", absent_ports=True)
    caller = Caller(shapes=shapes, endpoint=lambda instance: where)
    assert "ports" not in caller.show(caller.rent())
    number = caller.running(101, env={"A": "b", "-p 8000:8000": "1"})
    record = caller.show(number)
    assert record["public_ipaddr"] == "127.0.0.1\n"
    assert record["ports"]["22/tcp"][0]["HostPort"] == "2223"
    assert (record["ssh_host"], record["ssh_port"]) == ("127.0.0.1", 2222)
    assert record["extra_env"] == [["A", "b"], ["-p 8000:8000", "1"]]


def test_logs_are_ordered_and_lie_ready_later() -> None:
    caller = Caller()
    number = caller.running()
    caller.fake.logs[number] = [f"line {place}" for place in range(20)]
    path = f"/api/v0/instances/request_logs/{number}/"
    url = caller.ask("PUT", path, {"tail": "3"}).json()["result_url"]
    assert caller.session.get(url, timeout=20).status_code == 403
    caller.clock.advance(2)
    assert caller.session.get(url, timeout=20).text == "line 17\nline 18\nline 19\n"
    assert caller.session.get(f"{url}9", timeout=20).status_code == 404


def test_ssh_keys_of_the_account_reach_instances_created_after_them() -> None:
    caller = Caller()
    early = caller.rent()
    assert caller.ask("POST", "/api/v0/ssh/", {"ssh_key": "ssh-ed25519 AAA me"}).json()["key"]["id"] == 501
    late = caller.rent(101, label="armature/h/2")

    def inside(number: int) -> list[str]:
        text = caller.ask("GET", f"/api/v0/instances/{number}/ssh/").json()["ssh_keys"]
        return [key["public_key"] for key in json.loads(text)]

    assert (inside(early), inside(late)) == ([], ["ssh-ed25519 AAA me"])
    caller.ask("POST", f"/api/v0/instances/{early}/ssh/", {"ssh_key": "ssh-ed25519 BBB"})
    assert inside(early) == ["ssh-ed25519 BBB"]
    assert caller.ask("DELETE", f"/api/v0/instances/{early}/ssh/1/").status_code == 200
    assert inside(early) == []


@pytest.mark.parametrize("shapes", [Shapes(), Shapes(expired_status=404), Shapes(unauthorized_is_empty=True)])
def test_an_expired_key_is_refused_in_each_known_form_until_it_works_again(shapes: Shapes) -> None:
    caller = Caller(shapes=shapes)
    number = caller.rent()
    caller.fake.expire_key()
    answer = caller.destroy(number)
    assert answer.status_code == shapes.expired_status
    assert bool(answer.content) != (shapes.unauthorized_is_empty and shapes.expired_status == 401)
    caller.fake.expire_key(expired=False)
    assert caller.destroy(number).status_code == 200


def test_planted_instances_are_told_from_ours_and_nothing_reaches_the_fake_in_an_outage() -> None:
    caller = Caller()
    foreign, other = caller.fake.plant("my notebook"), caller.fake.plant("armature/otherhome/1")
    mine = caller.rent(label="armature/h/1")
    caller.fake.plan.outage(caller.clock(), caller.clock() + 3600)
    for _ in range(3):
        with pytest.raises(requests.ConnectionError):
            caller.destroy(mine)
    caller.clock.advance(3600)
    caller.destroy(mine)
    assert [each.id for each in caller.fake.existing()] == [foreign.id, other.id]
    assert caller.fake.existing("armature/otherhome/") == caller.fake.existing("armature/") != []
    assert caller.fake.seconds_by_label()["armature/h/1"] > 3600
    caller.fake.assert_clean()


def test_the_old_list_is_gone_and_an_empty_list_may_be_null() -> None:
    caller = Caller(shapes=Shapes(empty_list=None))
    assert caller.ask("GET", "/api/v0/instances/").status_code == 410
    assert caller.ask("GET", "/api/v1/instances/").json()["instances"] is None


# Over real sockets.


def test_the_server_answers_many_clients_and_cuts_connections() -> None:
    clock, fake = VirtualClock(), Fake(market(), shapes=Shapes())
    fake.plan.script("DELETE", ONE, Fault("drop", commit=True))
    statuses: list[int] = []
    with Server(fake, clock) as server, requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {FULL_KEY}"

        def take(ask_id: int) -> None:
            answer = requests.put(
                f"{server.url}/api/v0/asks/{ask_id}/", json={"image": "i", "label": "one"}, timeout=20,
                headers={"Authorization": f"Bearer {FULL_KEY}"},
            )  # fmt: skip
            statuses.append(answer.status_code)

        threads = [threading.Thread(target=take, args=(100,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [200, 429, 429, 429, 429, 429]  # time stands still: all but one came too early
        (instance,) = fake.existing()
        with pytest.raises(requests.ConnectionError):
            session.delete(f"{server.url}/api/v0/instances/{instance.id}/", json={}, timeout=20)
        assert fake.existing() == []
        clock.advance(APART_S)
        fake.plan.script("GET", "/api/v1/instances/", Fault(latency_s=30))
        with pytest.raises(requests.ReadTimeout):
            session.get(f"{server.url}/api/v1/instances/", timeout=0.2)
    assert fake.base_url == server.url


def test_without_sockets_a_streamed_body_is_read_as_from_one() -> None:
    caller = Caller()
    with caller.ask("GET", "/api/v0/users/current/", stream=True) as answer:
        assert json.loads(b"".join(answer.iter_content(7)))["balance"] == 100.0
    with caller.ask("GET", "/api/v0/users/current/", stream=True) as answer:
        assert answer.raw.read(1) == b"{"


def test_a_following_clock_runs_as_many_times_as_fast() -> None:
    real = iter([10.0, 10.0, 12.5])
    clock = FollowingClock(60, start_s=1000.0, real=lambda: next(real))
    assert (clock(), clock()) == (1000.0, 1150.0)
    with pytest.raises(ValueError, match="above 0"):
        FollowingClock(0)


def test_changes_are_told_as_they_happen() -> None:
    told: list[tuple[str, str | None]] = []
    caller = Caller(watch=lambda change: told.append((change.event, change.after.actual)))
    number = caller.running()
    caller.destroy(number)
    kinds = [event for event, _ in told if event != "change"]
    assert kinds == ["create", "contract", "load", "run", "destroy"]
    assert isinstance(caller.fake.world.instances[number], Instance)
    plain = caller.fake.handle(
        "GET", "/api/v1/instances/", {}, {"Authorization": f"Bearer {FULL_KEY}"}, b"", caller.clock()
    )
    assert isinstance(plain, Answer)
    assert plain.document()["success"] is True
