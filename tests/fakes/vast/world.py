"""All instances of the account on one time line: events happen in their order, and the ledger runs between them."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.fakes.vast.faults import FaultPlan
from tests.fakes.vast.ledger import Ledger, Line, usd_per_h
from tests.fakes.vast.machine import Boot, Endpoint, Instance, after, boot_events
from tests.fakes.vast.market import Market, Offer

KEPT_AFTER_END_S = 48 * 3600.0
ANY_EPOCH = -1
ACCOUNT = 0  # stands where an instance's number would for what befalls the account


@dataclass(frozen=True)
class Change:
    """An instance was other before this event than after it; time in seconds since 1970."""

    at_s: float
    event: str
    before: Instance | None
    after: Instance


@dataclass(frozen=True)
class Wish:
    """What a create asks for, beside the offer."""

    label: str | None = None
    image: str = ""
    onstart: str = ""
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    runtype: str = "ssh_direc ssh_proxy"
    disk_gb: float = 10.0
    price_usd_per_h: float | None = None  # a bid; None is on demand
    running: bool = True


def gateway(instance: Instance) -> Endpoint:
    """Where an instance is said to be when nobody made it a server: addresses reserved for documentation."""
    return Endpoint("ssh4.vast.ai", 10000 + instance.id % 50000, "192.0.2.7", 40000 + instance.id % 20000)


class World:
    """Instances, offers, money and time. Time moves only in `settle`; everything else happens at `now_s`."""

    def __init__(
        self,
        market: Market,
        plan: FaultPlan,
        now_s: float,
        balance_usd: float,
        endpoint: Callable[[Instance], Endpoint | None] = gateway,
        watch: Callable[[Change], None] = lambda change: None,
        card: bool = True,
    ) -> None:
        """Without a `card` on file an empty balance destroys what it would only stop."""
        self.card = card
        self.market, self.plan, self.now_s, self.balance_usd = market, plan, now_s, balance_usd
        self.start_s = now_s
        self.instances: dict[int, Instance] = {}
        self.ledger = Ledger()
        self.changes: list[Change] = []
        self.history: dict[int, list[Change]] = {}
        self.lost_gpus: set[int] = set()  # these wait for a GPU for ever when started again
        self.wanted_usd_per_h: dict[int, float] = {}  # price increases that hosts ask for
        self.boots: list[Boot] = []  # scripted starts: the next instances get these, in this order
        self.endpoint, self.watch = endpoint, watch  # may be set later, by who plays the machines
        self._numbers = itertools.count(20_000_001)
        self._order = itertools.count()
        self._events: list[tuple[float, int, int, str, int]] = []
        self._outbid: set[int] = set()
        self._broke = balance_usd <= 0
        self._withdrawn_usd = 0.0
        self.keys_expired = False
        for event, from_s, to_s in plan.spells():
            self.at(now_s + from_s, ACCOUNT, event)
            self.at(now_s + to_s, ACCOUNT, f"{event}_over")

    def living(self) -> list[Instance]:
        """Everything that exists now, by number."""
        return [instance for _, instance in sorted(self.instances.items()) if instance.living]

    def settle(self, to_s: float) -> None:
        """Let time pass, event by event. A time that is past already changes nothing."""
        while True:
            event_s = self._events[0][0] if self._events else float("inf")
            zero_s = self._zero_s()
            next_s = min(event_s, zero_s)
            if next_s > to_s:
                break
            self._accrue(next_s)
            if zero_s <= event_s:
                self._run_dry()
            else:
                _, _, number, event, epoch = heapq.heappop(self._events)
                if number == ACCOUNT:
                    self._befall(event)
                elif epoch in (ANY_EPOCH, self.instances[number].epoch):
                    self.happen(number, event)
        self._accrue(to_s)

    def create(self, offer: Offer, wish: Wish, ssh_keys: tuple[str, ...]) -> Instance:
        """A new contract on an offer that was taken; stopped when it was not to run."""
        number = next(self._numbers)
        loading_s, trouble = self.plan.loading(number)
        boot = self.boots.pop(0) if self.boots else Boot(loading_s=loading_s, trouble=trouble)
        gpu = offer.gpu_usd_per_h if wish.price_usd_per_h is None else wish.price_usd_per_h
        instance = Instance(
            id=number, label=wish.label, offer=offer, created_s=self.now_s, end_s=self.now_s + offer.duration_s,
            gpu_usd_per_h=gpu, storage_usd_per_h=offer.storage_usd_per_h(wish.disk_gb), disk_gb=wish.disk_gb,
            image=wish.image, onstart=wish.onstart, arguments=wish.arguments, environment=wish.environment,
            runtype=wish.runtype, is_bid=wish.price_usd_per_h is not None, ssh_keys=ssh_keys, boot=boot,
        )  # fmt: skip
        if not wish.running:
            instance = replace(
                instance, actual="stopped", intended="stopped", current="stopped", following="stopped",
                stopped_s=self.now_s,
            )  # fmt: skip
        self._keep("create", None, instance)
        self.ledger.lines[number] = Line()
        if wish.running:
            self._boot(instance, first=True)
        self.at(instance.end_s, number, "expire")
        self.at(instance.end_s + KEPT_AFTER_END_S, number, "destroy")
        for later_s, event in self.plan.events_of(number, instance.is_bid):
            self.at(self.now_s + later_s, number, event)
        return instance

    def at(self, at_s: float, number: int, event: str, epoch: int = ANY_EPOCH) -> None:
        """Let something befall an instance later; with an epoch, only if nothing interrupted it until then."""
        heapq.heappush(self._events, (at_s, next(self._order), number, event, epoch))

    def happen(self, number: int, event: str) -> Instance:
        """Let something befall an instance now. Raises KeyError for an instance that never was."""
        before = self.instances[number]
        if event == "outbid" and not (before.is_bid and before.intended == "running"):
            return before
        if event == "win" and number not in self._outbid:
            return before
        found = after(before, event, self.now_s)
        if found is before:
            return found
        if event == "outbid":
            self._outbid.add(number)
        elif event in ("stop", "no_balance", "win", "destroy"):
            self._outbid.discard(number)
        if event == "run":
            found = replace(found, endpoint=self._reached(found))
        self._keep(event, before, found)
        if event in ("start", "win", "restart", "back"):
            self._boot_again(found)
        if event == "destroy":
            self.market.free(found.offer, [held.offer for held in self.living()])
        return self.instances[number]

    def give_key(self, number: int, secret: str) -> None:
        """The API key that the container finds in its environment."""
        self.change(replace(self.instances[number], api_key=secret))

    def change(self, instance: Instance) -> None:
        """Put a changed record (label, keys, price) in the place of the one with its number."""
        self._keep("change", self.instances[instance.id], instance)

    def move_bytes(self, number: int, up_bytes: int = 0, down_bytes: int = 0) -> None:
        """Traffic out of and into an instance; billed at once. Raises ValueError when the instance is gone."""
        self.balance_usd -= self.ledger.traffic(self.instances[number], up_bytes, down_bytes)

    def top_up(self, usd: float) -> None:
        """Add to (or take from) the balance. What was stopped for want of it stays stopped."""
        self.balance_usd += usd
        if self.balance_usd > 0:
            self._broke = False

    def _boot(self, instance: Instance, first: bool) -> None:
        if instance.offer.unschedulable:
            return
        for at_s, event in boot_events(instance, first, self.now_s):
            self.at(at_s, instance.id, event, instance.epoch)

    def _boot_again(self, instance: Instance) -> None:
        heard = instance.actual not in ("offline", "unknown")
        if instance.intended == "running" and heard and instance.id not in self.lost_gpus:
            self._boot(instance, first=False)

    def _reached(self, instance: Instance) -> Endpoint | None:
        if "ssh" not in instance.runtype:
            return None  # with `args` the image's own entrypoint runs, and nothing listens
        if instance.boot.trouble == "ssh_refused":
            return Endpoint("127.0.0.1", 9, "127.0.0.1", 9)  # the discard port, where nobody listens
        return self.endpoint(instance)

    def _keep(self, event: str, before: Instance | None, instance: Instance) -> None:
        self.instances[instance.id] = instance
        change = Change(self.now_s, event, before, instance)
        self.changes.append(change)
        self.history.setdefault(instance.id, []).append(change)
        self.watch(change)

    def _zero_s(self) -> float:
        rate = sum(usd_per_h(instance) for instance in self.living())
        if self._broke or not self.living() or (rate <= 0 < self.balance_usd):
            return float("inf")
        return self.now_s if self.balance_usd <= 0 else self.now_s + self.balance_usd / rate * 3600

    def _run_dry(self) -> None:
        self._broke = True
        for instance in self.living():
            self.happen(instance.id, "no_balance" if self.card else "destroy")

    def _befall(self, event: str) -> None:
        """The account's own mishaps, and their ends."""
        if event == "no_balance":
            self._withdrawn_usd = max(0.0, self.balance_usd)
            self.top_up(-self._withdrawn_usd)
        elif event == "no_balance_over":
            self.top_up(self._withdrawn_usd)
        else:
            self.keys_expired = event == "expired_key"

    def _accrue(self, to_s: float) -> None:
        span_s = to_s - self.now_s
        if span_s <= 0:
            return
        for instance in self.living():
            self.balance_usd -= self.ledger.accrue(instance, span_s)
        self.now_s = to_s
