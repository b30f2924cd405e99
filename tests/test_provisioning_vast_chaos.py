"""The client against the fake service under seeded faults: it keeps the spacing, breaks no form, and what it is told
to destroy is destroyed, however often it has to be said."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

import pytest
from pydantic import SecretStr

from provisioning.base import Ambiguous, NotYetReleased, Refused, SkipOffer
from provisioning.vast.api import Created, RefusedButCreated, VastApi
from provisioning.vast.asking import CreateRequest, OfferQuery
from provisioning.vast.errors import CallRefused, NoAnswer, TooEarly
from provisioning.vast.models import Listing
from tests.fakes.vast import Fake, FaultPlan, Rates, VirtualClock
from tests.fakes.vast.account import FULL_KEY
from tests.fakes.vast.server import Wire, example_offers

FAULTS_END_S = 1_800.0
ROUGH = Rates(
    too_many=0.1, server_error=0.1, drop=0.1, malformed=0.1, destroy_false=0.2, destroy_404=0.2, offer_gone=0.1,
    slow=0.2, latency_max_s=90, list_lag_max_s=10, null_max_s=10, until_s=FAULTS_END_S,
)  # fmt: skip
OURS, FOREIGN = "armature/home1/", "somebody-else/"

Found = TypeVar("Found")


class Caller:
    """Repeats a verb as the reconcile loop does: no sooner than it may, and again when nothing is known."""

    def __init__(self, seed: int) -> None:
        self.clock = VirtualClock()
        self.fake = Fake(example_offers(), seed=seed, plan=FaultPlan(seed, ROUGH), start_s=self.clock())
        self.began_s = self.clock()
        self.vast = VastApi(
            SecretStr(FULL_KEY), self.clock, random.Random(seed).random, adapter=Wire(self.fake, self.clock)
        )

    def until_known(self, verb: Callable[[], Found]) -> Found:
        for _ in range(5_000):
            try:
                return verb()
            except TooEarly as error:
                self.clock.advance(error.wait_s + 0.001)
            except (NoAnswer, NotYetReleased, CallRefused):
                self.clock.advance(0.5)
        raise AssertionError("the service never gave an answer")

    def listed(self) -> Listing:
        listing = Listing.empty()
        while not listing.is_complete:
            token = listing.after_token
            listing = listing.with_page(self.until_known(lambda token=token: self.vast.instances(token)))
        return listing


@pytest.mark.parametrize("seed", range(40))
def test_nothing_of_ours_is_left_and_nothing_of_others_is_touched(seed: int) -> None:
    caller = Caller(seed)
    vast, fake = caller.vast, caller.fake
    planted = fake.plant(f"{FOREIGN}{seed}").id
    told: list[object] = []
    for number, offer in enumerate(caller.until_known(lambda: vast.search(OfferQuery())).offers[:4]):
        wanted = CreateRequest("image:tag", 20, f"{OURS}{number}")
        try:
            told.append(caller.until_known(lambda offer=offer, wanted=wanted: vast.create(offer.offer_id, wanted)))
        except SkipOffer as error:
            told.append(error)
    assert all(isinstance(one, Created | RefusedButCreated | Refused | Ambiguous | SkipOffer) for one in told)
    while True:
        ours = [one for one in caller.listed().instances.values() if (one.label or "").startswith(OURS)]
        # What a lost create left may show only when the list has caught up.
        if not ours and caller.clock() > caller.began_s + FAULTS_END_S + 60:
            break
        for one in ours:
            caller.until_known(lambda one=one: vast.destroy(one.instance_id))
        caller.clock.advance(20)
    fake.advance_to(caller.clock())
    assert fake.never_destroyed() == []
    assert fake.double_rents() == []
    assert fake.spacing_violations() == []
    fake.assert_clean()
    before = sum(usd for label, usd in fake.usd_by_label().items() if label.startswith(OURS))
    fake.advance_to(caller.clock.advance(100_000))
    after = sum(usd for label, usd in fake.usd_by_label().items() if label.startswith(OURS))
    assert after == before
    assert [one.id for one in fake.existing(FOREIGN)] == [planted]
