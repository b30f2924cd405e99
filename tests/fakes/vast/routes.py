"""The paths that exist, their published spacing in seconds, and what a key must be allowed to do for each."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{[a-z_]+\\\}", r"(\\d+)", re.escape(template)))


@dataclass(frozen=True)
class Route:
    """One method and path. `threshold_s` is the least time between two calls of one key, 0 where none is published."""

    method: str
    template: str
    verb: str
    scope: str
    threshold_s: float = 0.0
    penalty_s: float = 0.0  # how long a call that came too early closes the route

    def match(self, path: str) -> tuple[int, ...] | None:
        """The numbers in a path of this route; None when it is none."""
        found = _pattern(self.template).fullmatch(path)
        return None if found is None else tuple(int(part) for part in found.groups())


ROUTES = (
    Route("POST", "/api/v0/bundles/", "search", "misc"),
    Route("GET", "/api/v0/bundles/", "search_get", "misc", 2.0),
    Route("PUT", "/api/v0/search/asks/", "search_put", "misc"),
    Route("PUT", "/api/v0/asks/{id}/", "create", "misc", 4.5, 12.0),
    Route("GET", "/api/v1/instances/", "list", "instance_read", 1.0),
    Route("GET", "/api/v0/instances/", "old_list", "instance_read"),
    Route("GET", "/api/v0/instances/pending-price-increases/", "price_increases", "instance_read", 2.0),
    Route("GET", "/api/v0/instances/{id}/", "show", "instance_read", 2.0),
    Route("PUT", "/api/v0/instances/{id}/", "manage", "instance_write", 1.0),
    Route("DELETE", "/api/v0/instances/{id}/", "destroy", "instance_write", 3.0),
    Route("DELETE", "/api/v0/instances/", "destroy_many", "instance_write", 3.0),
    Route("PUT", "/api/v0/instances/reboot/{id}/", "reboot", "instance_write", 1.0),
    Route("PUT", "/api/v0/instances/bid_price/{id}/", "change_bid", "instance_write", 5.5),
    Route("PUT", "/api/v0/instances/request_logs/{id}/", "request_logs", "instance_read"),
    Route("GET", "/api/v0/instances/{id}/ssh/", "list_instance_keys", "instance_read"),
    Route("POST", "/api/v0/instances/{id}/ssh/", "add_instance_key", "instance_write"),
    Route("DELETE", "/api/v0/instances/{id}/ssh/{key_id}/", "drop_instance_key", "instance_write", 2.0),
    Route("GET", "/api/v0/ssh/", "list_keys", "user_read", 1.0),
    Route("POST", "/api/v0/ssh/", "add_key", "user_write", 1.0),
    Route("DELETE", "/api/v0/ssh/{id}/", "drop_key", "user_write", 1.0),
    Route("GET", "/api/v0/users/current/", "whoami", "user_read", 2.0),
    Route("GET", "/api/v0/charges/", "charges", "billing_read", 1.0),
)
# Known to exist, not modelled: a caller who needs one must build it here first.
NOT_MODELLED = (
    "/api/v0/launch_instance/", "/api/v0/asks/bulk/", "/api/v0/commands/", "/api/v0/invoices/", "/api/v1/invoices/",
    "/api/v0/instances/recycle/", "/api/v0/instances/command/", "/api/v0/instances/filters/",
)  # fmt: skip


def find(method: str, path: str) -> tuple[Route, tuple[int, ...]] | None:
    """The route of a request and the numbers in its path; None when there is none."""
    for route in ROUTES:
        if route.method == method and (numbers := route.match(path)) is not None:
            return route, numbers
    return None


@dataclass(frozen=True)
class Early:
    """A call that came too early: the route, the key's name, when (seconds since 1970), and by how much (seconds)."""

    route: str
    key: str
    at_s: float
    early_s: float


@dataclass
class Spacing:
    """The minimum interval of each route and key. `thresholds_s` sets those that are not published, by template."""

    thresholds_s: Mapping[str, float] = field(default_factory=dict)
    violations: list[Early] = field(default_factory=list)
    _open_s: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def threshold_s(self, route: Route) -> float:
        """The interval in force for a route."""
        return self.thresholds_s.get(route.template, route.threshold_s)

    def admit(self, route: Route, key: str, now_s: float) -> bool:
        """Whether a call may come now; one that may not is counted, and closes a route with a penalty for longer."""
        place = (route.method, route.template, key)
        opens_s = self._open_s.get(place, float("-inf"))
        if now_s < opens_s - 1e-6:
            self.violations.append(Early(f"{route.method} {route.template}", key, now_s, opens_s - now_s))
            self._open_s[place] = max(opens_s, now_s + route.penalty_s)
            return False
        self._open_s[place] = now_s + self.threshold_s(route)
        return True
