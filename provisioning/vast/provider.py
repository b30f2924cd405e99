"""Machines rented at Vast.ai, as a place where a process can run.

Each verb is one exchange with the service, or one question to a host, and never sleeps or tries again. Besides what
their own lines say, verbs that ask the service raise RateLimited (`TooEarly`, with the seconds to wait) and
AuthenticationFailed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from provisioning.base import (
    Absent,
    Ambiguous,
    Handle,
    HostLost,
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
    Shell,
    Slot,
    SlotProbe,
    Unknown,
)
from provisioning.fitness import Fit, NotYet, Unfit
from provisioning.vast.account import money_left_usd
from provisioning.vast.api import DEFAULT_URL, Created, RefusedButCreated, VastApi
from provisioning.vast.asking import CreateRequest
from provisioning.vast.boot import boot_of
from provisioning.vast.errors import NoAnswer
from provisioning.vast.listing import Listed, ListReader
from provisioning.vast.models import Charge, Instance
from provisioning.vast.offers import as_offer, choose, explain, query
from provisioning.vast.prices import needed_s
from provisioning.vast.rented_hosts import RentedHosts
from provisioning.vast.switch import SwitchTimes, onstart
from provisioning.vast.wanted import Wanted

SETTLE_S = 60.0
"""A 404 is known to be said too early, and the list to lag by ten seconds and, rarely, more: a list counts as agreeing
with a 404 only when it is begun six times that later."""


@dataclass(frozen=True, slots=True)
class Strangers:
    """Instances that nobody here asked about: those under a label of our home, and everybody else's."""

    ours: tuple[Handle, ...]
    foreign: tuple[Handle, ...]


class VastProvider:
    """One account at Vast.ai. `release` may be called from another thread than the other verbs; the spacing of the
    service then lets nothing hold it up.

    `public_key` is the line that lets us into new instances. `url` is where an instance reaches the service.
    """

    name = "vast"

    def __init__(
        self,
        api: VastApi,
        hosts: RentedHosts,
        public_key: str,
        monotonic: Callable[[], float],
        *,
        url: str = DEFAULT_URL,
        times: SwitchTimes = SwitchTimes(),  # noqa: B008 (frozen)
    ) -> None:
        self._api = api
        self._hosts = hosts
        self._public_key = public_key
        self._monotonic = monotonic
        self._url = url
        self._times = times
        self._list = ListReader(api, monotonic)
        self._lets_us_in = False
        self._numbers: dict[str, str] = {}
        self._gone_since_s: dict[int, float] = {}
        self._proofs: dict[int, tuple[float, Released]] = {}
        self._bills = _Bills()

    # ---- money -------------------------------------------------------------------------------------------------------

    def hosts(self) -> tuple[Offer, ...]:
        """None: each machine must be rented first."""
        return ()

    def prepare(self) -> bool:
        """Let the account know our public key, one step at a time: call again until it is true. Only instances that are
        made afterwards let us in. Raises NoAnswer or CallRefused."""
        if not self._lets_us_in:
            known = {tuple(key.public_key.split()[:2]) for key in self._api.ssh_keys()}
            self._lets_us_in = tuple(self._public_key.split()[:2]) in known
            if not self._lets_us_in:
                self._api.add_ssh_key(self._public_key)
        return self._lets_us_in

    def offers(self, request: Request) -> tuple[Offer, ...]:
        """Machines that hold all slots of the request, best first; `request.wanted` is a Wanted as JSON.

        Raises ValueError for a wanted that cannot be read, NoCapacity that says what excluded each offer, or NoAnswer.
        """
        wanted = _wanted(request)
        choice = choose(self._api.search(query(wanted)).offers, wanted)
        if not choice.ranked:
            raise NoCapacity(explain(choice))
        offers = tuple(as_offer(one, wanted, needed_s(wanted)) for one in choice.ranked)
        enough = tuple(offer for offer in offers if offer.cores >= request.cpus)
        if not enough:
            most = max(offer.cores for offer in offers)
            raise NoCapacity(
                f"{len(offers)} offers fit but have fewer than {request.cpus} CPU cores; the most is {most}"
            )
        return enough

    def create(self, offer: Offer, label: str) -> Handle | Refused | Ambiguous:
        """Rent the offered machine. What may exist afterwards is in the answer; an error (SkipOffer when the offer is
        gone, RateLimited, no connection, `prepare` was not finished) always says that nothing was made. A label that
        has its machine gets no other."""
        if label in self._numbers:
            return self._handle(label, int(self._numbers[label]))
        if not self._lets_us_in:
            raise ProvisioningError("nothing was rented: the account does not know our public key; prepare() first")
        order = offer.order
        script = onstart(float(order["ttl_s"]), self._times)
        bid = order["bid_usd_per_h"]
        env = {} if self._url == DEFAULT_URL else {"VAST_URL": self._url}
        request = CreateRequest(order["image"], float(order["disk_gb"]), label, script, env, bid)
        try:
            made = self._api.create(int(offer.offer_id), request)
        except RateLimited:
            raise
        except ProvisioningError:
            self._list.restart()
            raise
        self._list.restart()
        if isinstance(made, Created):
            self._numbers[label] = str(made.instance_id)
            return self._handle(label, made.instance_id)
        if isinstance(made, RefusedButCreated):
            return Refused(made.reason, left=self._handle(label, made.instance_id))
        return made

    def observe(self, labels: Sequence[str]) -> Mapping[str, Observation]:
        """Read one page of the list, and say what it shows. Absent is said only by a complete list that was begun after
        the last create; until then, and when no answer comes, Unknown. Stages are those of provisioning/vast/boot.py.
        """
        try:
            listed = self._list.step()
        except NoAnswer as error:
            return {label: Unknown(str(error)) for label in labels}
        missing = Absent() if listed.is_complete else Unknown("the list has more pages")
        return {label: self._found(listed, label) or missing for label in labels}

    def duplicates(self, label: str, keep: str = "") -> tuple[Handle, ...]:
        """What lives under a label besides the instance `keep` ('' = the one that `observe` names), for release."""
        found = self._list.seen().under(label)
        kept = keep or self._kept([str(one.instance_id) for one in found], label)
        return tuple(self._handle(label, one.instance_id) for one in found if str(one.instance_id) != kept)

    def strangers(self, prefix: str, known: Collection[str]) -> Strangers | None:
        """What the last complete list holds besides the labels that are known. Ours are those whose label begins with
        the prefix (`armature/<home id>/`), for release; foreign ones are only to be shown. None before the first list.

        Raises ValueError for a prefix that names no home.
        """
        if prefix.count("/") != 2 or not prefix.endswith("/") or "//" in prefix or prefix.startswith("/"):
            raise ValueError(f"prefix {prefix!r}: allowed is armature/<home id>/")
        listed = self._list.latest()
        if listed is None:
            return None
        others = [self._handle(one.label, one.instance_id) for one in listed.living() if one.label not in known]
        ours = tuple(one for one in others if one.label.startswith(prefix))
        return Strangers(ours, tuple(one for one in others if not one.label.startswith(prefix)))

    def release(self, handle: Handle) -> Released:
        """Destroy the instance. Raises NotYetReleased until the service says that it has destroyed it, or says that
        there is none and a complete list, begun SETTLE_S later, agrees."""
        number = int(handle.host)
        if (known := self._proven(number)) is not None:
            return known
        since_s = self._gone_since_s.get(number)
        if since_s is not None and self._monotonic() >= since_s + SETTLE_S:
            return self._agreed(handle, number, since_s)
        destroyed = self._api.destroy(number)
        if destroyed.was_there:
            return self._released(handle, destroyed.proof)
        self._gone_since_s.setdefault(number, self._monotonic())
        raise NotYetReleased(f"instance {number}: {destroyed.proof}; a list that is read in {SETTLE_S:g} s must agree")

    def _agreed(self, handle: Handle, number: int, since_s: float) -> Released:
        """Read a page of the list that must agree with a 404, unless one that is new enough was read already."""
        listed = self._list.latest()
        if listed is None or listed.begun_s < since_s + SETTLE_S:
            try:
                listed = self._list.step()
            except NoAnswer as error:
                raise NotYetReleased(f"instance {number}: {error}") from None
        there = listed.instances.get(number)
        if there is not None and not there.is_unloaded:
            del self._gone_since_s[number]
            raise NotYetReleased(f"instance {number}: a 404 was said too early; the list still holds it")
        if not listed.is_complete or listed.begun_s < since_s + SETTLE_S:
            raise NotYetReleased(f"instance {number}: the list that must agree with a 404 has more pages")
        size, later_s = len(listed.instances), listed.begun_s - since_s
        proof = f"404, and a list of {size} that was begun {later_s:.0f} s later does not hold it"
        return self._released(handle, proof)

    def balance_usd(self) -> float:
        """The money left: the larger of balance and credit, for one may be a part of the other. Raises NoAnswer, also
        when the service says neither."""
        account = self._api.account()
        left_usd = money_left_usd(account)
        if left_usd is None:
            raise NoAnswer("account: the answer holds no balance")
        return left_usd

    def charges(self, handles: Sequence[Handle], from_time: float, to_time: float) -> Mapping[str, float] | None:
        """US dollars that the service billed for each label, of contracts that lived between two times (seconds since
        the epoch). Reads one page; None: there are more, call again. A label of which nothing was billed is not in it.
        """
        asked = (from_time, to_time)
        if self._bills.asked != asked:
            self._bills = _Bills(asked)
        page = self._api.charges(from_time, to_time, self._bills.after_token)
        self._bills = replace(self._bills, after_token=page.next_token, charges=(*self._bills.charges, *page.charges))
        if page.next_token is not None:
            return None
        bills, self._bills = self._bills, _Bills()
        labels = {int(one.host): one.label for one in handles}
        found: dict[str, float] = {}
        for charge in bills.charges:
            if charge.instance_id in labels and charge.amount_usd is not None:
                label = labels[charge.instance_id]
                found[label] = found.get(label, 0.0) + charge.amount_usd
        return found

    # ---- the host ----------------------------------------------------------------------------------------------------

    def inspect(self, handle: Handle, gpus: int) -> Fit | NotYet | Unfit:
        """One step towards knowing whether a reachable machine can be used: who it is (the fingerprint in its own log),
        an agent that answers, so many GPUs, and a switch that is armed. Call again after NotYet.

        After a restart it is not needed for a machine that was fit; it may be asked again, and should be when a machine
        stays lost: direct address and gateway then take turns. An attempt to reach it that fails cuts what is open."""
        return self._hosts.inspect(self._record(handle), gpus)

    def slots(self, handle: Handle, request: Request) -> tuple[Slot, ...]:
        """The machine cut into slots. Raises NoCapacity when not even one fits, HostLost when it does not answer."""
        return self._hosts.slots(self._record(handle), request)

    def probe(self, handle: Handle, slot: Slot, pids: Sequence[int] = ()) -> SlotProbe:
        """A look at a slot there. Raises HostLost when the machine does not answer."""
        return self._hosts.probe(self._record(handle), handle.label, slot, pids)

    def shell(self, handle: Handle) -> Shell:
        """A shell for the run folders of the home that the handle's label names. Raises HostLost while the machine has
        not been seen, or has no address. Closing it closes no connection."""
        return self._hosts.shell(self._record(handle), handle.label.split("/")[1])

    def extend(self, handle: Handle, ttl_s: float) -> None:
        """Let the machine live until so many seconds after its birth, when that is longer than now, and read it back.

        Raises HostLost when the machine does not answer, or keeps another number."""
        self._hosts.extend(self._record(handle), ttl_s)

    def close(self) -> None:
        """Close all connections; machines stay as they are."""
        self._hosts.close()

    def _record(self, handle: Handle) -> Instance:
        found = self._list.seen().instances.get(int(handle.host))
        if found is None:
            raise HostLost(f"instance {handle.host}: no list has shown it yet")
        return found

    def _found(self, listed: Listed, label: str) -> Present | None:
        living = {str(one.instance_id): one for one in listed.under(label)}
        if not living:
            return None
        host = self._kept(list(living), label)
        boot = boot_of(living[host])
        if len(living) == 1:
            return Present(boot.stage.value, host, boot.why)
        others = ", ".join(number for number in living if number != host)
        said = f"instances {host} and {others} live under one label"
        return Present(boot.stage.value, host, f"{said}; {boot.why}" if boot.why else said)

    def _kept(self, numbers: Sequence[str], label: str) -> str:
        """The one of several instances that a label stands for: that which create named, else the oldest."""
        named = self._numbers.get(label, "")
        return named if named in numbers or not numbers else numbers[0]

    def _handle(self, label: str, number: int) -> Handle:
        return Handle(self.name, label, str(number))

    def _released(self, handle: Handle, proof: str) -> Released:
        number = int(handle.host)
        self._gone_since_s.pop(number, None)
        if self._numbers.get(handle.label) == handle.host:
            del self._numbers[handle.label]
        self._hosts.forget(number)
        released = Released(f"instance {number}: {proof}")
        self._proofs[number] = (self._monotonic(), released)
        return released

    def _proven(self, number: int) -> Released | None:
        """The proof of an earlier release, unless a list that was begun well after it still holds the instance."""
        if number not in self._proofs:
            return None
        at_s, released = self._proofs[number]
        listed = self._list.latest()
        there = listed.instances.get(number) if listed is not None and listed.begun_s >= at_s + SETTLE_S else None
        return released if there is None or there.is_unloaded else None


@dataclass(frozen=True, slots=True)
class _Bills:
    """What was read so far of the bill for some span of time."""

    asked: tuple[float, float] | None = None
    after_token: str | None = None
    charges: tuple[Charge, ...] = ()


def _wanted(request: Request) -> Wanted:
    """All slots of a request on one machine. Raises ValueError for a wanted that cannot be read."""
    asked = Wanted.from_json(request.wanted)
    gpus = max(asked.gpus, (request.slots or 1) * max(1, request.gpus))
    return replace(asked, gpus=gpus, min_vram_gib=max(asked.min_vram_gib, request.min_vram_gib))
