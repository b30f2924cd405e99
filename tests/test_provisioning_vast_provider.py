"""Renting, watching and giving back at the fake service: what exists is told, and gone is only what is proven."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from pydantic import SecretStr

from provisioning.agent_archive import agent_archive
from provisioning.base import (
    Absent,
    Ambiguous,
    AuthenticationFailed,
    Handle,
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
from provisioning.host_workers import HostWorkers
from provisioning.vast.api import VastApi
from provisioning.vast.errors import NeverSent, TooEarly
from provisioning.vast.provider import SETTLE_S, VastProvider
from provisioning.vast.rented_hosts import RentedHosts
from tests.fakes.attempts import SUPERVISOR, until
from tests.fakes.vast import Fake, Fault, FaultPlan, FollowingClock, Rates, VirtualClock
from tests.fakes.vast.account import FULL_KEY
from tests.fakes.vast.market import Offer as Ask
from tests.fakes.vast.server import Server, Wire, example_offers

PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFEi3vmpb8xYcQfP0h6mGc5uSvAA7iG0n5xHqkX3yq9C armature"
LIST = ("GET", "/api/v1/instances/")
CREATE = ("PUT", "/api/v0/asks/{id}/")
DESTROY = ("DELETE", "/api/v0/instances/{id}/")
ONE = Request(1, 1, 1)
LABEL = "armature/home1/lease1"

Found = TypeVar("Found")


def hosts_of(api: VastApi, folder: Path, clock: Callable[[], float]) -> RentedHosts:
    workers = HostWorkers(agent_archive(str(SUPERVISOR)), folder / "here")
    return RentedHosts(api, workers, folder / "key", folder / "rented", clock)


def patient(verb: Callable[[], Found]) -> Found | None:
    """The answer of a verb, None while it is too early to ask."""
    try:
        return verb()
    except TooEarly:
        return None


class Rig:
    """A provider over the fake, and a clock that moves when the service wants to be left alone."""

    def __init__(self, folder: Path, fake: Fake, clock: VirtualClock) -> None:
        self.fake, self.clock = fake, clock
        self.api = VastApi(SecretStr(FULL_KEY), clock, random.Random(7).random, adapter=Wire(fake, clock))
        self.provider = VastProvider(self.api, hosts_of(self.api, folder, clock), PUBLIC, clock)

    def when_free(self, verb: Callable[[], Found]) -> Found:
        """The answer of a verb, as soon as it may be asked."""
        while True:
            try:
                return verb()
            except TooEarly as error:
                self.clock.advance(error.wait_s + 0.001)

    def prepared(self) -> None:
        while not self.when_free(self.provider.prepare):
            pass

    def offers(self, request: Request = ONE) -> tuple[Offer, ...]:
        return self.when_free(lambda: self.provider.offers(request))

    def create(self, label: str = LABEL, offer: Offer | None = None) -> Handle | Refused | Ambiguous:
        chosen = offer or self.offers()[0]
        return self.when_free(lambda: self.provider.create(chosen, label))

    def rented(self, label: str = LABEL, offer: Offer | None = None) -> Handle:
        made = self.create(label, offer)
        assert isinstance(made, Handle)
        return made

    def observed(self, label: str = LABEL) -> Observation:
        return self.when_free(lambda: self.provider.observe([label]))[label]

    def released(self, handle: Handle, within_s: float = 300.0) -> Released:
        end_s = self.clock() + within_s
        while True:
            try:
                return self.when_free(lambda: self.provider.release(handle))
            except NotYetReleased:
                assert self.clock() < end_s
                self.clock.advance(1.0)


def rig_of(folder: Path, offers: list[Ask] | None = None, plan: FaultPlan | None = None, seed: int = 0) -> Rig:
    clock = VirtualClock()
    fake = Fake(example_offers() if offers is None else offers, seed=seed, plan=plan, start_s=clock())
    return Rig(folder, fake, clock)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    found = rig_of(tmp_path)
    found.prepared()
    return found


def requests_of(rig: Rig, method: str, template: str) -> list[dict[str, object]]:
    return [
        json.loads(one.body or b"{}") for one in rig.fake.requests if (one.method, one.template) == (method, template)
    ]


# ---- before renting --------------------------------------------------------------------------------------------------


def test_the_account_learns_our_key_once_step_by_step(tmp_path: Path) -> None:
    rig = rig_of(tmp_path)
    with pytest.raises(ProvisioningError, match="prepare"):
        rig.create()
    assert requests_of(rig, *CREATE) == []
    assert [rig.when_free(rig.provider.prepare) for _ in range(2)] == [False, True]
    assert list(rig.fake.account.ssh_keys.values()) == [PUBLIC]
    before = len(rig.fake.requests)
    assert rig.provider.prepare()
    assert len(rig.fake.requests) == before
    again = Rig(tmp_path, rig.fake, rig.clock)
    rig.fake.account.ssh_keys[501] = PUBLIC.replace(" armature", " another comment")
    rig.clock.advance(60)
    assert again.when_free(again.provider.prepare)
    assert len(rig.fake.account.ssh_keys) == 1


def test_all_slots_are_on_one_machine(rig: Rig) -> None:
    four = rig.offers(Request(2, 2, 1, wanted={"hours": 4.0}))
    assert {offer.gpus for offer in four} == {4}
    assert {offer.gpus for offer in rig.offers(Request(4, 0, 1))} == {4}
    assert rig.offers(Request(None, 1, 1))[0].gpus == 1
    order = json.loads(json.dumps(dict(four[0].order)))
    assert (order["machine_id"], order["disk_gb"]) == (int(four[0].machine), 40.0)
    assert order["ttl_s"] >= 4.0 * 3600 * 1.25


def test_what_nobody_offers_says_why_and_what_cannot_be_asked_is_named(rig: Rig) -> None:
    with pytest.raises(NoCapacity, match="offers"):
        rig.offers(Request(1, 1, 1, wanted={"max_usd_per_h": 0.01}))
    with pytest.raises(NoCapacity):
        rig.offers(Request(9, 1, 1))
    with pytest.raises(ValueError, match="colour"):
        rig.offers(Request(1, 1, 1, wanted={"colour": "red"}))


# ---- renting ---------------------------------------------------------------------------------------------------------


def test_what_is_rented_can_be_reached_and_given_back(rig: Rig) -> None:
    handle = rig.rented()
    assert rig.observed() == Present("requested", handle.host)
    rig.clock.advance(3)
    assert rig.observed() == Present("created", handle.host)
    rig.clock.advance(200)
    assert rig.observed() == Present("reachable", handle.host)
    assert rig.fake.world.instances[int(handle.host)].ssh_keys == (PUBLIC,)
    assert handle.host in rig.released(handle).proof
    assert rig.observed() == Absent()
    assert rig.fake.never_destroyed() == []
    rig.fake.assert_clean()


def test_a_label_has_one_machine_and_a_proof_is_kept(rig: Rig) -> None:
    handle = rig.rented()
    for offer in rig.offers():
        assert rig.create(offer=offer) == handle
    assert len(rig.fake.existing("armature/")) == 1
    proof, asked = rig.released(handle), len(rig.fake.requests)
    assert rig.provider.release(handle) == proof
    assert len(rig.fake.requests) == asked
    # A service that says it has destroyed and has not: the list says so, and then it is asked again.
    number = int(handle.host)
    rig.fake.world.instances[number] = rig.fake.world.history[number][-2].after
    rig.fake.world.history[number].pop()
    rig.clock.advance(SETTLE_S)
    assert isinstance(rig.observed(), Present)
    rig.released(handle)
    assert len(rig.fake.requests) == asked + 2
    assert isinstance(rig.observed(), Absent)
    assert rig.rented() != handle


def test_machines_with_too_few_cores_are_not_offered(rig: Rig) -> None:
    assert rig.offers(Request(1, 1, 16))
    with pytest.raises(NoCapacity, match="fewer than 17 CPU cores; the most is 16"):
        rig.offers(Request(1, 1, 17))


def test_a_create_says_where_the_service_is_only_where_it_is_elsewhere_and_never_our_key(
    tmp_path: Path, rig: Rig
) -> None:
    rig.rented()
    elsewhere = VastProvider(
        rig.api, hosts_of(rig.api, tmp_path, rig.clock), PUBLIC, rig.clock, url="http://127.0.0.1:9"
    )
    rig.when_free(elsewhere.prepare)
    offer = rig.offers()[0]
    assert isinstance(rig.when_free(lambda: elsewhere.create(offer, "armature/home1/lease2")), Handle)
    here, there = requests_of(rig, *CREATE)
    assert (here["env"], there["env"]) == ({}, {"VAST_URL": "http://127.0.0.1:9"})
    assert FULL_KEY not in json.dumps([here, there])
    assert f" {offer.order['ttl_s']:.3f} 7200.000 2700.000" in str(here["onstart"])


def test_an_offer_that_is_gone_is_skipped_and_no_connection_made_nothing(rig: Rig) -> None:
    offer, other = rig.offers()[:2]
    rig.fake.market.take(int(offer.offer_id))
    with pytest.raises(SkipOffer):
        rig.create(offer=offer)
    rig.fake.plan.script(*CREATE, Fault("too_many_text"))
    rig.clock.advance(60)
    with pytest.raises(RateLimited) as slow:
        rig.provider.create(other, LABEL)
    assert isinstance(slow.value, TooEarly)
    assert slow.value.wait_s >= 12
    rig.clock.advance(60)
    assert rig.observed() == Absent()
    assert isinstance(rig.create(offer=other), Handle)


def test_a_create_without_a_connection_made_nothing(tmp_path: Path) -> None:
    clock = FollowingClock(200)
    fake = Fake(example_offers(), start_s=clock())
    with Server(fake, clock) as server:
        api = VastApi(SecretStr(FULL_KEY), clock, random.Random(1).random, url=server.url)
        provider = VastProvider(api, hosts_of(api, tmp_path, clock), PUBLIC, clock, url=server.url)
        until(lambda: patient(provider.prepare))
        offer = until(lambda: patient(lambda: provider.offers(ONE)))[0]
    with pytest.raises(NeverSent):
        provider.create(offer, LABEL)
    found = provider.observe([LABEL])[LABEL]
    assert isinstance(found, Unknown)
    assert fake.existing() == []


@pytest.mark.parametrize("fault", [Fault("drop", True), Fault("server_error", True), Fault("html", True)])
def test_a_create_that_nobody_heard_of_is_found_by_its_label(rig: Rig, fault: Fault) -> None:
    rig.fake.plan.script(*CREATE, fault)
    assert isinstance(rig.create(), Ambiguous)
    found = rig.observed()
    assert isinstance(found, Present)
    rig.released(Handle("vast", LABEL, found.host))
    assert rig.fake.never_destroyed() == []


def test_a_bid_that_is_too_low_leaves_something_to_release(rig: Rig) -> None:
    offer = rig.offers(Request(1, 1, 1, wanted={"is_interruptible": True}))[0]
    rig.fake.market.move_price(int(offer.machine), 2.0)
    made = rig.create(offer=offer)
    assert isinstance(made, Refused)
    assert made.left is not None
    assert made.left.label == LABEL
    seen = rig.observed()
    assert isinstance(seen, Present)
    assert (seen.stage, seen.host) == ("halted", made.left.host)
    rig.released(made.left)
    assert rig.fake.never_destroyed() == []


# ---- watching --------------------------------------------------------------------------------------------------------


def test_only_a_complete_list_says_that_something_is_not_there(rig: Rig) -> None:
    for number in range(30):
        rig.fake.plant(f"somebody/{number}")
    handle = rig.rented()
    labels = [LABEL, "somebody/3", "armature/home1/none"]

    def looked() -> list[str]:
        found = rig.when_free(lambda: rig.provider.observe(labels))
        return [type(found[label]).__name__ for label in labels]

    assert looked() == ["Unknown", "Present", "Unknown"], "ours has the largest number and stands on the second page"
    assert looked() == ["Present", "Present", "Absent"]
    assert rig.when_free(lambda: rig.provider.observe([LABEL]))[LABEL] == Unknown("the list has more pages")
    rig.released(handle)


def test_a_list_that_was_begun_before_a_create_says_nothing_about_it(rig: Rig) -> None:
    for number in range(30):
        rig.fake.plant(f"somebody/{number}")
    assert isinstance(rig.observed(), Unknown)
    rig.fake.plan.script(*CREATE, Fault("server_error", True))
    # Its number is the largest, but a service may sort as it likes: the second page of the old list must not be asked.
    assert isinstance(rig.create(), Ambiguous)
    assert isinstance(rig.observed(), Unknown)
    assert isinstance(rig.observed(), Present)


def test_no_answer_is_neither_here_nor_there(rig: Rig) -> None:
    rig.rented()
    for fault in (Fault("drop"), Fault("server_error"), Fault("malformed"), Fault("html"), Fault("refused")):
        rig.fake.plan.script(*LIST, fault)
        assert isinstance(rig.observed(), Unknown), fault
    assert isinstance(rig.observed(), Present)
    rig.fake.expire_key()
    with pytest.raises(AuthenticationFailed):
        rig.observed()


def test_two_under_one_label_are_both_told_and_the_other_can_be_released(rig: Rig) -> None:
    first = rig.fake.plant(LABEL).id
    handle = rig.rented()
    seen = rig.observed()
    assert isinstance(seen, Present)
    assert seen.host == handle.host
    assert str(first) in seen.why
    (extra,) = rig.provider.duplicates(LABEL)
    assert (extra.label, extra.host) == (LABEL, str(first))
    assert rig.provider.duplicates(LABEL, keep=str(first)) == (handle,)
    rig.released(extra)
    assert isinstance(rig.observed(), Present)
    assert rig.provider.duplicates(LABEL) == ()


def test_strangers_are_ours_by_our_prefix_only(rig: Rig) -> None:
    foreign = [rig.fake.plant(label).id for label in (None, "somebody", "armature/home11/x", "armature/home2/x")]
    lost = rig.fake.plant("armature/home1/lost").id
    rig.rented()
    assert rig.provider.strangers("armature/home1/", {LABEL}) is None
    rig.observed()
    found = rig.provider.strangers("armature/home1/", {LABEL})
    assert found is not None
    assert [one.host for one in found.ours] == [str(lost)]
    assert [one.host for one in found.foreign] == [str(number) for number in foreign]
    for prefix in ("", "armature/", "armature//", "armature/home1", "/home1/", "a/b/c/"):
        with pytest.raises(ValueError, match="home id"):
            rig.provider.strangers(prefix, ())


# ---- giving back -----------------------------------------------------------------------------------------------------


def test_nothing_but_a_yes_or_an_agreeing_list_is_a_release(rig: Rig) -> None:
    handle = rig.rented()
    faults = (Fault("refused"), Fault("server_error"), Fault("drop"), Fault("html"), Fault("empty"), Fault("malformed"))
    rig.fake.plan.script(*DESTROY, *faults)
    for _ in faults:
        with pytest.raises(NotYetReleased):
            rig.when_free(lambda: rig.provider.release(handle))
        assert [one.id for one in rig.fake.existing()] == [int(handle.host)]
    assert "destroyed" in rig.released(handle).proof


def test_a_404_that_comes_too_early_is_not_believed(rig: Rig) -> None:
    handle = rig.rented()
    rig.fake.plan.script(*DESTROY, *[Fault("not_found")] * 20)
    rig.released(handle, within_s=600)
    assert rig.fake.never_destroyed() == []


def test_a_404_is_believed_once_a_later_list_agrees(rig: Rig) -> None:
    handle = rig.rented()
    rig.fake.world.happen(int(handle.host), "destroy")
    with pytest.raises(NotYetReleased, match="404"):
        rig.when_free(lambda: rig.provider.release(handle))
    began_s = rig.clock()
    assert rig.observed() == Absent(), "a list that was begun at once is none that agrees"
    proof = rig.released(handle).proof
    assert rig.clock() - began_s >= SETTLE_S - 1
    assert proof.startswith(f"instance {handle.host}: 404")


def test_a_destroy_whose_answer_is_lost_is_proven_in_the_end(rig: Rig) -> None:
    handle = rig.rented()
    rig.fake.plan.script(*DESTROY, Fault("drop", True))
    rig.fake.plan.script(*LIST, Fault("drop"), Fault("server_error"))
    assert "does not hold it" in rig.released(handle).proof


ROUGH = Rates(
    too_many=0.1, server_error=0.1, drop=0.1, malformed=0.1, destroy_false=0.2, destroy_404=0.3, slow=0.1,
    list_lag_max_s=10, null_max_s=10, until_s=3600,
)  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_what_counts_as_released_is_gone_whatever_went_wrong(tmp_path: Path, seed: int) -> None:
    rig = rig_of(tmp_path, plan=FaultPlan(seed, ROUGH), seed=seed)

    def known(verb: Callable[[], Found]) -> Found:
        while True:
            try:
                return rig.when_free(verb)
            except SkipOffer:
                raise
            except ProvisioningError:
                rig.clock.advance(1)

    while not known(rig.provider.prepare):
        pass
    offers = known(lambda: rig.provider.offers(ONE))
    for number, offer in enumerate(offers[:3]):
        label = f"armature/home1/{number}"
        made = known(lambda offer=offer, label=label: rig.provider.create(offer, label))
        host = made.host if isinstance(made, Handle) else ""
        # What nobody named is looked for until the list has had six times its lag to show it.
        quiet_s = rig.clock() + 60
        while not host and rig.clock() < quiet_s:
            seen = known(lambda label=label: rig.provider.observe([label]))[label]
            host = seen.host if isinstance(seen, Present) else ""
        if host:
            known(lambda label=label, host=host: rig.provider.release(Handle("vast", label, host)))
            assert not rig.fake.world.instances[int(host)].living
    assert rig.fake.never_destroyed() == []
    rig.fake.assert_clean()


# ---- money -----------------------------------------------------------------------------------------------------------


def test_the_bill_and_the_balance_are_the_services(rig: Rig) -> None:
    began_s = rig.clock()
    one, two = rig.rented(), rig.rented("armature/home1/lease2")
    rig.clock.advance(7200)
    rig.released(one)
    rig.released(two)
    bill = rig.when_free(lambda: rig.provider.charges([one, two], began_s, rig.clock()))
    assert bill is not None
    assert bill == pytest.approx(rig.fake.usd_by_label(), abs=0.001)
    left_usd = rig.when_free(rig.provider.balance_usd)
    assert left_usd == pytest.approx(100 - sum(rig.fake.usd_by_label().values()), abs=0.001)


def test_a_bill_of_many_pages_is_whole_or_not_told(rig: Rig) -> None:
    began_s = rig.clock()
    for number in range(520):
        rig.fake.plant(f"somebody/{number}")
    handle = rig.rented()
    rig.clock.advance(3600)
    asked = (began_s, rig.clock())
    assert rig.when_free(lambda: rig.provider.charges([handle], *asked)) is None
    bill = rig.when_free(lambda: rig.provider.charges([handle], *asked))
    assert bill == pytest.approx({LABEL: rig.fake.usd_by_label()[LABEL]}, rel=0.01)
