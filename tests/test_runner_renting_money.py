"""Money: nothing is lost or invented by adding, splitting or waiting, and the ceiling is that of the plan."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.vast.offers import ceiling_usd
from runner.renting.money import (
    SURE_GAP_S,
    Bill,
    Meter,
    Prices,
    Terms,
    grouped,
    meter_json,
    outlook_usd,
    split,
    terms_from_json,
    terms_json,
    terms_of_order,
    why_unaffordable,
)

STAGES = ["requested", "created", "loading", "running", "reachable", "halted", "offline", "failed", "gone"]
amounts = st.floats(0.0, 1e5, allow_nan=False)
small = st.floats(0.0, 20.0, allow_nan=False)
prices = st.builds(Prices, small, small, small, small)
terms = st.builds(Terms, prices, st.floats(1.0, 1e6), st.floats(0.0, 1e3), st.floats(0.0, 1e3))
meters = st.builds(
    Meter, st.just(0.0), st.sampled_from(STAGES), amounts, amounts, st.integers(0, 10**12), st.integers(0, 10**12)
)


@given(amounts, st.integers(1, 64), amounts, st.dictionaries(st.text(min_size=1, max_size=5), amounts, max_size=9))
def test_the_parts_are_the_whole(usd: float, slots: int, held_s: float, used_s: dict[str, float]) -> None:
    shares = split(usd, slots, held_s, used_s)
    assert math.fsum(share.usd for share in shares.values()) == pytest.approx(usd, abs=1e-9 * max(1.0, usd))
    assert all(share.used_usd >= 0.0 and share.idle_usd >= 0.0 for share in shares.values())
    assert set(shares) <= {*used_s, ""}


@given(amounts, st.integers(1, 8), amounts, st.dictionaries(st.sampled_from("abcdefgh"), amounts, min_size=1))
def test_groups_of_parts_are_the_whole_too(usd: float, slots: int, held_s: float, used_s: dict[str, float]) -> None:
    by_arm = grouped(split(usd, slots, held_s, used_s), {run: (run in "abc" and "A") or "B" for run in used_s})
    assert math.fsum(share.usd for share in by_arm.values()) == pytest.approx(usd, abs=1e-9 * max(1.0, usd))


def test_a_machine_is_split_by_slot_time_and_its_idle_time_is_kept_apart() -> None:
    shares = split(10.0, 2, 3600.0, {"one": 3600.0, "half": 1800.0})
    assert shares["one"].used_usd == pytest.approx(5.0)
    assert shares["half"].used_usd == pytest.approx(2.5)
    assert shares["one"].idle_usd == pytest.approx(2.5 * 2 / 3)
    assert split(10.0, 2, 3600.0, {})[""].idle_usd == 10.0
    with pytest.raises(ValueError, match="slots >= 1"):
        split(1.0, 0, 1.0, {})


@given(meters, st.lists(st.tuples(st.floats(0.0, 1e4), st.sampled_from(STAGES)), max_size=12), prices)
def test_a_meter_never_runs_backwards_and_never_counts_more_than_the_time(
    meter: Meter, looks: list[tuple[float, str]], priced: Prices
) -> None:
    began, now_s = meter, 0.0
    for span_s, stage in looks:
        now_s += span_s
        later = meter.until(now_s, stage)
        assert later.usd(priced) >= meter.usd(priced) - 1e-12
        assert later.gpu_s - meter.gpu_s <= span_s + 1e-9
        assert later.storage_s - meter.storage_s <= span_s + 1e-9
        assert later.until(now_s - 1000.0, stage) == later
        meter = later
    assert meter.gpu_s - began.gpu_s <= now_s + 1e-6


def test_what_is_billed_in_which_state() -> None:
    def used(stage: str, span_s: float, seen: str | None = None) -> tuple[float, float, float]:
        meter = Meter(0.0, stage).until(span_s, seen)
        return meter.gpu_s, meter.storage_s, meter.doubtful_s

    assert used("loading", 100.0) == (0.0, 100.0, 0.0)
    assert used("reachable", 100.0) == (100.0, 100.0, 0.0)
    assert used("halted", 100.0) == (0.0, 100.0, 0.0)
    assert used("frozen", 100.0) == (100.0, 100.0, 0.0)
    assert used("offline", 100.0) == (0.0, 0.0, 0.0)
    # A change that was seen at once is dated to the middle …
    assert used("loading", 60.0, "reachable") == (30.0, 60.0, 0.0)
    assert used("reachable", 60.0, "gone") == (30.0, 30.0, 0.0)
    # … and after a long silence all of it counts, and is said to be in doubt.
    long_s = SURE_GAP_S + 1.0
    assert used("loading", long_s, "halted") == (long_s, long_s, long_s)
    assert used("halted", long_s, "gone") == (0.0, long_s, long_s)
    assert used("reachable", long_s) == (long_s, long_s, long_s)


@given(meters, terms, st.floats(0.0, 1e6), st.floats(0.0, 1e6))
def test_the_outlook_bounds_every_future(meter: Meter, agreed: Terms, ttl_end_s: float, now_s: float) -> None:
    bound_usd = outlook_usd(meter, agreed, ttl_end_s, now_s)
    at_end = meter.until(now_s).until(max(now_s, ttl_end_s), "reachable")
    assert bound_usd >= meter.until(now_s).usd(agreed.prices) - 1e-6
    if meter.stage in ("running", "reachable"):
        assert bound_usd >= at_end.usd(agreed.prices) - 1e-6 * max(1.0, bound_usd)


@given(terms)
def test_terms_survive_json(agreed: Terms) -> None:
    assert terms_from_json(json.loads(json.dumps(terms_json(agreed)))) == agreed


def test_a_meter_survives_json() -> None:
    meter = Meter(12.5, "loading", 1.0, 2.0, 3, 4, 5.0)
    assert Meter(**json.loads(json.dumps(meter_json(meter)))) == meter == Meter(**asdict(meter))


ORDER = {
    "gpu_usd_per_h": 1.6, "storage_usd_per_h": 0.01, "inet_up_usd_per_gb": 0.02, "inet_down_usd_per_gb": 0.01,
    "ttl_s": 7200.0, "traffic_up_gb": 5.0, "traffic_down_gb": 20.0, "image": "x",
}  # fmt: skip


def test_the_ceiling_is_the_one_that_the_plan_shows() -> None:
    found = terms_of_order(ORDER)
    assert found.ceiling_usd == pytest.approx(ceiling_usd(ORDER))


@pytest.mark.parametrize("name", [name for name in ORDER if name != "image"])
def test_an_order_without_a_price_is_not_taken(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        terms_of_order({key: value for key, value in ORDER.items() if key != name})


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_what_is_no_price_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="gpu_usd_per_h"):
        Prices(gpu_usd_per_h=value)


def test_an_order_must_fit_beside_what_is_bound() -> None:
    assert why_unaffordable(5.0, 5.0, None) == ""
    assert why_unaffordable(5.0, 5.0, 10.0) == ""
    assert "max_usd is 9.99" in why_unaffordable(5.0, 5.0, 9.99)


def test_the_providers_bill_counts_before_ours() -> None:
    assert Bill(1.0).usd == 1.0
    assert Bill(1.0, 1.25).usd == 1.25
    assert Bill(10.0, 1.0).usd == 1.0


def test_a_part_of_a_bill_does_not_count_below_our_meter() -> None:
    assert Bill(10.0, 1.0, is_whole=False).bound_usd == 10.0
    assert Bill(10.0, 1.0, is_whole=False).usd == Bill(10.0, 1.0).bound_usd == 1.0
    assert Bill(10.0, 11.0, is_whole=False).bound_usd == 11.0
    assert Bill(10.0, None, is_whole=False).bound_usd == 10.0


def test_traffic_only_grows() -> None:
    assert Meter(0.0, "").moved(5, 6).moved(1, 0) == Meter(0.0, "", up_bytes=6, down_bytes=6)
    with pytest.raises(ValueError, match="only grows"):
        Meter(0.0, "").moved(-1, 0)
