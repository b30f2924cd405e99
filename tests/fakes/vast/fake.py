"""The whole fake as one plain object: requests in, answers out, and the questions that a test asks afterwards."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from tests.fakes.vast import verbs_account, verbs_instances, verbs_market
from tests.fakes.vast.account import FULL_KEY, Account, ApiKey
from tests.fakes.vast.answers import HTML, JSON, TEXT, Answer, Shapes, refused, said, too_many
from tests.fakes.vast.call import Call, document_of
from tests.fakes.vast.clock import START_S
from tests.fakes.vast.faults import Fault, FaultPlan
from tests.fakes.vast.machine import Endpoint, Instance
from tests.fakes.vast.market import Market, Offer
from tests.fakes.vast.routes import Early, Route, Spacing, find
from tests.fakes.vast.strict import breaches
from tests.fakes.vast.world import Change, Wish, World, gateway

VERBS: dict[str, Callable[[Fake, Call], Answer]] = {
    **verbs_account.VERBS, **verbs_instances.VERBS, **verbs_market.VERBS
}  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """One request as it arrived and what became of it: `status` 0 is a connection that was cut. Holds no API key."""

    number: int
    at_s: float
    method: str
    path: str
    template: str
    key: str
    body: bytes
    status: int
    fault: Fault


class Fake:
    """One account at one provider. `market` and `world` are open to a test: prices, events, money, traffic."""

    def __init__(
        self,
        offers: Iterable[Offer] = (),
        *,
        seed: int = 0,
        plan: FaultPlan | None = None,
        start_s: float = START_S,
        balance_usd: float = 100.0,
        card: bool = True,
        endpoint: Callable[[Instance], Endpoint | None] = gateway,
        watch: Callable[[Change], None] = lambda change: None,
        shapes: Shapes | None = None,
        thresholds_s: Mapping[str, float] | None = None,
    ) -> None:
        """`endpoint` says where an instance that begins to run is reached; `watch` hears of every change at once.

        `thresholds_s` sets, by template, minimum intervals that are not published (seconds).
        """
        self.seed = seed
        self.plan = plan or FaultPlan(seed)
        self.shapes = shapes or Shapes.of_seed(seed)
        self.market = Market(offers)
        self.world = World(self.market, self.plan, start_s, balance_usd, endpoint, watch, card)
        self.account = Account()
        self.spacing = Spacing(thresholds_s or {})
        self.requests: list[Seen] = []
        self.breaches: list[str] = []
        self.logs: dict[int, list[str]] = {}
        self.container_log: Callable[[int], list[str]] = lambda number: []  # set by who plays the machines
        self.log_requests: dict[str, tuple[int, float, int, str]] = {}
        self.base_url = "https://console.vast.ai"
        self.lock = threading.RLock()

    def handle(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes,
        now_s: float,
    ) -> Answer:
        """Answer one request at a time (seconds since 1970; one that is past already counts as now)."""
        with self.lock:
            self.world.settle(now_s)
            return self._handled(method, path, query, {name.lower(): text for name, text in headers.items()}, body)

    def _handled(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes
    ) -> Answer:
        now_s = self.world.now_s
        if method == "GET" and path.startswith("/_logs/"):
            return verbs_instances.log_text(self, path.removeprefix("/_logs/"))
        found = find(method, path)
        route, numbers = found or (None, ())
        document = document_of(body)
        self.breaches += breaches(route, method, path, query, headers, document)
        key = self.account.keys.get(headers.get("authorization", "").removeprefix("Bearer "))
        template = route.template if route else ""
        fault = self.plan.draw(len(self.requests), method, template, now_s, now_s - self.world.start_s)
        if route is None:
            answer = refused(404, "not_found", f"no such path: {method} {path}")
        else:
            call = Call(route, numbers, query, document, key)
            answer = self._with_fault(call, fault, "authorization" in headers)
        status = 0 if answer.dropped else answer.status
        name = key.name if key else ""
        self.requests.append(Seen(len(self.requests), now_s, method, path, template, name, body, status, fault))
        return replace(answer, latency_s=fault.latency_s)

    def _with_fault(self, call: Call, fault: Fault, has_header: bool) -> Answer:
        """Spacing counts for every call that was sent, also for one whose connection is cut."""
        route, key = call.route, call.key
        early = not self.spacing.admit(route, key.name if key else "anonymous", self.world.now_s)
        if fault.kind == "drop" and not fault.commit:
            return Answer(0, {}, b"", dropped=True)
        if early:
            return too_many(self.spacing.threshold_s(route), as_text=len(self.requests) % 2 == 0)
        denied = self._denied(route, key, call.numbers, has_header)
        if denied is not None:
            return denied
        if fault.kind == "none":
            return VERBS[route.verb](self, call)
        if fault.commit:
            VERBS[route.verb](self, call)
        return self._failing(call, fault)

    def _denied(self, route: Route, key: ApiKey | None, numbers: tuple[int, ...], has_header: bool) -> Answer | None:
        if key is None:
            if route.verb == "charges":  # this route is published with its own two forms
                return refused(404 if has_header else 403, "auth_error", "Invalid user key")
            return self._unauthorized()
        if key.expired or (self.world.keys_expired and key.only_instance is None):
            if self.shapes.expired_status == 404:
                return refused(404, "auth_error", "Session expired. Please log in again.")
            return self._unauthorized()
        if not key.may(route.scope, numbers):
            return refused(403, "not_authorized", f"this key may not: {route.scope}")
        return None

    def _unauthorized(self) -> Answer:
        if self.shapes.unauthorized_is_empty:
            return Answer(401, TEXT, b"")
        return refused(401, "auth_error", "Invalid user key", self.shapes)

    def _failing(self, call: Call, fault: Fault) -> Answer:
        if fault.kind in ("too_many_text", "too_many_json"):
            return too_many(self.spacing.threshold_s(call.route) or None, fault.kind == "too_many_text")
        if fault.kind == "server_error":
            return Answer(fault.status, HTML, f"<html><h1>{fault.status}</h1></html>".encode())
        if fault.kind == "malformed":
            return Answer(200, JSON, b'{"success": true, "instances": [{"id": 2')
        if fault.kind == "html":
            return Answer(200, HTML, b"<!doctype html><title>Vast.ai</title>")
        if fault.kind == "empty":
            return Answer(200, JSON, b"")
        if fault.kind == "refused":
            return said({"success": False, self.shapes.message_name: "please try again"})
        if fault.kind == "not_found":
            return refused(404, self.shapes.destroyed_error, "instance not found", self.shapes)
        if fault.kind == "offer_gone":
            self.market.take(call.numbers[0])
            return verbs_market.gone(self, call.numbers[0])
        return Answer(0, {}, b"", dropped=True)

    # What a test does to the account.

    def advance_to(self, now_s: float) -> None:
        """Let time pass without a request (seconds since 1970)."""
        with self.lock:
            self.world.settle(now_s)

    def plant(self, label: str | None, offer: Offer | None = None) -> Instance:
        """An instance that nobody asked us for: another person's, or another home's. It starts to run at once."""
        with self.lock:
            number = 9_000_000 + len(self.world.instances)
            mine = offer or Offer(ask_id=number, machine_id=number, gpu_ids=(0,))
            self.market.take(mine.ask_id)
            return self.world.create(mine, Wish(label, "planted/image:1"), ())

    def expire_key(self, secret: str = FULL_KEY, expired: bool = True) -> None:
        """Let a key run out, or work again. Keys inside containers are not touched."""
        self.account.keys[secret].expired = expired

    def container_environment(self, number: int) -> dict[str, str]:
        """What a process inside an instance finds: its number and a key that reaches this instance only."""
        return {"CONTAINER_ID": str(number), "CONTAINER_API_KEY": self.world.instances[number].api_key}

    # What a test asks afterwards.

    def existing(self, prefix: str = "") -> list[Instance]:
        """The instances that exist now, planted ones too, whose label starts like this."""
        return [each for each in self.world.living() if (each.label or "").startswith(prefix)]

    def never_destroyed(self, prefix: str = "armature/") -> list[int]:
        """Numbers of instances, so labelled at their creation, that nothing has ever ended."""
        return [
            number for number, instance in self.world.instances.items()
            if instance.living and (self._first_label(number) or "").startswith(prefix)
        ]  # fmt: skip

    def seconds_by_label(self) -> dict[str, float]:
        """How long instances have existed, added up for each label they were created with, in seconds."""
        found: dict[str, float] = {}
        for number, line in self.world.ledger.lines.items():
            label = self._first_label(number) or ""
            found[label] = found.get(label, 0.0) + line.exists_s
        return found

    def usd_by_label(self) -> dict[str, float]:
        """The bill so far for each label."""
        found: dict[str, float] = {}
        for number, line in self.world.ledger.lines.items():
            label = self._first_label(number) or ""
            found[label] = found.get(label, 0.0) + line.usd
        return found

    def double_rents(self) -> list[str]:
        """Labels of which two instances lived at the same time, at any time so far. None counts as no label."""
        spans: dict[str, list[tuple[float, float]]] = {}
        for number, instance in self.world.instances.items():
            label = self._first_label(number)
            if label is not None:
                end_s = instance.gone_s if instance.gone_s is not None else float("inf")
                spans.setdefault(label, []).append((instance.created_s, end_s))
        return sorted(label for label, lived in spans.items() if _overlap(lived))

    def spacing_violations(self) -> list[Early]:
        """Calls that came sooner than the published interval allows."""
        return self.spacing.violations

    def counts(self) -> Counter[str]:
        """How often each route was asked for."""
        return Counter(f"{seen.method} {seen.template or seen.path}" for seen in self.requests)

    def assert_clean(self) -> None:
        """Raise AssertionError naming every breach of form and spacing so far."""
        early = [f"{each.route}: {each.early_s:.3f} s too early" for each in self.spacing.violations]
        wrong = [*self.breaches, *early]
        assert not wrong, "\n".join(wrong)

    def _first_label(self, number: int) -> str | None:
        return self.world.history[number][0].after.label


def _overlap(spans: list[tuple[float, float]]) -> bool:
    ordered = sorted(spans)
    return any(later[0] < earlier[1] for earlier, later in pairwise(ordered))
