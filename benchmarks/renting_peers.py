"""How others give machines back, as small honest clients in the same fake with the same seeds.

Only the policy of giving back is theirs: each client here rents, waits and works alike, over our own HTTP client with
its spacing, which is kinder to them than what they use. The policies are those of published tools (their sources were
read, not copied): a `finally` that destroys once (Ratiocinator), three quick tries of each call (the client of
vast-cli), and a try every 30 s for 15 minutes, after which the machine is forgotten (dstack).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import SecretStr

from provisioning.base import Ambiguous, NotYetReleased, ProvisioningError, Refused
from provisioning.vast.api import Created, VastApi
from provisioning.vast.asking import CreateRequest, OfferQuery
from provisioning.vast.boot import Stage, boot_of
from provisioning.vast.errors import TooEarly
from tests.fakes.renting_case import CALM_S, Deaths, Killed, Wave, asks_of, kills_of, plan_of, waves_of
from tests.fakes.vast import Fake, VirtualClock
from tests.fakes.vast.account import FULL_KEY
from tests.fakes.vast.server import Wire

AFTERWARDS_S = 24 * 3600.0
"""What is left is counted for a day after the client has ended: about when a person looks again."""

BOOT_S, POLL_S = 1800.0, 30.0
LABEL = "neighbour/"

Found = TypeVar("Found")


@dataclass(frozen=True)
class Policy:
    """How often a call that failed is made again, and after how many seconds each time."""

    name: str
    call_waits_s: Sequence[float]
    destroy_waits_s: Sequence[float]


POLICIES = (
    Policy("destroy in `finally`, once", (), ()),
    Policy("three quick tries", (0.15, 0.225), (0.15, 0.225)),
    Policy("every 30 s for 15 min, then forgotten", (), (30.0,) * 30),
)


@dataclass(frozen=True)
class Left:
    """What one schedule left behind: machines (and how many of them where nobody was killed), their hours and USD in
    the day afterwards, wants with two machines."""

    machines: int
    machines_without_kill: int
    hours: float
    usd: float
    doubles: int
    finished: int


class Client:
    """Rents a machine for each wave, works, and gives it back by a policy."""

    def __init__(self, seed: int, policy: Policy) -> None:
        self.policy = policy
        self.clock = VirtualClock()
        self.start_s = self.clock()
        draw = random.Random(f"case/{seed}")
        self.fake = Fake(
            asks_of(seed), seed=seed, plan=plan_of(seed, self.start_s), start_s=self.start_s, balance_usd=500.0,
            card=draw.random() < 0.7,
        )  # fmt: skip
        self.deaths = Deaths(kills_of(seed))
        self.seed, self.lives, self.finished = seed, 0, 0
        self.waves = waves_of(seed)
        self.is_bid = bool(self.waves[0].want.request.wanted["is_interruptible"])

    def play(self) -> Left:
        """All waves, one after the other; a process that is killed is started again for the wave that it was at."""
        for number, wave in enumerate(self.waves):
            self.clock.advance(max(0.0, self.start_s + wave.from_s - self.clock()))
            while self.clock() - self.start_s < wave.until_s:
                try:
                    if self._wave(number, wave):
                        self.finished += 1
                        break
                except Killed:
                    self.clock.advance(60.0)
                self.clock.advance(60.0)
        return self._left()

    def _wave(self, number: int, wave: Wave) -> bool:
        self.lives += 1
        api = VastApi(
            SecretStr(FULL_KEY), self.clock, random.Random(self.seed).random, was_asked_before=True,
            adapter=Wire(self.fake, self.clock),
        )  # fmt: skip
        made = self._rent(api, f"{LABEL}{number}/{self.lives}")
        if made is None:
            return False
        done = False
        try:
            if self._boots(api, made):
                self._sleep(wave.work_s)
                done = True
        except Killed:
            raise
        except ProvisioningError:
            pass
        self._destroy(api, made)
        return done

    def _rent(self, api: VastApi, label: str) -> int | None:
        try:
            kind = "bid" if self.is_bid else "on-demand"
            offers = self._tried(lambda: api.search(OfferQuery(kind=kind, min_gpus=4))).offers
        except ProvisioningError:
            return None
        for offer in offers[:3]:
            bid = offer.min_bid_usd_per_h if self.is_bid else None
            request = CreateRequest("image:tag", 40.0, label, bid_usd_per_h=bid)
            for wait_s in (*self.policy.call_waits_s, None):
                try:
                    found = self._called(lambda o=offer, r=request: api.create(o.offer_id, r), "create")
                except ProvisioningError:
                    break
                if isinstance(found, Created):
                    return found.instance_id
                if isinstance(found, Refused) or wait_s is None or not isinstance(found, Ambiguous):
                    break
                self._sleep(wait_s)
        return None

    def _boots(self, api: VastApi, number: int) -> bool:
        until_s = self.clock() + BOOT_S
        while self.clock() < until_s:
            try:
                record = self._tried(lambda: api.instance(number))
            except ProvisioningError:
                record = None
            if record is not None:
                stage = boot_of(record).stage
                if stage is Stage.REACHABLE:
                    return True
                if stage in (Stage.FAILED, Stage.OFFLINE, Stage.HALTED):
                    return False
            self._sleep(POLL_S)
        return False

    def _destroy(self, api: VastApi, number: int) -> None:
        for wait_s in (*self.policy.destroy_waits_s, None):
            try:
                self._called(lambda: api.destroy(number), "release")
                return
            except (NotYetReleased, ProvisioningError):
                if wait_s is None:
                    return
                self._sleep(wait_s)

    def _tried(self, verb: Callable[[], Found]) -> Found:
        """A call as often as the policy makes it. Raises the last error."""
        for wait_s in self.policy.call_waits_s:
            try:
                return self._called(verb)
            except ProvisioningError:
                self._sleep(wait_s)
        return self._called(verb)

    def _called(self, verb: Callable[[], Found], kind: str = "other") -> Found:
        """One call, held back until it may be made; the process may die before and after it."""
        self.deaths.point(kind)
        while True:
            try:
                found = verb()
                break
            except TooEarly as error:
                if error.was_sent:
                    raise
                self._sleep(error.wait_s + 0.001)
        self.deaths.point(kind)
        return found

    def _sleep(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def _left(self) -> Left:
        ended_s = max(self.clock(), self.start_s + CALM_S)
        self.fake.advance_to(ended_s)
        usd_before = self._usd()
        machines = self.fake.existing(LABEL)
        self.fake.advance_to(ended_s + AFTERWARDS_S)
        hours = sum(
            ((one.gone_s or ended_s + AFTERWARDS_S) - ended_s) / 3600
            for one in (self.fake.world.instances[each.id] for each in machines)
        )
        spans: dict[str, list[tuple[float, float]]] = {}
        for one in self.fake.world.instances.values():
            if (one.label or "").startswith(LABEL):
                wave = (one.label or "").split("/")[1]
                spans.setdefault(wave, []).append((one.created_s, one.gone_s or float("inf")))
        doubles = sum(
            any(later[0] < earlier[1] for earlier, later in zip(sorted(lived), sorted(lived)[1:], strict=False))
            for lived in spans.values()
        )
        unkilled = 0 if self.deaths.died else len(machines)
        return Left(len(machines), unkilled, hours, self._usd() - usd_before, doubles, self.finished)

    def _usd(self) -> float:
        return sum(usd for label, usd in self.fake.usd_by_label().items() if label.startswith(LABEL))
