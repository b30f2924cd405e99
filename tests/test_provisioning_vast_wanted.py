"""What may be asked of a machine: strict JSON both ways, and an error that names the key."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.vast.asking import CreateRequest
from provisioning.vast.wanted import Wanted

amounts = st.floats(0, 1e6, allow_nan=False)


@st.composite
def wants(draw: st.DrawFn) -> Wanted:
    is_interruptible = draw(st.booleans())
    return Wanted(
        gpu_names=tuple(draw(st.lists(st.sampled_from(["RTX 4090", "A100_SXM4", "H100 NVL"]), max_size=2))),
        gpus=draw(st.integers(1, 16)),
        min_vram_gib=draw(amounts),
        min_reliability=draw(st.floats(0, 1)),
        min_inet_down_mbit_per_s=draw(amounts),
        min_inet_up_mbit_per_s=draw(amounts),
        min_cuda=draw(amounts),
        disk_gb=draw(st.floats(8, 1e5)),
        max_usd_per_h=draw(st.none() | st.floats(0.01, 100)),
        hours=draw(st.floats(0.1, 1000)),
        is_verified=draw(st.booleans()),
        is_datacenter=draw(st.booleans()),
        is_interruptible=is_interruptible,
        bid_usd_per_h=draw(st.none() | st.floats(0.001, 128)) if is_interruptible else None,
        image=draw(st.sampled_from(["image:1", "registry.example.org/a/b@sha256:00"])),
        traffic_up_gb=draw(amounts),
        traffic_down_gb=draw(amounts),
        not_machines=tuple(draw(st.lists(st.integers(0, 2**40), max_size=3))),
    )


@given(wants())
def test_json_gives_the_same_value_back(wanted: Wanted) -> None:
    document = json.loads(json.dumps(wanted.to_json(), allow_nan=False))
    assert Wanted.from_json(document) == wanted
    assert set(document) == {one.name for one in fields(Wanted)}


def test_what_is_left_out_has_its_default() -> None:
    assert Wanted.from_json({}) == Wanted()
    assert Wanted.from_json({"gpus": 4, "hours": 12}) == Wanted(gpus=4, hours=12.0)
    assert isinstance(Wanted.from_json({"hours": 12}).hours, float)


@pytest.mark.parametrize(
    ("key", "hint"), [("gpu_name", "gpu_names"), ("max_usd", "max_usd_per_h"), ("reliability", "min_reliability")]
)
def test_an_unknown_key_is_named_with_the_nearest(key: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"'{key}'.*did you mean {hint}") as refused:
        Wanted.from_json({key: 1})
    assert "traffic_down_gb" in str(refused.value)


WRONG: list[tuple[str, Any, str]] = [
    ("gpu_names", "RTX 4090", "a list of texts"),
    ("gpu_names", [4090], "a list of texts"),
    ("gpu_names", [" "], "names such as"),
    ("gpus", 0, "1 to 64"),
    ("gpus", 2.0, "a whole number"),
    ("gpus", True, "a whole number"),
    ("gpus", "2", "a whole number"),
    ("min_vram_gib", -1, "finite number from 0"),
    ("min_vram_gib", float("nan"), "finite number from 0"),
    ("min_vram_gib", None, "a number"),
    ("min_vram_gib", True, "a number"),
    ("min_reliability", 95, "0 to 1"),
    ("min_cuda", "12.8", "a number"),
    ("min_inet_up_mbit_per_s", float("inf"), "finite number from 0"),
    ("disk_gb", 7.9, "from 8"),
    ("disk_gb", float("inf"), "from 8"),
    ("max_usd_per_h", 0, "above 0"),
    ("max_usd_per_h", "1", "a number or null"),
    ("hours", 0, "above 0"),
    ("hours", float("nan"), "above 0"),
    ("is_verified", 1, "true or false"),
    ("is_datacenter", "yes", "true or false"),
    ("bid_usd_per_h", 0.5, "null unless is_interruptible"),
    ("image", "", "1 to 1024"),
    ("image", "a\nb", "1 to 1024"),
    ("image", None, "a text"),
    ("not_machines", [1.5], "a list of whole numbers"),
    ("not_machines", [True], "a list of whole numbers"),
    ("not_machines", [-1], "numbers of machines"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), WRONG)
def test_a_wrong_value_is_named_with_what_is_allowed(key: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"{key} .*allowed: .*{allowed}"):
        Wanted.from_json({key: value})


@pytest.mark.parametrize("bid", [0.0, 0.0009, 128.5])
def test_a_bid_that_is_never_accepted_is_refused(bid: float) -> None:
    with pytest.raises(ValueError, match=r"bid_usd_per_h .*allowed: 0\.001 to 128"):
        Wanted(is_interruptible=True, bid_usd_per_h=bid)


@given(wants())
def test_what_may_be_wanted_may_be_created(wanted: Wanted) -> None:
    CreateRequest(wanted.image, wanted.disk_gb, "armature/home/lease", bid_usd_per_h=wanted.bid_usd_per_h)
