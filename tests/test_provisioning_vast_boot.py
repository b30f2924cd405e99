"""The stage of a rented machine out of its record: every state of the fake, and words that must not be misread."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.vast.boot import Stage, boot_of
from provisioning.vast.models import Instance, read_record
from tests.fakes.vast import Boot, Fake
from tests.fakes.vast.answers import Shapes
from tests.fakes.vast.clock import START_S
from tests.fakes.vast.machine import TROUBLES
from tests.fakes.vast.market import Offer
from tests.fakes.vast.records import instance_record
from tests.fakes.vast.world import Wish

RUNNING = {"cur_state": "running", "next_state": "running", "intended_status": "running"}


def instance(**fields: Any) -> Instance:
    found = read_record(Instance, {"id": 7, **RUNNING, **fields})
    assert found is not None
    return found


def fake_with(trouble: str = "") -> tuple[Fake, int]:
    """A fake with one instance that boots in a minute."""
    fake = Fake()
    fake.world.boots.append(Boot(trouble=trouble))
    return fake, fake.plant("armature/home1/x").id


def stages(fake: Fake, number: int, seconds: int) -> list[Stage]:
    """The stages that are seen, second by second, each once."""
    found: list[Stage] = []
    for passed_s in range(seconds):
        fake.advance_to(START_S + passed_s)
        stage = shown(fake, number)
        found += [] if found and found[-1] is stage else [stage]
    return found


def shown(fake: Fake, number: int) -> Stage:
    record = instance_record(fake.world.instances[number], fake.world.now_s, 1.0, Shapes())
    found = read_record(Instance, record)
    assert found is not None
    return boot_of(found).stage


def test_a_start_goes_through_its_stages() -> None:
    assert stages(*fake_with(), 90) == [Stage.REQUESTED, Stage.CREATED, Stage.LOADING, Stage.REACHABLE]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_every_trouble_that_the_service_can_see_is_told(trouble: str) -> None:
    last = {
        "loading_for_ever": Stage.LOADING,
        "loading_error": Stage.FAILED,
        "oci": Stage.FAILED,
        "exits": Stage.FAILED,
    }
    # The others are the host's own, and show only when it is asked itself.
    assert stages(*fake_with(trouble), 90)[-1] is last.get(trouble, Stage.REACHABLE)


@pytest.mark.parametrize(
    ("events", "stage"),
    [
        (["stop"], Stage.HALTED),
        (["no_balance"], Stage.HALTED),
        (["expire"], Stage.HALTED),
        (["freeze"], Stage.FROZEN),
        (["freeze", "thaw"], Stage.REACHABLE),
        (["stop", "start"], Stage.REQUESTED),
        (["offline"], Stage.OFFLINE),
        (["unknown"], Stage.OFFLINE),
        (["offline", "stop"], Stage.OFFLINE),
        (["offline", "back"], Stage.CREATED),
        (["restart"], Stage.CREATED),
        (["exit"], Stage.FAILED),
        (["destroy"], Stage.GONE),
    ],
)
def test_what_befalls_a_running_machine(events: list[str], stage: Stage) -> None:
    fake, number = fake_with()
    fake.advance_to(START_S + 100)
    for event in events:
        fake.world.happen(number, event)
    assert shown(fake, number) is stage


def test_an_outbid_machine_is_halted() -> None:
    fake = Fake()
    made = fake.world.create(Offer(1, 1), Wish("armature/home1/x", "image", price_usd_per_h=0.3), ())
    fake.advance_to(START_S + 100)
    assert shown(fake, made.id) is Stage.REACHABLE
    fake.world.happen(made.id, "outbid")
    assert shown(fake, made.id) is Stage.HALTED


def test_running_without_an_address_is_not_reachable() -> None:
    assert boot_of(instance(actual_status="running")).stage is Stage.RUNNING
    assert (
        boot_of(instance(actual_status="running", ssh_host="ssh4.vast.ai", ssh_port="10022")).stage is Stage.REACHABLE
    )
    ports = {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": "41022"}]}
    assert boot_of(instance(actual_status="running", ports=ports)).stage is Stage.RUNNING
    direct = instance(actual_status="running", ports=ports, public_ipaddr="192.0.2.7\n")
    assert boot_of(direct).stage is Stage.REACHABLE


@pytest.mark.parametrize(
    "said",
    [
        "Error response from daemon: manifest for acme/x:1 not found: manifest unknown",
        "Error: OCI runtime create failed: runc create failed: unable to start container process",
        "docker: pull access denied for acme/private",
        "unauthorized: authentication required",
        "No such image: acme/x:1",
        "mkdir /var/lib/x: permission denied",
        "Traceback (most recent call last): …",
    ],
)
@pytest.mark.parametrize("status", ["created", "loading", None])
def test_a_start_that_comes_to_nothing_says_what_the_service_said(said: str, status: str | None) -> None:
    found = boot_of(instance(actual_status=status, status_msg=f"{said}\n"))
    assert (found.stage, found.why) == (Stage.FAILED, said)


NAMES = st.lists(
    st.sampled_from(["error", "failed", "denied", "acme", "exception", "Traceback"]), min_size=1, max_size=3
)


@given(NAMES, st.sampled_from(["", ":latest", ":error", ":1.0"]))
def test_an_image_may_be_called_anything(words: list[str], tag: str) -> None:
    name = "/".join(words) + tag
    found = boot_of(instance(actual_status="loading", status_msg=f"Pulling from {name}"))
    assert found.stage is Stage.LOADING
    said = f"success, running {name}/ssh"
    assert boot_of(instance(actual_status="loading", status_msg=said)).stage is Stage.LOADING


TEXTS = st.text(max_size=20) | st.sampled_from(["running", "stopped", "frozen", "unloaded", "exited", "offline", "new"])


@given(TEXTS, TEXTS, TEXTS, TEXTS, st.text(max_size=50))
def test_any_record_has_a_stage(actual: str, current: str, intended: str, following: str, said: str) -> None:
    found = boot_of(
        instance(
            actual_status=actual, cur_state=current, intended_status=intended, next_state=following, status_msg=said
        )
    )
    assert isinstance(found.stage, Stage)
    assert (found.stage is Stage.GONE) == (current.strip() == "unloaded")


def test_a_word_that_is_new_is_told() -> None:
    found = boot_of(instance(actual_status="hibernating", status_msg="for the winter"))
    assert (found.stage, found.why) == (Stage.LOADING, "hibernating for the winter")
