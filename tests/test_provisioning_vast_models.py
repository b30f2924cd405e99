"""Records of the service in every shape that was seen, and rubbish."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from provisioning.vast.asking import CreateRequest, OfferQuery
from provisioning.vast.models import (
    Account,
    Charge,
    Instance,
    InstancePage,
    Listing,
    Offer,
    number,
    read_record,
    read_records,
    text,
    whole,
)

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
WIRE_NAMES = [
    "label", "machine_id", "actual_status", "status_msg", "ssh_host", "ssh_port", "public_ipaddr", "ports", "num_gpus",
    "gpu_ram", "dph_total", "is_bid", "start_date", "end_date", "cur_state", "disk_usage", "image_runtype",
    "uptime_mins", "driver_version",
]  # fmt: skip


def instance(**fields: Any) -> Instance:
    found = read_record(Instance, {"id": 7, **fields})
    assert found is not None
    return found


def test_an_instance_is_read_whatever_its_numbers_are_written_as() -> None:
    found = instance(
        label="armature/home/lease",
        public_ipaddr=" 203.0.113.9\n",
        ssh_host="ssh4.vast.ai ",
        ssh_port="12022",
        ports={"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": "41022"}, {"HostIp": "::", "HostPort": "41022"}]},
        image_runtype="ssh ssh_direc ssh_proxy",
        dph_total="1.25",
        num_gpus="4",
        disk_usage=-1,
        is_bid=0,
        status_msg="success, running image/ssh\n",
        extra_env=[["HF_TOKEN", "hf_secret"]],
        instance_api_key="deadbeef",
        jupyter_token="cafe",
    )
    assert found.direct_endpoint == ("203.0.113.9", 41022)
    assert found.proxy_endpoint == ("ssh4.vast.ai", 12022)
    assert (found.usd_per_h, found.num_gpus, found.disk_used_gb, found.is_bid) == (1.25, 4, None, False)
    assert found.status_msg == "success, running image/ssh"
    assert not any(secret in repr(found) for secret in ("hf_secret", "deadbeef", "cafe"))


def test_an_instance_that_has_just_been_made_knows_nothing() -> None:
    found = instance(actual_status=None, ports=None, public_ipaddr=None, ssh_host=None, label=None)
    assert (found.actual_status, found.label, found.direct_endpoint, found.proxy_endpoint) == ("", "", None, None)
    assert not found.is_unloaded
    assert not found.is_halted


def test_jupyter_images_answer_one_port_higher() -> None:
    found = instance(ssh_host="ssh4.vast.ai", ssh_port=12022, image_runtype="jupyter_direc ssh_direc ssh_proxy")
    assert found.proxy_endpoint == ("ssh4.vast.ai", 12023)


def test_the_end_and_a_halt_are_told_from_a_stop_on_the_way() -> None:
    assert instance(cur_state="unloaded").is_unloaded
    assert instance(cur_state="stopped", intended_status="stopped", next_state="stopped").is_halted
    assert not instance(cur_state="stopped", intended_status="running", next_state="stopped").is_halted


@pytest.mark.parametrize("ports", [{}, {"22/tcp": None}, {"22/tcp": []}, {"22/tcp": [{}]}, "22", {"22/tcp": [None]}])
def test_no_port_is_no_endpoint(ports: Any) -> None:
    assert instance(public_ipaddr="203.0.113.9", ports=ports).direct_endpoint is None


@pytest.mark.parametrize("address", ["-oProxyCommand=x", "a b", "a;b", "\x1b[31m", "", "$(id)", "a/b"])
def test_what_is_no_address_is_not_dialled(address: str) -> None:
    assert instance(ssh_host=address, ssh_port=22).proxy_endpoint is None


def test_an_offer_is_read_with_its_units() -> None:
    found = read_record(
        Offer,
        {"id": "91", "gpu_name": "RTX 4090", "gpu_ram": 24564, "dph_total": "0.4", "reliability": 0.5,
         "reliability2": "0.99", "cpu_cores_effective": None, "rentable": True, "duration": 86400.0, "min_bid": None},
    )  # fmt: skip
    assert found is not None
    assert (found.offer_id, found.gpu_ram_mb, found.usd_per_h, found.reliability) == (91, 24564.0, 0.4, 0.99)
    assert (found.duration_s, found.is_rentable, found.min_bid_usd_per_h) == (86400.0, True, None)


def test_an_offer_says_its_id_under_either_name() -> None:
    found = read_record(Offer, {"ask_contract_id": 5})
    assert found is not None
    assert found.offer_id == 5


def test_values_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        instance().label = "other"  # type: ignore[misc]


def test_charges_name_their_instance() -> None:
    rows, unreadable = read_records(Charge, [{"source": "instance-12", "amount": "0.5"}, {"source": "volume-3"}, None])
    assert [(row.instance_id, row.amount_usd) for row in rows] == [(12, 0.5), (None, None)]
    assert unreadable == 1


def test_a_debt_is_a_balance_too() -> None:
    found = read_record(Account, {"id": 1, "balance": -2.5, "api_key": "secret"})
    assert found is not None
    assert (found.balance_usd, found.credit_usd) == (-2.5, None)
    assert "secret" not in repr(found)


@given(st.dictionaries(st.sampled_from(WIRE_NAMES), ANYTHING))
def test_rubbish_in_a_field_never_loses_an_instance(fields: dict[str, Any]) -> None:
    found = instance(**fields)
    assert found.instance_id == 7
    for value in found.model_dump().values():
        assert not isinstance(value, float) or (math.isfinite(value) and value >= 0.0)
        assert not isinstance(value, str) or (len(value) <= 1000 and value == value.strip())
    json.dumps(found.model_dump(), allow_nan=False)


@given(ANYTHING)
def test_rubbish_instead_of_a_record_is_counted(value: Any) -> None:
    found, unreadable = read_records(Instance, [value])
    assert len(found) + unreadable == 1


@given(ANYTHING)
def test_numbers_are_finite_or_nothing(value: Any) -> None:
    found = number(value)
    assert found is None or math.isfinite(found)
    assert isinstance(whole(value), int | None)
    assert len(text(value)) <= 1000


@given(st.integers(0, 2**63 - 1))
def test_an_id_survives_either_spelling(value: int) -> None:
    assert whole(value) == whole(str(value)) == whole(f" {value} ") == value


@given(st.lists(st.lists(st.integers(0, 50), max_size=4), min_size=1, max_size=5))
def test_only_the_last_page_completes_a_list(pages: list[list[int]]) -> None:
    listing = Listing.empty()
    for place, ids in enumerate(pages):
        assert not listing.is_complete
        assert listing.after_token == (str(place - 1) if place else None)
        records, _ = read_records(Instance, [{"id": one} for one in ids])
        listing = listing.with_page(InstancePage(records, str(place) if place < len(pages) - 1 else None))
    assert listing.is_complete
    assert set(listing.instances) == {one for ids in pages for one in ids}
    with pytest.raises(ValueError, match="complete"):
        listing.with_page(InstancePage(()))


def test_a_list_that_leads_in_a_circle_is_noticed() -> None:
    listing = Listing.empty().with_page(InstancePage((), "a")).with_page(InstancePage((), "b"))
    with pytest.raises(ValueError, match="back to a page"):
        listing.with_page(InstancePage((), "a"))


def test_a_search_has_the_units_and_names_of_the_service() -> None:
    body = OfferQuery(
        gpu_names=("RTX_4090",), min_gpus=4, max_gpus=8, min_gpu_ram_mb=24000, min_duration_s=7200, max_usd_per_h=3.0
    ).to_wire()
    assert body["gpu_name"] == {"eq": "RTX 4090"}
    assert body["num_gpus"] == {"gte": 4, "lte": 8}
    assert (body["gpu_ram"], body["duration"], body["dph_total"]) == ({"gte": 24000}, {"gte": 7200}, {"lte": 3.0})
    assert (body["type"], body["rentable"], body["verified"]) == ("on-demand", {"eq": True}, {"eq": True})
    assert "reliability" not in body
    bid = OfferQuery(kind="bid", gpu_names=("H100 SXM", "H200"), max_usd_per_h=1.0).to_wire()
    assert (bid["type"], bid["min_bid"], bid["gpu_name"]) == ("bid", {"lte": 1.0}, {"in": ["H100 SXM", "H200"]})
    assert "dph_total" not in bid


def test_a_create_has_a_price_only_for_a_bid() -> None:
    request = CreateRequest("image:tag", 20, "armature/h/l", "echo", {"HF_TOKEN": "hf_x"})
    body = request.to_wire()
    assert "price" not in body
    assert (body["env"], body["cancel_unavail"]) == ({"HF_TOKEN": "hf_x"}, True)
    assert "hf_x" not in repr(request)
    assert "echo" not in repr(request)
    assert CreateRequest("image", 20, "l", bid_usd_per_h=0.2).to_wire()["price"] == 0.2


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"label": "x" * 257}, "label"),
        ({"label": ""}, "label"),
        ({"onstart": "x" * 4097}, "onstart"),
        ({"image": ""}, "image"),
        ({"disk_gb": 7.9}, "disk_gb"),
        ({"disk_gb": math.nan}, "disk_gb"),
        ({"bid_usd_per_h": 0.0}, "bid"),
        ({"env": {"A": "x" * 257}}, "env"),
        ({"env": {"-p 8000:8000": "1"}}, "env"),
        ({"env": {f"V{n}": "x" * 256 for n in range(130)}}, "env"),
    ],
)
def test_what_the_service_would_refuse_is_refused_here(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        CreateRequest(**{"image": "i", "disk_gb": 20, "label": "l", **fields})
