"""Which request goes wrong, and how: drawn from a seed and the request's number, or scripted by a test.

A plan never depends on the real time or on what was drawn before, so that a schedule can be repeated from its seed.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field

KINDS = (
    "none", "too_many_text", "too_many_json", "server_error", "drop", "malformed", "html", "empty", "refused",
    "not_found", "offer_gone",
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One mishap. `commit` says whether the request took effect before it; `status` is that of a server error."""

    kind: str = "none"
    commit: bool = False
    status: int = 502
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}; allowed: {', '.join(KINDS)}")


@dataclass(frozen=True)
class Rates:
    """Chances for each request (0-1, together at most 1) and for each instance, and how long things take at most.

    Nothing is drawn from `until_s` on (seconds since the fake's start), so that a schedule can end in calm.
    """

    too_many: float = 0.0
    server_error: float = 0.0  # half of them after the request took effect
    drop: float = 0.0  # the same
    malformed: float = 0.0  # the same, for malformed JSON, HTML and empty bodies
    destroy_false: float = 0.0  # 200 with success: false; nothing was destroyed
    destroy_404: float = 0.0  # half of them although nothing was destroyed
    offer_gone: float = 0.0  # somebody else took it between search and create
    slow: float = 0.0
    latency_max_s: float = 30.0
    list_lag_max_s: float = 0.0
    null_max_s: float = 0.0
    boot_max_s: float = 60.0
    boot_trouble: float = 0.0
    has_hosts: bool = False  # whether the machines are played, so that their own troubles may be drawn too
    offline: float = 0.0  # for each instance; half of them come back
    outbid: float = 0.0  # for each interruptible instance; half of them win again
    exit: float = 0.0
    no_balance: float = 0.0  # once for the account: its money is gone for a while
    expired_key: float = 0.0  # once for the account: its keys do not work for a while
    event_max_s: float = 6 * 3600.0
    until_s: float = float("inf")


@dataclass
class FaultPlan:
    """The mishaps of one seed, those that a test scripted, and spans in which nothing can be reached at all."""

    seed: int = 0
    rates: Rates = Rates()
    outages: list[tuple[float, float]] = field(default_factory=list)
    _scripted: dict[tuple[str, str], list[Fault]] = field(default_factory=lambda: defaultdict(list))

    def script(self, method: str, template: str, *faults: Fault) -> None:
        """The next requests of this route go wrong like this, in this order, whatever the seed says."""
        self._scripted[method, template] += faults

    def outage(self, from_s: float, to_s: float) -> None:
        """In this span (seconds since 1970) every connection is cut before anything is read."""
        self.outages.append((from_s, to_s))

    def draw(self, number: int, method: str, template: str, now_s: float, since_s: float) -> Fault:
        """The mishap of one request: its number, its route, the time and the time since the start (seconds)."""
        if any(start <= now_s < end for start, end in self.outages):
            return Fault("drop")
        if self._scripted.get((method, template)):
            return self._scripted[method, template].pop(0)
        if since_s >= self.rates.until_s:
            return Fault()
        return self._drawn(random.Random(f"request/{self.seed}/{number}"), method, template)

    def _drawn(self, draw: random.Random, method: str, template: str) -> Fault:
        rates = self.rates
        slow_s = draw.uniform(0.1, rates.latency_max_s) if draw.random() < rates.slow else 0.0
        commit = draw.random() < 0.5
        chances = [
            (rates.too_many, Fault(draw.choice(["too_many_text", "too_many_json"]), latency_s=slow_s)),
            (rates.server_error, Fault("server_error", commit, draw.choice([500, 502, 503, 504]), slow_s)),
            (rates.drop, Fault("drop", commit, latency_s=slow_s)),
            (rates.malformed, Fault(draw.choice(["malformed", "html", "empty"]), commit, latency_s=slow_s)),
        ]
        if method == "DELETE" and template == "/api/v0/instances/{id}/":
            chances.append((rates.destroy_false, Fault("refused", latency_s=slow_s)))
            chances.append((rates.destroy_404, Fault("not_found", commit, latency_s=slow_s)))
        if method == "PUT" and template == "/api/v0/asks/{id}/":
            chances.append((rates.offer_gone, Fault("offer_gone", latency_s=slow_s)))
        dice = draw.random()
        for chance, fault in chances:
            if dice < chance:
                return fault
            dice -= chance
        return Fault(latency_s=slow_s)

    def lags_s(self, instance_id: int) -> tuple[float, float]:
        """How far behind the list is for one instance, and how long it is shown as null after its creation."""
        draw = random.Random(f"lag/{self.seed}/{instance_id}")
        return draw.uniform(0, self.rates.list_lag_max_s), draw.uniform(0, self.rates.null_max_s)

    def loading(self, instance_id: int) -> tuple[float, str]:
        """How long an instance loads, and what is wrong with its start ("" mostly)."""
        draw = random.Random(f"boot/{self.seed}/{instance_id}")
        # The choice is from what needs no host of its own, so that a plan means the same over any endpoint.
        broken = ["loading_for_ever", "loading_error", "oci", "exits", "no_ports", "ssh_refused"]
        if self.rates.has_hosts:
            broken += ["ssh_hangs", "nvidia_smi_broken", "fewer_gpus"]
        trouble = draw.choice(broken) if draw.random() < self.rates.boot_trouble else ""
        return draw.uniform(1, max(1.0, self.rates.boot_max_s)), trouble

    def spells(self) -> list[tuple[str, float, float]]:
        """What befalls the account, as (event, from, to) in seconds since the fake's start."""
        draw, found = random.Random(f"account/{self.seed}"), []
        for chance, event in [(self.rates.no_balance, "no_balance"), (self.rates.expired_key, "expired_key")]:
            happens, from_s = draw.random() < chance, draw.uniform(0, self.rates.event_max_s)
            to_s = min(from_s + draw.uniform(60, self.rates.event_max_s), self.rates.until_s)
            if happens and from_s < to_s:
                found.append((event, from_s, to_s))
        return found

    def events_of(self, instance_id: int, is_bid: bool) -> list[tuple[float, str]]:
        """What befalls an instance, as (seconds after its creation, event)."""
        draw = random.Random(f"events/{self.seed}/{instance_id}")
        rates, found = self.rates, []
        for chance, event, remedy in [
            (rates.offline, draw.choice(["offline", "unknown"]), "back"),
            (rates.outbid if is_bid else 0.0, "outbid", "win"),
            (rates.exit, "exit", ""),
        ]:
            happens, mended = draw.random() < chance, draw.random() < 0.5
            at_s, later_s = draw.uniform(30, rates.event_max_s), draw.uniform(60, rates.event_max_s)
            if happens:
                found.append((at_s, event))
                if mended and remedy:
                    found.append((at_s + later_s, remedy))
        return found
