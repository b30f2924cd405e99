"""The REST interface of Vast.ai: the only file with addresses and routes.

Every verb is one exchange: it never sleeps and never retries. A call that comes too early is not sent and raises
TooEarly with the seconds to wait; the loop of the caller comes again. Statuses alone prove little: an answer counts
only as JSON that does not say `success: false`, so that no page of a proxy is ever taken for "destroyed".
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import SecretStr
from requests.adapters import BaseAdapter

from provisioning.base import Ambiguous, AuthenticationFailed, NotYetReleased, Refused, SkipOffer
from provisioning.vast.asking import CreateRequest, OfferQuery
from provisioning.vast.errors import CallRefused, NeverSent, NoAnswer, TooEarly
from provisioning.vast.models import (
    Account,
    Charge,
    ChargePage,
    Instance,
    InstancePage,
    Offer,
    Offers,
    SshKey,
    read_record,
    read_records,
    whole,
)
from provisioning.vast.spacing import Route, Spacing
from provisioning.vast.wire import Answer, Timeouts, Wire

DEFAULT_URL = "https://console.vast.ai"
PAGE = 25
"""Instances on a page of the list, the most that the service gives."""

SEARCH = Route("POST", "/api/v0/bundles/")
CREATE = Route("PUT", "/api/v0/asks/{id}/", 4.5, penalty_s=12.0)
LIST = Route("GET", "/api/v1/instances/", 1.0)
SHOW = Route("GET", "/api/v0/instances/{id}/", 2.0)
MANAGE = Route("PUT", "/api/v0/instances/{id}/", 1.0)
DESTROY = Route("DELETE", "/api/v0/instances/{id}/", 3.0)
REQUEST_LOGS = Route("PUT", "/api/v0/instances/request_logs/{id}/")
ACCOUNT = Route("GET", "/api/v0/users/current/", 2.0)
SSH_KEYS = Route("GET", "/api/v0/ssh/", 1.0)
ADD_SSH_KEY = Route("POST", "/api/v0/ssh/", 1.0)
CHARGES = Route("GET", "/api/v0/charges/", 1.0)
LOG = Route("GET", "log")

Got = TypeVar("Got", Answer, str | None)

_GONE = re.compile(r"no.such.instance|\binstance\b.*(not.found|does not exist)", re.IGNORECASE)
_OFFER_GONE = re.compile(r"no_such_ask|no longer available|is not available", re.IGNORECASE)
_SESSION_OVER = re.compile(r"session expired|log in again", re.IGNORECASE)
_NOT_OURS = re.compile(r"not your own", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Created:
    """The service made this instance; it is paid for from now on."""

    instance_id: int


@dataclass(frozen=True, slots=True)
class RefusedButCreated:
    """The service said no and made an instance all the same (a bid too low does that): it must be destroyed."""

    instance_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Destroyed:
    """The service says that the instance is gone; `proof` is its words.

    `was_there` is false for a 404, which it is known to say too early: then a complete list must agree before it is
    believed.
    """

    proof: str
    was_there: bool


class VastApi:
    """One account's view of the service. May be shared by threads; one object a process, or the spacing is not kept.

    `monotonic` is a clock that never runs backwards; `jitter` gives numbers from 0 to 1. `was_asked_before`: another
    process may have called a moment ago, so every route waits its interval first. `adapter` carries the requests in
    place of sockets. Raises ValueError for an address
    that must not see the key, and for a key that no header can carry.
    """

    def __init__(
        self,
        key: SecretStr,
        monotonic: Callable[[], float],
        jitter: Callable[[], float],
        *,
        url: str = DEFAULT_URL,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 (frozen)
        was_asked_before: bool = False,
        adapter: BaseAdapter | None = None,
    ) -> None:
        self._wire = Wire(url, key, timeouts, monotonic, adapter)
        self._monotonic = monotonic
        self._spacing = Spacing(jitter, monotonic() if was_asked_before else None)
        self._lock = threading.Lock()

    def wait_s(self, route: Route) -> float:
        """Seconds until a route may be asked; 0 = now. Another thread may be faster."""
        with self._lock:
            return self._spacing.wait_s(route, self._monotonic())

    def search(self, query: OfferQuery) -> Offers:
        """Offers that match, cheapest first as the service sorts them."""
        answer = self._read(SEARCH, body=query.to_wire())
        return Offers(*read_records(Offer, _list(SEARCH, answer, "offers")))

    def create(self, offer_id: int, request: CreateRequest) -> Created | RefusedButCreated | Refused | Ambiguous:
        """Rent an offer. Raises SkipOffer when it is gone, NeverSent when there was no connection.

        Ambiguous: something may exist under the label of the request, or appear there a little later.
        """
        hidden = [value for value in request.env.values() if value]
        try:
            answer = self._ask(CREATE, offer_id, body=request.to_wire(), hidden=hidden)
        except NeverSent:
            raise
        except NoAnswer as error:
            return Ambiguous(str(error))
        return _created(answer, offer_id)

    def instances(self, after_token: str | None = None, labels: Sequence[str | None] = ()) -> InstancePage:
        """One page of all instances, or of those with one of these labels (None = without one).

        Raises NoAnswer when any record cannot be read: an instance that is left out would look destroyed.
        """
        query: dict[str, Any] = {"limit": PAGE}
        if after_token is not None:
            query["after_token"] = after_token
        if labels:
            query["select_filters"] = {"label": {"in": list(labels)}}
        answer = self._read(LIST, query=query)
        found, unreadable = read_records(Instance, _list(LIST, answer, "instances", may_be_null=True))
        token = answer.get("next_token")
        says_more = whole(answer.get("instances_found")) or 0
        if unreadable:
            raise NoAnswer(f"list: {unreadable} of {unreadable + len(found)} instances cannot be read")
        if not (token is None or isinstance(token, str)) or (not found and says_more):
            raise NoAnswer("list: the page contradicts itself")
        return InstancePage(found, token or None)

    def instance(self, instance_id: int) -> Instance | None:
        """One instance, or None when the service shows none: proof of nothing in the moments after a create."""
        answer = self._ask(SHOW, instance_id, query={"owner": "me"})
        if answer.status == 404 and _is_gone(answer):
            return None
        _checked(SHOW, answer, instance_id)
        if not isinstance(answer.body, Mapping) or "instances" not in answer.body:
            raise NoAnswer(f"show {instance_id}: the answer holds no instance")
        record = answer.get("instances")
        if isinstance(record, list) and len(record) <= 1:
            record = record[0] if record else None
        if record is None:
            return None
        found = read_record(Instance, record)
        if found is None or found.instance_id != instance_id:
            raise NoAnswer(f"show {instance_id}: the answer is about something else")
        return found

    def destroy(self, instance_id: int) -> Destroyed:
        """Give an instance back for good. Raises NotYetReleased for every answer that is no proof.

        Its route is a lane of its own in the spacing: nothing else that is asked can hold it up.
        """
        try:
            answer = self._ask(DESTROY, instance_id, body={})
            if answer.status == 404 and _is_gone(answer):
                return Destroyed(f"404: {answer.said}", was_there=False)
            _checked(DESTROY, answer, instance_id)
        except (NoAnswer, CallRefused) as error:
            raise NotYetReleased(f"instance {instance_id}: {error}") from None
        if answer.get("success") is not True:
            raise NotYetReleased(f"instance {instance_id}: the answer does not say that it is destroyed")
        return Destroyed(f"{answer.status}: {answer.said or 'success'}", was_there=True)

    def start(self, instance_id: int) -> None:
        """Ask for a stopped instance to run again; whether it can is another matter."""
        self._manage(instance_id, {"state": "running"})

    def stop(self, instance_id: int) -> None:
        """Stop the container; its disk stays and is paid for."""
        self._manage(instance_id, {"state": "stopped"})

    def account(self) -> Account:
        """Whose key this is and how much money is left."""
        found = read_record(Account, self._read(ACCOUNT).body)
        if found is None:
            raise NoAnswer("account: the answer holds no account")
        return found

    def ssh_keys(self) -> tuple[SshKey, ...]:
        """The public keys of the account; those without text are left out."""
        answer = self._read(SSH_KEYS)
        values = answer.body if isinstance(answer.body, list) else _list(SSH_KEYS, answer, "ssh_keys", "keys")
        return tuple(key for key in read_records(SshKey, values)[0] if key.public_key)

    def add_ssh_key(self, public_key: str) -> None:
        """Let the owner of this key into instances that are made from now on."""
        if "PRIVATE KEY" in public_key or "\n" in public_key.strip():
            raise ValueError("allowed is one public key on one line")
        self._succeed(ADD_SSH_KEY, None, {"ssh_key": public_key.strip()})

    def charges(self, from_time: float, to_time: float, after_token: str | None = None) -> ChargePage:
        """One page of what was billed between two days (seconds since the epoch), volumes and instances."""
        query: dict[str, Any] = {"select_filters": {"day": {"gte": int(from_time), "lte": int(to_time)}}, "limit": 500}
        if after_token is not None:
            query["after_token"] = after_token
        answer = self._read(CHARGES, query=query)
        found, unreadable = read_records(Charge, _list(CHARGES, answer, "results", "charges"))
        if unreadable:
            raise NoAnswer(f"charges: {unreadable} rows cannot be read")
        token = answer.get("next_token")
        return ChargePage(found, token if isinstance(token, str) and token else None)

    def request_log(self, instance_id: int, lines: int = 1000) -> str:
        """Ask for the end of an instance's log; returns the address where it will be, for `log`."""
        answer = self._succeed(REQUEST_LOGS, instance_id, {"tail": str(lines)})
        url = answer.get("result_url")
        if not isinstance(url, str) or not url:
            raise NoAnswer(f"log of {instance_id}: the answer names no address")
        return url

    def log(self, url: str) -> str | None:
        """A log that was asked for, None while it is not there. Foreign text; asked for without the key."""
        return self._spaced(LOG, lambda: self._wire.fetch(url))

    def _manage(self, instance_id: int, change: Mapping[str, Any]) -> None:
        self._succeed(MANAGE, instance_id, change)

    def _succeed(self, route: Route, number: int | None, body: Mapping[str, Any]) -> Answer:
        answer = _checked(route, self._ask(route, number, body=body), number)
        if answer.get("success") is not True:
            raise NoAnswer(f"{_name(route, number)}: the answer does not say that it succeeded")
        return answer

    def _read(
        self, route: Route, query: Mapping[str, Any] | None = None, body: Mapping[str, Any] | None = None
    ) -> Answer:
        return _checked(route, self._ask(route, None, query=query, body=body))

    def _ask(
        self,
        route: Route,
        number: int | None,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        hidden: Sequence[str] = (),
    ) -> Answer:
        """One exchange in its lane. Raises TooEarly, AuthenticationFailed, NoAnswer; a refusal is an answer here."""
        path = _path(route, number)
        answer = self._spaced(
            route, lambda: self._wire.exchange(route.method, path, query=query, body=body, hidden=hidden)
        )
        if whole(answer.get("new_contract")) is None and _is_about_the_key(answer):
            raise AuthenticationFailed(
                f"{_name(route)}: the Vast.ai key is wrong, expired or may not do this ({answer.status}): {answer.said}"
            )
        return answer

    def _spaced(self, route: Route, call: Callable[[], Got]) -> Got:
        """Carry out one call in its lane. Raises TooEarly when it is not its turn, or when the answer says so."""
        with self._lock:
            now_s = self._monotonic()
            wait_s = self._spacing.wait_s(route, now_s)
            if wait_s > 0.0:
                raise TooEarly(_name(route), wait_s, was_sent=False)
            self._spacing.begin(route, now_s)
        slow_down: Answer | None = None
        try:
            got = call()
            slow_down = got if isinstance(got, Answer) and got.status == 429 else None
        finally:
            with self._lock:
                if slow_down is None:
                    self._spacing.end(route, self._monotonic())
                else:
                    wait_s = self._spacing.refused(route, self._monotonic(), slow_down.said)
        if slow_down is not None and whole(slow_down.get("new_contract")) is None:
            raise TooEarly(f"{_name(route)} ({slow_down.said})", wait_s, was_sent=True)
        return got


def _created(answer: Answer, offer_id: int) -> Created | RefusedButCreated | Refused | Ambiguous:
    """What a create's answer means. A `new_contract` costs money whatever else the answer says."""
    made = whole(answer.get("new_contract"))
    is_fine = 200 <= answer.status < 300
    says_yes = is_fine and not _says_no(answer)
    if made is not None and made > 0:
        return Created(made) if says_yes else RefusedButCreated(made, f"{answer.status}: {answer.said}")
    understood = isinstance(answer.body, Mapping)
    if understood and (answer.status in (404, 410) or (_says_no(answer) and _OFFER_GONE.search(answer.said))):
        raise SkipOffer(f"offer {offer_id} is gone ({answer.status}): {answer.said}")
    is_definite = 400 <= answer.status < 500 and answer.status not in (408, 425)
    if understood and (is_definite or (is_fine and _says_no(answer))):
        return Refused(f"{answer.status}: {answer.said or 'without a reason'}")
    return Ambiguous(f"offer {offer_id}: status {answer.status}, and no instance is named: {answer.said}")


def _checked(route: Route, answer: Answer, number: int | None = None) -> Answer:
    """The answer if it says yes. Raises CallRefused for a no, NoAnswer for what the service itself did not say."""
    name = _name(route, number)
    if not isinstance(answer.body, Mapping | list):
        raise NoAnswer(f"{name}: status {answer.status} with a body that is not JSON: {answer.said or 'empty'}")
    if 400 <= answer.status < 500 and answer.status not in (408, 425):
        raise CallRefused(name, answer.status, answer.said)
    if not 200 <= answer.status < 300:
        raise NoAnswer(f"{name}: status {answer.status}: {answer.said}")
    if _says_no(answer):
        raise CallRefused(name, answer.status, answer.said)
    return answer


def _says_no(answer: Answer) -> bool:
    """Whether `success` is there and anything but true."""
    said = answer.get("success")
    return said is not None and said is not True


def _is_gone(answer: Answer) -> bool:
    """Whether a 404 is the service's own word that there is no such instance, and not one for an unknown address."""
    return answer.get("error") == "not_found" or (
        isinstance(answer.body, Mapping) and _GONE.search(answer.said) is not None
    )


def _is_about_the_key(answer: Answer) -> bool:
    """A refusal of the key itself. A 403 about somebody else's instance is none, nor is the page of a proxy."""
    if answer.status == 401 or (answer.status == 404 and _SESSION_OVER.search(answer.said)):
        return True
    return answer.status == 403 and isinstance(answer.body, Mapping) and not _NOT_OURS.search(answer.said)


def _list(route: Route, answer: Answer, *names: str, may_be_null: bool = False) -> list[Any]:
    """The list under the first of these names. Raises NoAnswer when there is none."""
    for name in names:
        found = answer.get(name)
        if isinstance(found, list):
            return found
        if may_be_null and found is None and isinstance(answer.body, Mapping) and name in answer.body:
            return []
    raise NoAnswer(f"{_name(route)}: the answer holds no list {' or '.join(names)}")


def _name(route: Route, number: int | None = None) -> str:
    return f"{route.method} {route.template if number is None else _path(route, number)}"


def _path(route: Route, number: int | None) -> str:
    return route.template if number is None else route.template.replace("{id}", str(int(number)))
