"""One seeded schedule of a home that rents: the real loop over the real provider and client over the fake service, with
a virtual clock, a real database, and everything that can go wrong.

What is not there is an sshd: whether a machine is fit is scripted by the seed. Nothing plays the switch on the
instance either, so that whatever is given back was given back by the loop.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pydantic import SecretStr
from sqlalchemy import Connection

from provisioning.base import Ambiguous, Handle, Observation, Offer, Refused, Released, Request
from provisioning.fitness import Fit, NotYet, Unfit
from provisioning.vast.api import VastApi
from provisioning.vast.provider import VastProvider
from runner.home import Home
from runner.renting.leases import Lease, State, Want
from runner.renting.loop import Renting
from runner.renting.money import SURE_GAP_S
from runner.store.session import Session
from tests.fakes.new_database import new_database
from tests.fakes.vast import Fake, FaultPlan, Rates, VirtualClock
from tests.fakes.vast.account import FULL_KEY
from tests.fakes.vast.market import Offer as Ask
from tests.fakes.vast.server import Wire

PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDm0c2ztMRl6YF6y0nZcfTqOqqbHn2VW6yDJhKqVFz3N armature"
CALM_S = 4 * 3600.0
"""No mishap is drawn later than this after the start; the provider answers from then on. Schedules may be played
shorter: then all their times shrink with it."""

ENDS_S = 4 * 3600.0
"""And so much later everything must have been given back: a back-off, a quiet period, a boot or two."""

FOREIGN_LABEL, OTHER_HOME = "somebody-else/web", "armature/0123456789ab/7"


def at_once(_lane: str, verb: Callable[[], Any]) -> Future[Any]:
    """Carry out a verb here and now: the clock moves on by what it takes."""
    future: Future[Any] = Future()
    try:
        future.set_result(verb())
    except Exception as error:
        future.set_exception(error)
    return future


class Killed(BaseException):
    """The controller's process is gone: no handler of ours may see it."""


@dataclass
class Deaths:
    """At which of the points that a process passes it dies: (kind, how many of that kind were passed). There is one
    before and one after each verb, and around each commit."""

    at: set[tuple[str, int]] = field(default_factory=set)
    passed: Counter[str] = field(default_factory=Counter)
    died: int = 0

    def point(self, kind: str) -> None:
        """A place where the process may end."""
        self.passed[kind] += 1
        if (kind, self.passed[kind]) in self.at:
            self.died += 1
            raise Killed


class MortalMarket:
    """A provider between whose verbs the process may die."""

    def __init__(self, market: VastProvider, deaths: Deaths, before_create: Callable[[Offer], None]) -> None:
        self._market, self._deaths, self._before_create = market, deaths, before_create
        self.name = market.name

    def _mortal(self, kind: str, verb: Callable[[], Any]) -> Any:
        self._deaths.point(kind)
        found = verb()
        self._deaths.point(kind)
        return found

    def prepare(self) -> bool:
        return bool(self._mortal("other", self._market.prepare))

    def offers(self, request: Request) -> tuple[Offer, ...]:
        found: tuple[Offer, ...] = self._mortal("other", lambda: self._market.offers(request))
        return found

    def create(self, offer: Offer, label: str) -> Handle | Refused | Ambiguous:
        self._before_create(offer)
        found: Handle | Refused | Ambiguous = self._mortal("create", lambda: self._market.create(offer, label))
        return found

    def observe(self, labels: Sequence[str]) -> Mapping[str, Observation]:
        found: Mapping[str, Observation] = self._mortal("other", lambda: self._market.observe(labels))
        return found

    def release(self, handle: Handle) -> Released:
        found: Released = self._mortal("release", lambda: self._market.release(handle))
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._market, name)


class MortalSession(Session):
    """A session whose process may die before a transaction, before its commit, and after it."""

    deaths: Deaths

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        self.deaths.point("commit")
        with super().transaction() as connection:
            yield connection
            self.deaths.point("commit")
        self.deaths.point("commit")


class ScriptedHosts:
    """Whether a machine is fit, by the seed and its number; NotYet a few times before."""

    def __init__(self, seed: int, unfit: float) -> None:
        self._seed, self._unfit = seed, unfit
        self._asked: dict[int, int] = {}

    def inspect(self, record: Any, gpus: int) -> Fit | NotYet | Unfit:
        draw = random.Random(f"fit/{self._seed}/{record.instance_id}")
        is_unfit, later = draw.random() < self._unfit, draw.randrange(4)
        self._asked[record.instance_id] = self._asked.get(record.instance_id, 0) + 1
        if self._asked[record.instance_id] <= later:
            return NotYet("the agent does not answer yet")
        return Unfit("3 of 4 GPUs are there") if is_unfit else Fit("192.0.2.7", gpus, 16)

    def forget(self, number: int) -> None:
        """Nothing is known of it anyway."""


@dataclass
class Wave:
    """One want: it is there from `from_s` on and has `work_s` of work; given up when nothing was had by `until_s`
    (all seconds after the start)."""

    want: Want
    from_s: float
    work_s: float
    until_s: float
    done_s: float = 0.0
    is_over: bool = False


@dataclass(frozen=True)
class Played:
    """What a schedule came to: USD and hours by the fake's bill, and how often things happened."""

    seed: int
    rents: int
    deaths: int
    finished: int
    waves: int
    requests: int
    billed_usd: float
    ours_usd: float
    metered_usd: float
    unseen_usd: float
    left_machines: int
    left_h: float
    left_usd: float
    doubles: int
    virtual_h: float


def rates_of(seed: int, calm_s: float = CALM_S) -> Rates:
    """How rough the schedule of a seed is: from calm to one call in two that goes wrong. The list lags by up to the
    published ten seconds, or by four times that."""
    draw = random.Random(f"rates/{seed}")
    rough = draw.choice([0.0, 0.3, 0.6, 1.0])
    return Rates(
        too_many=0.12 * rough, server_error=0.12 * rough, drop=0.12 * rough, malformed=0.1 * rough,
        destroy_false=0.3 * rough, destroy_404=0.3 * rough, offer_gone=0.2 * rough, slow=0.2 * rough,
        latency_max_s=70.0, list_lag_max_s=draw.choice([0.0, 10.0, 40.0]), null_max_s=10.0, boot_max_s=900.0,
        boot_trouble=0.3 * rough, offline=0.2 * rough, outbid=0.4, exit=0.1 * rough, no_balance=0.15 * rough,
        expired_key=0.4 * rough, event_max_s=calm_s * 3 / 8, until_s=calm_s,
    )  # fmt: skip


def plan_of(seed: int, start_s: float, calm_s: float = CALM_S) -> FaultPlan:
    """The mishaps of a seed: those of its rates, and up to two spans without any network."""
    plan, draw = FaultPlan(seed, rates_of(seed, calm_s)), random.Random(f"outages/{seed}")
    for _ in range(draw.choice([0, 0, 1, 2])):
        from_s = draw.uniform(0, calm_s * 0.7)
        plan.outage(start_s + from_s, start_s + min(from_s + draw.choice([60, 1200, 0.75 * calm_s]), calm_s))
    return plan


def asks_of(seed: int) -> list[Ask]:
    """A market of machines with four GPUs, and one GPU."""
    draw = random.Random(f"market/{seed}")
    whole = [
        Ask(1000 + 10 * machine, machine, (0, 1, 2, 3), 4, gpu_usd_per_h=round(draw.uniform(1.2, 2.4), 3),
            min_bid_usd_per_h=round(draw.uniform(0.4, 0.9), 3))
        for machine in range(1, draw.randrange(4, 9))
    ]  # fmt: skip
    return [*whole, *(Ask(2000 + machine, machine) for machine in range(20, 26))]


def waves_of(seed: int, calm_s: float = CALM_S) -> list[Wave]:
    """One to three wants of one study, one after the other or beside each other."""
    draw = random.Random(f"waves/{seed}")
    count, is_bid = draw.choice([1, 1, 2, 3]), draw.random() < 0.4
    max_usd = draw.choice([None, 25.0, 6.0, 3.0])
    waves, from_s = [], 0.0
    for number in range(count):
        work_s = draw.uniform(0.04, 0.3) * calm_s
        hours = work_s / 3600
        wanted: dict[str, Any] = {"hours": hours, "is_interruptible": is_bid, "traffic_up_gb": 2.0, "min_cuda": 12.0}
        want = Want(f"study/{number}", Request(4, 1, 4, 0.0, wanted), "study", max_usd)
        waves.append(Wave(want, from_s, work_s, from_s + calm_s + 7200.0))
        from_s += draw.choice([0.0, work_s / 2, work_s + 600])
    return waves


KILLS = (("create", 8), ("create", 8), ("release", 6), ("commit", 60), ("other", 150))
"""Where a controller is killed, and up to which of those points: orders most of all, for they cost."""


def kills_of(seed: int) -> set[tuple[str, int]]:
    """At which of the points that it passes a controller of this seed is killed; a third of the seeds have none."""
    draw = random.Random(f"kills/{seed}")
    chosen = [draw.choice(KILLS) for _ in range(draw.choice([0, 1, 4]))]
    return {(kind, draw.randrange(1, most + 1)) for kind, most in chosen}


def new_home(folder: Path) -> Home:
    """A home with an empty database."""
    home = Home(folder)
    new_database(home)
    return home


class Case:
    """A home that rents, under the schedule of one seed."""

    def __init__(self, seed: int, folder: Path, calm_s: float = CALM_S) -> None:
        self.seed, self.calm_s = seed, calm_s
        self.draw = random.Random(f"case/{seed}")
        self.clock = VirtualClock()
        self.start_s = self.clock()
        self.fake = Fake(
            asks_of(seed), seed=seed, plan=plan_of(seed, self.start_s, calm_s), start_s=self.start_s, balance_usd=500.0,
            card=self.draw.random() < 0.7,
        )  # fmt: skip
        self.planted = [
            self.fake.plant(label, Ask(9_000 + place, 9_000 + place, gpu_usd_per_h=0.01)).id
            for place, label in enumerate((FOREIGN_LABEL, OTHER_HOME, None))
        ]
        self.home = new_home(folder)
        self.hosts = ScriptedHosts(seed, 0.15 if self.draw.random() < 0.5 else 0.0)
        self.deaths = Deaths(kills_of(seed))
        self.waves = waves_of(seed, calm_s)
        self.is_bid = bool(self.waves[0].want.request.wanted["is_interruptible"])
        self.is_rough = self.fake.plan.rates.drop > 0.0
        self.spent_by: dict[int, float] = {}
        self.known: set[int] = set()
        self.lives = 0
        self.session: MortalSession | None = None
        self._revive()

    def _revive(self) -> None:
        """A new process: nothing is left of the last one but the rows."""
        self.lives += 1
        if self.session is not None:
            self.session.close()
        MortalSession.deaths = self.deaths
        self.session = MortalSession(self.home.database, pid=self.lives, now=self.clock())
        jitter = random.Random(f"jitter/{self.seed}/{self.lives}").random
        api = VastApi(
            SecretStr(FULL_KEY), self.clock, jitter, was_asked_before=self.lives > 1,
            adapter=Wire(self.fake, self.clock),
        )  # fmt: skip
        provider = VastProvider(api, self.hosts, PUBLIC_KEY, self.clock)  # type: ignore[arg-type]
        self.renting = Renting(
            self.session, MortalMarket(provider, self.deaths, self._outbid), self.clock, self.clock, at_once
        )  # fmt: skip

    def _outbid(self, offer: Offer) -> None:
        """Now and then a machine has become dearer since it was found: a bid for it is refused, and leaves one."""
        if self.is_rough and self.is_bid and self.draw.random() < 0.25:
            self.fake.market.move_price(int(offer.machine), 1.3)

    def play(self) -> Played:
        """Until nothing is wanted and nothing is rented. Raises AssertionError for whatever must never be."""
        while not (all(wave.is_over for wave in self.waves) and self.renting.is_idle):
            assert self.clock() - self.start_s < self.calm_s + ENDS_S + self._latest_s(), (
                f"seed {self.seed}: it never ends: {self}"
            )
            self._round()
        self.fake.advance_to(self.clock.advance(1.0))
        return self._checked()

    def _latest_s(self) -> float:
        """What the last wave may begin, and be given up, later than the first."""
        return max(wave.from_s for wave in self.waves) + 7200.0

    def _round(self) -> None:
        before_s = self.clock()
        try:
            self.renting.step([wave.want for wave in self.waves if self._is_wanted(wave)])
            self._look()
            self._work(before_s)
        except Killed:
            self.clock.advance(self.draw.choice([0.2, 0.2, 30.0, 3600.0]))
            self._revive()
            return
        due_s = self.renting.next_due_s()
        ends_s = [self._event_s(wave) for wave in self.waves if not wave.is_over]
        self.clock.advance(max(0.05, min([due_s, *ends_s], default=self.clock()) - self.clock()))

    def _is_wanted(self, wave: Wave) -> bool:
        return not wave.is_over and self.clock() - self.start_s >= wave.from_s

    def _event_s(self, wave: Wave) -> float:
        """When the caller itself has something to do for a wave."""
        since_s = self.clock() - self.start_s
        if since_s < wave.from_s:
            return self.start_s + wave.from_s
        lease = self.renting.lease_of(wave.want.key)
        if lease is not None and lease.is_ready:
            return self.clock() + wave.work_s - wave.done_s
        return self.start_s + wave.until_s

    def _work(self, before_s: float) -> None:
        """What runs do: they use their time while their machine is ready, and say when they are done or give up."""
        for wave in self.waves:
            lease = self.renting.lease_of(wave.want.key)
            if wave.is_over:
                continue
            if lease is not None and lease.is_ready:
                # The round began when the last one ended; what was worked since counts.
                wave.done_s += self.clock() - max(self.spent_by.get(lease.id, self.clock()), 0.0)
                self.spent_by[lease.id] = self.clock()
                if wave.done_s >= wave.work_s:
                    self._bring_home(lease)
                    self.renting.release(lease.id, "its runs have ended and everything is home")
                    wave.is_over = True
            elif self.clock() - self.start_s > wave.until_s:
                wave.is_over = True
                if lease is not None and not lease.because:
                    self.renting.release(lease.id, "given up")

    def _bring_home(self, lease: Lease) -> None:
        number = int(lease.host)
        self.fake.advance_to(self.clock())
        if self.fake.world.instances[number].living:
            self.fake.world.move_bytes(number, up_bytes=2_000_000_000)
            self.renting.moved(lease.id, 2_000_000_000, 0)

    def _look(self) -> None:
        """What must hold at every moment."""
        for lease in self.renting.leases():
            if lease.id not in self.known:
                self.known.add(lease.id)
                most = self.waves[0].want.max_usd
                bound_usd = self.renting.bound_usd("study")
                assert most is None or bound_usd <= most + 0.02, f"seed {self.seed}: {bound_usd} of {most} USD bound"

    # ---- afterwards --------------------------------------------------------------------------------------------------

    def _checked(self) -> Played:
        fake, seed = self.fake, self.seed
        assert self.session is not None
        prefix = self.renting.prefix
        left = [one.id for one in fake.existing(prefix)]
        assert left == [], f"seed {seed}: still rented: {left}"
        assert fake.never_destroyed(prefix) == [], f"seed {seed}"
        assert fake.double_rents() == [], f"seed {seed}: two instances under one label: {fake.double_rents()}"
        assert self._doubles() == [], f"seed {seed}: two machines for one want: {self._doubles()}"
        fake.assert_clean()
        alive = {one.id for one in fake.existing()}
        touched = [
            one for one in fake.requests if one.method == "DELETE" and any(str(n) in one.path for n in self.planted)
        ]
        assert touched == [], f"seed {seed}: what is not ours was touched"
        assert fake.world.card is False or alive == set(self.planted), f"seed {seed}"
        leases = self.renting.leases()
        assert all(one.state is State.RELEASED and one.proof for one in leases)
        billed = {name: usd for name, usd in fake.usd_by_label().items() if name.startswith(prefix)}
        # A machine that was made without an answer that reached us, and destroyed by the provider (no balance, no card)
        # before any list had it: its number was never seen, so that nothing can be asked about it.
        unseen = {one.label for one in leases if not one.host}
        all_usd, unseen_usd = sum(billed.values()), sum(usd for name, usd in billed.items() if name in unseen)
        billed_usd = all_usd - unseen_usd
        assert unseen_usd == 0.0 or not fake.world.card, f"seed {seed}: {unseen_usd} USD unseen"
        self._settle_bill()
        leases = self.renting.leases()
        ours_usd = sum(one.bill.usd for one in leases)
        # The provider rounds each bill to a tenth of a cent.
        assert abs(ours_usd - billed_usd) <= 0.01 * billed_usd + 0.001 * len(billed), (
            f"seed {seed}: the bill is {billed_usd:.4f} USD, ours {ours_usd:.4f}"
        )
        doubt_usd = sum(one.meter.doubtful_s / 3600 * one.terms.prices.usd_per_h for one in leases)
        metered_usd = sum(one.bill.metered_usd for one in leases)
        # Our own meter may be off by what it says itself that nobody saw, and by half a look for each change that was
        # seen: those of a start, of a pause, of an end.
        rates = [one.terms.prices.usd_per_h / 3600 for one in leases if one.host]
        doubt_usd += sum(3 * SURE_GAP_S / 2 * rate for rate in rates)
        assert abs(metered_usd - billed_usd) <= 0.01 * billed_usd + doubt_usd, (
            f"seed {seed}: the bill is {billed_usd:.4f} USD, our meter says {metered_usd:.4f}, {doubt_usd:.4f} in doubt"
        )
        left_h, left_usd = self._left_afterwards(all_usd)
        assert (left_h, left_usd) == (0.0, 0.0), f"seed {seed}: {left_h} h and {left_usd} USD afterwards"
        self.session.close()
        return Played(
            seed=seed,
            rents=len(billed),
            deaths=self.deaths.died,
            finished=sum(wave.done_s >= wave.work_s for wave in self.waves),
            waves=len(self.waves),
            requests=len(fake.requests),
            billed_usd=billed_usd,
            ours_usd=ours_usd,
            metered_usd=metered_usd,
            unseen_usd=unseen_usd,
            left_machines=len(left),
            left_h=left_h,
            left_usd=left_usd,
            doubles=len(self._doubles()),
            virtual_h=(self.clock() - self.start_s) / 3600,
        )

    def _settle_bill(self) -> None:
        """Let the loop ask for what was charged, until it has asked for all of it twice."""
        for _ in range(2000):
            try:
                due_s = self.renting.next_due_s()
                if due_s == float("inf"):
                    return
                self.clock.advance(max(0.05, due_s - self.clock()))
                self.renting.step([])
            except Killed:
                self._revive()
        raise AssertionError(f"seed {self.seed}: the bill is asked for without end")

    def _left_afterwards(self, billed_usd: float) -> tuple[float, float]:
        """Instance-hours and USD of our machines in the day after everything was given back."""
        ended_s = self.clock()
        self.fake.advance_to(ended_s + 86400.0)
        after_usd = sum(usd for label, usd in self.fake.usd_by_label().items() if label.startswith(self.renting.prefix))
        living = self.fake.existing(self.renting.prefix)
        return len(living) * 24.0, after_usd - billed_usd

    def _doubles(self) -> list[str]:
        """Wants for which two machines lived at the same time."""
        want_of = {one.label: one.want for one in self.renting.leases()}
        spans: dict[str, list[tuple[float, float]]] = {}
        for instance in self.fake.world.instances.values():
            if instance.label in want_of:
                end_s = instance.gone_s if instance.gone_s is not None else float("inf")
                spans.setdefault(want_of[instance.label], []).append((instance.created_s, end_s))
        return [want for want, lived in spans.items() if _overlap(lived)]

    def __str__(self) -> str:
        rows = [f"{one.label} {one.state} {one.stage} because={one.because!r}" for one in self.renting.leases()]
        return f"{self.renting.waits()} {rows} due in {self.renting.next_due_s() - self.clock():.1f} s"


def _overlap(spans: list[tuple[float, float]]) -> bool:
    ordered = sorted(spans)
    return any(later[0] < earlier[1] for earlier, later in pairwise(ordered))


def play(seed: int, folder: Path, calm_s: float = CALM_S) -> Played:
    """Play the schedule of one seed in a new folder. Raises AssertionError for whatever must never be."""
    place = folder / f"seed-{seed}"
    try:
        # The HTTP library reads the whole environment for each request; none of it is meant here.
        with patch.dict(os.environ, clear=True):
            return Case(seed, place, calm_s).play()
    finally:
        shutil.rmtree(place, ignore_errors=True)
