"""Which offer is rented: nothing that fits is lost, what does not is counted with its reason, the cheapest is first."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from provisioning import base
from provisioning.vast.api import VastApi
from provisioning.vast.models import Offer, read_record
from provisioning.vast.offers import (
    Choice,
    Wanted,
    as_offer,
    asked,
    ceiling_usd,
    choose,
    explain,
    order_of,
    query,
    wide_query,
)
from provisioning.vast.prices import HOURS_PER_MONTH, needed_s
from tests.fakes.vast import Fake, VirtualClock
from tests.fakes.vast import Offer as Ask
from tests.fakes.vast.account import FULL_KEY
from tests.fakes.vast.server import Wire

RECORD: dict[str, Any] = {
    "id": 7, "machine_id": 3, "num_gpus": 4, "gpu_name": "RTX 4090", "gpu_ram": 24564, "gpu_frac": 1.0,
    "cuda_max_good": 12.8, "disk_space": 500.0, "inet_down": 900.0, "inet_up": 800.0, "inet_down_cost": 0.01,
    "inet_up_cost": 0.02, "dph_base": 1.6, "dph_total": 1.6 + 0.15 * 40 / 730, "min_bid": 0.8, "storage_cost": 0.15,
    "reliability2": 0.99, "verification": "verified", "rentable": True, "rented": False, "hosting_type": 0,
    "duration": 30 * 86400.0, "cpu_cores_effective": 31.5, "geolocation": "Sweden, SE",
}  # fmt: skip
ANYTHING = Wanted(
    min_reliability=0.0, min_inet_down_mbit_per_s=0.0, min_inet_up_mbit_per_s=0.0, min_cuda=0.0, is_verified=False
)


def offer(**changes: Any) -> Offer:
    """An offer that fits the default wish; a change to None is a field that the service left out."""
    found = read_record(Offer, {**RECORD, **changes})
    assert found is not None
    return found


def ids(choice: Choice) -> list[int]:
    return [one.offer.offer_id for one in choice.ranked]


AROUND: dict[str, st.SearchStrategy[Any]] = {
    "machine_id": st.integers(1, 5),
    "num_gpus": st.integers(1, 8),
    "gpu_name": st.sampled_from(["RTX 3090", "A100 SXM4"]),
    "gpu_ram": st.sampled_from([12288, 24576, 81920]),
    "gpu_frac": st.sampled_from([0.25, 0.5]),
    "cuda_max_good": st.sampled_from([12.4, 13.0]),
    "disk_space": st.sampled_from([20.0, 40.0]),
    "inet_down": st.just(50.0),
    "inet_up": st.just(20.0),
    "inet_down_cost": st.floats(0, 0.1),
    "inet_up_cost": st.floats(0, 0.1),
    "dph_base": st.floats(0, 5),
    "dph_total": st.floats(0, 5),
    "min_bid": st.floats(0, 3),
    "storage_cost": st.floats(0, 1),
    "storage_total_cost": st.floats(0, 0.1),
    "reliability2": st.sampled_from([0.9, 0.95, 0.999]),
    "verification": st.just("unverified"),
    "rentable": st.just(False),
    "rented": st.just(True),
    "hosting_type": st.just(1),
    "duration": st.sampled_from([3600.0, 12 * 3600.0]),
}
changes = st.sampled_from(sorted(AROUND)).flatmap(lambda name: st.tuples(st.just(name), st.none() | AROUND[name]))


@st.composite
def offers(draw: st.DrawFn) -> Offer:
    """Offers that differ in a few fields from one that fits, around the limits of what is wanted, or with holes."""
    return offer(id=draw(st.integers(0, 10**9)), **dict(draw(st.lists(changes, max_size=4))))


WISHES: dict[str, st.SearchStrategy[Any]] = {
    "gpu_names": st.sampled_from([["RTX 4090"], ["RTX_4090", "RTX_3090"], ["RTX_3090"]]),
    "gpus": st.integers(1, 5),
    "min_vram_gib": st.sampled_from([23.9, 24.0]),
    "min_reliability": st.sampled_from([0.0, 0.96]),
    "min_inet_down_mbit_per_s": st.just(0.0),
    "min_inet_up_mbit_per_s": st.just(0.0),
    "min_cuda": st.just(0.0),
    "max_usd_per_h": st.floats(0.5, 4),
    "is_verified": st.just(False),
    "is_datacenter": st.just(True),
    "not_machines": st.lists(st.integers(1, 5), max_size=2),
}
wishes = st.sampled_from(sorted(WISHES)).flatmap(lambda name: st.tuples(st.just(name), WISHES[name]))
bids: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.fixed_dictionaries(
    {"is_interruptible": st.just(True), "bid_usd_per_h": st.none() | st.floats(0.5, 3)}
)


@st.composite
def wants(draw: st.DrawFn) -> Wanted:
    """The default wish with a few others."""
    return Wanted.from_json({**draw(bids), **dict(draw(st.lists(wishes, max_size=3)))})


def fits(one: Offer, wanted: Wanted) -> bool:
    """The wish in the words of its documentation, written down a second time and without any order."""

    def at_least(value: float | None, least: float) -> bool:
        return least == 0 or (value is not None and value >= least)

    names = [name.replace("_", " ") for name in wanted.gpu_names]
    disk = one.storage_usd_per_h
    if one.storage_usd_per_gb_month is not None:
        disk = one.storage_usd_per_gb_month * wanted.disk_gb / HOURS_PER_MONTH
    if wanted.is_interruptible:
        bid, least = wanted.bid_usd_per_h, one.min_bid_usd_per_h
        gpu = bid if bid is not None else None if least is None else max(least, 0.001)
        has_bid = least is not None and (bid is None or least <= bid)
    else:
        has_bid = True
        gpu = one.base_usd_per_h
        if one.usd_per_h is not None and gpu is not None and disk is None:
            disk = max(0.0, one.usd_per_h - gpu)
        if one.usd_per_h is not None and disk is not None:
            gpu = max(one.usd_per_h - disk, 0.0 if gpu is None else gpu)
    prices_are_known = None not in (gpu, disk, one.inet_up_usd_per_gb, one.inet_down_usd_per_gb)
    return (
        one.is_rentable is not False
        and (wanted.is_interruptible or one.is_rented is not True)
        and one.machine_id is not None
        and one.machine_id not in wanted.not_machines
        and (not names or one.gpu_name in names)
        and at_least(one.num_gpus, wanted.gpus)
        and at_least(None if one.gpu_ram_mb is None else one.gpu_ram_mb / 1024, wanted.min_vram_gib)
        and (not wanted.is_verified or one.verification == "verified")
        and (not wanted.is_datacenter or one.hosting_type == 1)
        and at_least(one.reliability, wanted.min_reliability)
        and at_least(one.cuda_max_good, wanted.min_cuda)
        and at_least(one.disk_space_gb, wanted.disk_gb)
        and at_least(one.inet_down_mbit_per_s, wanted.min_inet_down_mbit_per_s)
        and at_least(one.inet_up_mbit_per_s, wanted.min_inet_up_mbit_per_s)
        and at_least(one.duration_s, wanted.hours * 1.25 * 3600 + 7200)
        and prices_are_known
        and gpu is not None
        and disk is not None
        and gpu > 0
        and has_bid
        and (wanted.max_usd_per_h is None or gpu + disk <= wanted.max_usd_per_h)
    )


market = st.lists(offers(), max_size=12, unique_by=lambda one: one.offer_id)


@given(market, wants())
def test_what_fits_is_ranked_and_everything_else_is_counted_once(found: list[Offer], wanted: Wanted) -> None:
    choice = choose(found, wanted)
    assert sorted(ids(choice)) == sorted(one.offer_id for one in found if fits(one, wanted))
    assert len(choice.ranked) + sum(one.count for one in choice.excluded) == choice.found == len(found)
    assert all(0 <= one.unknown <= one.count and one.count > 0 for one in choice.excluded)
    assert len({one.name for one in choice.excluded}) == len(choice.excluded)
    assert explain(choice).isprintable()


@given(market, wants(), st.randoms(use_true_random=False))
def test_the_place_of_an_offer_does_not_depend_on_where_it_stood(found: list[Offer], wanted: Wanted, dice: Any) -> None:
    shuffled = list(found)
    dice.shuffle(shuffled)
    assert choose(shuffled, wanted) == choose(found, wanted)


@given(market, wants())
def test_nothing_cheaper_comes_later(found: list[Offer], wanted: Wanted) -> None:
    ranked = choose(found, wanted).ranked
    totals = [one.cost.total_usd for one in ranked]
    assert totals == sorted(totals)


PRICES = ("dph_base", "min_bid", "storage_cost", "inet_up_cost", "inet_down_cost")


@given(st.sampled_from(PRICES), st.floats(0.1, 0.95), st.booleans())
def test_of_two_that_are_else_the_same_the_cheaper_is_first(price: str, factor: float, is_bid: bool) -> None:
    cheaper: dict[str, Any] = {price: RECORD[price] * factor}
    wanted = Wanted(is_interruptible=is_bid)
    dear = {"id": 1, "dph_total": None}
    ranked = choose([offer(**dear), offer(**dear | {"id": 2} | cheaper)], wanted).ranked
    costs = {one.offer.offer_id: one.cost.total_usd for one in ranked}
    is_paid = price not in ({"dph_base"} if is_bid else {"min_bid"})
    assert (costs[2] < costs[1]) == is_paid
    assert [one.offer.offer_id for one in ranked] == ([2, 1] if is_paid else [1, 2])


def test_ties_go_to_the_more_reliable_then_to_the_whole_machine_then_to_the_lower_number() -> None:
    same = [
        offer(id=1, gpu_frac=0.5),
        offer(id=2, gpu_frac=1.0),
        offer(id=3, gpu_frac=1.0),
        offer(id=4, reliability2=0.999, gpu_frac=None),
    ]
    assert ids(choose(same, Wanted())) == [4, 2, 3, 1]
    assert [one.is_whole for one in choose(same, Wanted()).ranked] == [False, True, True, False]


def test_the_full_cost_is_hours_disk_and_traffic_both_ways() -> None:
    wanted = Wanted(hours=10, disk_gb=73, traffic_up_gb=30, traffic_down_gb=50)
    (one,) = choose([offer(dph_total=None)], wanted).ranked
    assert one.prices.storage_usd_per_h == pytest.approx(0.15 * 73 / 730)
    assert one.cost.gpu_usd == pytest.approx(16.0)
    assert one.cost.storage_usd == pytest.approx(0.15)
    assert one.cost.traffic_usd == pytest.approx(30 * 0.02 + 50 * 0.01)
    assert one.cost.total_usd == pytest.approx(17.25)


def test_traffic_can_decide() -> None:
    """The cheaper hour loses where its bytes are dear: what ranking by the hour alone would have rented."""
    found = [offer(id=1, dph_base=1.5, dph_total=None, inet_down_cost=0.2), offer(id=2)]
    assert ids(choose(found, Wanted(traffic_down_gb=0, traffic_up_gb=0))) == [1, 2]
    assert ids(choose(found, Wanted(traffic_down_gb=100))) == [2, 1]


@pytest.mark.parametrize(
    ("fields", "gpu", "disk"),
    [
        ({"dph_total": None}, 1.6, 0.15 * 40 / 730),
        ({"dph_base": None, "dph_total": 2.0, "storage_cost": None, "storage_total_cost": 0.1}, 1.9, 0.1),
        ({"dph_total": 1.75, "storage_cost": None, "storage_total_cost": None}, 1.6, 0.15),
        ({"dph_total": 2.0, "storage_cost": None, "storage_total_cost": 0.1}, 1.9, 0.1),
        ({"dph_total": 0.5, "storage_cost": 0.0}, 1.6, 0.0),
    ],
)
def test_a_price_that_is_said_in_another_way_is_found_and_the_dearer_holds(
    fields: dict[str, Any], gpu: float, disk: float
) -> None:
    (one,) = choose([offer(**fields)], Wanted()).ranked
    assert one.prices.gpu_usd_per_h == pytest.approx(gpu)
    assert one.prices.storage_usd_per_h == pytest.approx(disk)


def test_a_bid_costs_what_is_bid() -> None:
    at_least = choose([offer()], Wanted(is_interruptible=True)).ranked[0]
    higher = choose([offer()], Wanted(is_interruptible=True, bid_usd_per_h=1.0)).ranked[0]
    assert at_least.prices.gpu_usd_per_h == 0.8
    assert higher.prices.gpu_usd_per_h == 1.0
    assert higher.cost.gpu_usd == pytest.approx(8.0)
    equal = choose([offer()], Wanted(is_interruptible=True, bid_usd_per_h=0.8))
    assert ids(equal) == [7]


def test_a_least_bid_is_kept_within_what_the_service_takes() -> None:
    found = [offer(id=1, min_bid=0.0001), offer(id=2, min_bid=129.0)]
    choice = choose(found, Wanted(is_interruptible=True))
    assert [(one.offer.offer_id, one.prices.gpu_usd_per_h) for one in choice.ranked] == [(1, 0.001)]
    assert explain(choice) == "2 offers: 1 does not name every price, 1 fits"


def test_a_machine_that_somebody_has_may_be_had_by_a_bid() -> None:
    assert ids(choose([offer(rented=True)], Wanted(is_interruptible=True))) == [7]
    assert ids(choose([offer(rented=True)], Wanted())) == []


LONE: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({"rentable": False}, {}, "rentable", "is taken already"),
    ({"rented": True}, {}, "rentable", "is taken already"),
    ({}, {"not_machines": [9, 3]}, "machine", "is on machines to be avoided"),
    ({"machine_id": None}, {}, "machine", "is on machines to be avoided (it does not say)"),
    ({}, {"gpu_names": ["H100_SXM"]}, "gpu_names", "has another GPU than H100 SXM (RTX 4090)"),
    ({"gpu_name": None}, {"gpu_names": ["H100 SXM"]}, "gpu_names", "has another GPU than H100 SXM (it does not say)"),
    ({}, {"gpus": 5}, "gpus", "has fewer than 5 GPUs (the most: 4)"),
    ({"num_gpus": None}, {"gpus": 5}, "gpus", "has fewer than 5 GPUs (it does not say)"),
    ({}, {"min_vram_gib": 24}, "min_vram_gib", "has less than 24 GiB on each GPU (the most: 23.99 GiB)"),
    ({"verification": "deverified"}, {}, "is_verified", "is not verified"),
    ({"verification": None}, {}, "is_verified", "is not verified (it does not say)"),
    ({}, {"is_datacenter": True}, "is_datacenter", "is in no data centre"),
    ({"hosting_type": None}, {"is_datacenter": True}, "is_datacenter", "is in no data centre (it does not say)"),
    ({"reliability2": 0.9}, {}, "min_reliability", "has a reliability below 0.95 (the most: 0.9000)"),
    ({"cuda_max_good": 12.4}, {}, "min_cuda", "has a driver for less than CUDA 12.8 (the most: 12.4)"),
    ({}, {"disk_gb": 501}, "disk_gb", "has less than 501 GB of disk (the most: 500 GB)"),
    ({"inet_down": 99}, {}, "min_inet_down_mbit_per_s", "has a download below 100 Mbit/s (the most: 99 Mbit/s)"),
    ({"inet_up": 1}, {}, "min_inet_up_mbit_per_s", "has an upload below 50 Mbit/s (the most: 1 Mbit/s)"),
    ({"duration": 11.9 * 3600}, {}, "duration", "has less than 12.0 h to stay (the most: 11.9 h)"),
    ({"dph_base": None, "dph_total": None}, {}, "price", "does not name every price"),
    ({"dph_base": 0, "dph_total": 0}, {}, "price", "does not name every price"),
    ({"inet_up_cost": None}, {}, "price", "does not name every price"),
    ({"storage_cost": None, "dph_total": None}, {}, "price", "does not name every price"),
    ({"dph_base": 1e308}, {}, "price", "does not name every price"),
    (
        {},
        {"is_interruptible": True, "bid_usd_per_h": 0.5},
        "bid_usd_per_h",
        "asks more than the bid of 0.5 USD/h (the least bid: 0.8000)",
    ),
    ({}, {"max_usd_per_h": 1.5}, "max_usd_per_h", "costs more than 1.5 USD/h (the cheapest: 1.6082)"),
]


@pytest.mark.parametrize(("fields", "wishes", "name", "says"), LONE)
def test_each_filter_says_what_it_took_away(
    fields: dict[str, Any], wishes: dict[str, Any], name: str, says: str
) -> None:
    assert ids(choose([offer()], Wanted())) == [7]
    choice = choose([offer(**fields)], Wanted.from_json(wishes))
    assert choice.ranked == ()
    assert [one.name for one in choice.excluded] == [name]
    assert explain(choice) == f"1 offer: 1 {says}"


def test_the_words_for_many_offers_in_the_order_of_the_filters() -> None:
    found = [
        *(offer(id=100 + n, num_gpus=1 + n % 3) for n in range(20)),
        *(offer(id=200 + n, dph_base=1.72 + n, dph_total=None) for n in range(9)),
        *(offer(id=300 + n, reliability2=None if n else 0.93) for n in range(5)),
        *(offer(id=400 + n) for n in range(3)),
    ]
    assert explain(choose(found, Wanted(gpus=4, max_usd_per_h=1.7))) == (
        "37 offers: 20 have fewer than 4 GPUs (the most: 3), 5 have a reliability below 0.95 (the most: 0.9300; "
        "4 do not say), 9 cost more than 1.7 USD/h (the cheapest: 1.7282), 3 fit"
    )
    assert explain(choose([], Wanted())) == "there are no such offers at all"


def test_names_of_other_gpus_are_listed_most_frequent_first_and_cut() -> None:
    names = ["A", "B", "B", "C", "D", "E"]
    choice = choose([offer(id=n, gpu_name=name) for n, name in enumerate(names)], Wanted(gpu_names=("RTX_4090",)))
    assert explain(choice) == "6 offers: 6 have another GPU than RTX 4090 (B, A, C and 2 more)"


@given(market, wants())
def test_an_order_is_json_and_its_ceiling_covers_the_plan(found: list[Offer], wanted: Wanted) -> None:
    ttl_s = needed_s(wanted)
    for one in choose(found, wanted).ranked:
        order = order_of(one, wanted, ttl_s)
        assert json.loads(json.dumps(order, allow_nan=False)) == order
        assert ceiling_usd(order) >= one.cost.total_usd
        longer = ceiling_usd(order) + one.prices.usd_per_h * ttl_s / 3600
        assert ceiling_usd(order_of(one, wanted, 2 * ttl_s)) == pytest.approx(longer)
        assert (order["bid_usd_per_h"] is None) == (not wanted.is_interruptible)


def test_an_offer_of_the_contract_carries_its_order() -> None:
    (one,) = choose([offer()], Wanted(gpus=4)).ranked
    made = as_offer(one, Wanted(gpus=4), 36000.0)
    hour = 1.6 + 0.15 * 40 / 730
    assert made.price_usd_per_h == pytest.approx(hour)
    assert replace(made, order={}, price_usd_per_h=0.0) == base.Offer("vast", "7", 4, 31, 0.0, "3")
    assert (made.order["offer_id"], made.order["machine_id"], made.order["ttl_s"]) == (7, 3, 36000.0)
    assert ceiling_usd(made.order) == pytest.approx(10 * hour + 1.25 * (5 * 0.02 + 20 * 0.01))


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, math.inf, math.nan])
def test_a_life_without_an_end_is_no_order(ttl_s: float) -> None:
    (one,) = choose([offer()], Wanted()).ranked
    with pytest.raises(ValueError, match="ttl_s"):
        order_of(one, Wanted(), ttl_s)


@pytest.mark.parametrize("damage", [None, "1", True, -0.1, math.nan, math.inf])
def test_an_order_without_a_price_has_no_ceiling(damage: Any) -> None:
    (one,) = choose([offer()], Wanted()).ranked
    order = order_of(one, Wanted(), 3600.0)
    with pytest.raises(ValueError, match="gpu_usd_per_h"):
        ceiling_usd({**order, "gpu_usd_per_h": damage})


asks = st.builds(
    Ask,
    ask_id=st.integers(1, 10**6),
    machine_id=st.integers(1, 9),
    gpu_ids=st.sampled_from([(0,), (0, 1, 2, 3)]),
    machine_gpus=st.just(4),
    gpu_name=st.sampled_from(["RTX 4090", "RTX 3090", "A100 SXM4"]),
    gpu_ram_mb=st.sampled_from([12288, 24564, 24576]),
    gpu_usd_per_h=st.floats(0.1, 3),
    min_bid_usd_per_h=st.floats(0.05, 2),
    verified=st.sampled_from([True, True, False]),
    datacenter=st.booleans(),
    rented=st.sampled_from([False, False, True]),
)


@given(st.lists(asks, max_size=10, unique_by=lambda one: one.ask_id), wants())
def test_the_narrow_search_loses_nothing_that_fits(market: list[Ask], wanted: Wanted) -> None:
    clock, fake = VirtualClock(), Fake(market)
    api = VastApi(SecretStr(FULL_KEY), clock, lambda: 0.5, adapter=Wire(fake, clock))
    narrow = choose(api.search(query(wanted)).offers, wanted)
    wide = choose(api.search(wide_query(wanted)).offers, wanted)
    assert ids(narrow) == ids(wide)
    assert wide.found >= narrow.found
    fake.assert_clean()


def test_a_search_that_shows_everything_that_can_be_rented() -> None:
    market = [Ask(1, 1, verified=False), Ask(2, 2, (0, 1), 2, gpu_name="A100 SXM4", datacenter=True)]
    clock, fake = VirtualClock(), Fake(market)
    api = VastApi(SecretStr(FULL_KEY), clock, lambda: 0.5, adapter=Wire(fake, clock))
    wanted = Wanted(gpus=8, gpu_names=("H100 SXM",), min_vram_gib=80, is_datacenter=True)
    assert api.search(query(wanted)).offers == ()
    choice = choose(api.search(wide_query(wanted)).offers, wanted)
    assert explain(choice) == "2 offers: 2 have another GPU than H100 SXM (RTX 4090, A100 SXM4)"
    assert asked(wanted) == "8 x H100 SXM of 80 GiB on one machine in a data centre"


def test_the_price_of_the_wanted_disk_is_what_the_search_asks_for() -> None:
    """The hour as the service says it, with disk, is the hour that we count."""
    clock, fake = VirtualClock(), Fake([Ask(1, 1, gpu_usd_per_h=0.37)])
    api = VastApi(SecretStr(FULL_KEY), clock, lambda: 0.5, adapter=Wire(fake, clock))
    wanted = replace(ANYTHING, disk_gb=123.0)
    (found,) = api.search(query(wanted)).offers
    (one,) = choose([found], wanted).ranked
    assert one.prices.usd_per_h == pytest.approx(found.usd_per_h)
