"""One HTTP exchange with the service: bounded in time and size, and careful with the key.

The key goes into the Authorization header and nowhere else, and only to https hosts of the service's domain or to this
machine. No error keeps the exception of the HTTP library, whose request object holds that header, and nothing that came
back is repeated before the key and the other secrets of the call are taken out of it.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3
from pydantic import SecretStr
from requests.adapters import BaseAdapter
from requests.auth import AuthBase

from provisioning.vast.errors import NeverSent, NoAnswer

DOMAIN = "vast.ai"
MOST_ANSWER_BYTES = 16 * 2**20
"""A longer answer is none of the service's."""

_MOST_REDIRECTS = 3
_PIECE = 65536
_ORIGIN = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?")
_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for a connection, for each silence of the other side, and for the body of an answer altogether."""

    connect_s: float = 10.0
    read_s: float = 30.0
    body_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, text (secrets taken out, cut) and the parsed body; `is_json` is false when the body is not JSON."""

    status: int
    said: str
    body: Any = field(repr=False)
    is_json: bool = True

    def get(self, name: str) -> Any:
        """A field of the body, or None when there is no such field or the body is no object."""
        return self.body.get(name) if isinstance(self.body, Mapping) else None


class Wire:
    """Exchanges with one origin. `base` is like https://host[:port]. Raises ValueError for any other host than one of
    the service's domain over https or this machine, and for a key that no header can carry.

    `adapter` carries the requests in place of the library's own sockets.
    """

    def __init__(
        self,
        base: str,
        key: SecretStr,
        timeouts: Timeouts,
        monotonic: Callable[[], float],
        adapter: BaseAdapter | None = None,
    ) -> None:
        if not _KEY.fullmatch(key.get_secret_value()):
            raise ValueError("the Vast.ai key (VAST_API_KEY) is empty, or holds white space or other odd characters")
        self._origin = checked_origin(base)
        self._key = key
        self._timeouts = timeouts
        self._monotonic = monotonic
        self._adapter = adapter

    def exchange(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        hidden: Sequence[str] = (),
    ) -> Answer:
        """One request and its answer. `hidden` are more texts that no error may repeat.

        A redirect is followed only to the same path on an origin that may see the key, with the same method and body.
        Raises NeverSent when there was no connection, NoAnswer when nothing whole came back.
        """
        origin = self._origin
        for _ in range(_MOST_REDIRECTS + 1):
            got = self._once(method, origin, path, query, body)
            if isinstance(got, NoAnswer):
                raise got
            if got.status not in (301, 302, 307, 308):
                return _answer(got, (self._key, *map(SecretStr, hidden)))
            origin = _redirected(got.location, path, may_be_here=_is_loopback(origin))
        raise NoAnswer(f"{method} {path}: more than {_MOST_REDIRECTS} redirects")

    def fetch(self, url: str) -> str | None:
        """The text at an address that the service gave, asked for without the key; None while it is not there yet
        (403 or 404). Raises NoAnswer, also for an address that is neither https nor, when the service is, here."""
        if not _is_fetchable(url, may_be_here=_is_loopback(self._origin)):
            raise NoAnswer("the service gave an address for a log that is not https")
        got = self._once("GET", url, "", None, None, with_key=False)
        if isinstance(got, NoAnswer):
            raise got
        if got.status in (403, 404):
            return None
        if got.status != 200:
            raise NoAnswer(f"the log could not be fetched: status {got.status}")
        return got.data.decode(errors="replace").replace(self._key.get_secret_value(), "[hidden]")

    def _once(
        self,
        method: str,
        origin: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: Mapping[str, Any] | None,
        *,
        with_key: bool = True,
    ) -> _Raw | NoAnswer:
        """Errors are returned and not raised: one raised inside `except` would carry the library's, and so the key."""
        timeouts = (self._timeouts.connect_s, self._timeouts.read_s)
        with _Session() as session:
            # Proxies of the environment serve https only: there they carry what they cannot read.
            session.trust_env = urlsplit(origin).scheme == "https"
            session.headers["Accept-Encoding"] = "identity"
            if self._adapter is not None:
                session.mount(self._origin, self._adapter)
            try:
                with session.request(
                    method,
                    origin + path,
                    params={name: _in_query(value) for name, value in (query or {}).items()},
                    json=body,
                    # An own object even without the key, or the library would look for one in ~/.netrc.
                    auth=_Bearer(self._key if with_key else None),
                    timeout=timeouts,
                    allow_redirects=False,
                    stream=True,
                ) as response:
                    data = self._body(response)
                    return _Raw(response.status_code, response.headers.get("Location", ""), data)
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, EOFError, ValueError) as problem:
                kind = NeverSent if _never_sent(problem) else NoAnswer
                return kind(f"{method} {path or 'log'}: {_why(problem)}")

    def _body(self, response: requests.Response) -> bytes:
        data, until = bytearray(), self._monotonic() + self._timeouts.body_s
        # read1 gives what is there; read would wait for a full piece from a server that drips.
        while piece := response.raw.read1(_PIECE, decode_content=True):
            data += piece
            if len(data) > MOST_ANSWER_BYTES:
                raise ValueError(f"an answer of more than {MOST_ANSWER_BYTES:,} bytes")
            if self._monotonic() > until:
                raise TimeoutError(f"the answer took more than {self._timeouts.body_s:g} s")
        missing = getattr(response.raw, "length_remaining", None)
        if missing:
            raise EOFError(f"the answer ended {missing:,} bytes too early")
        return bytes(data)


class _Raw(NamedTuple):
    status: int
    location: str
    data: bytes


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """None: otherwise the library prepares the way and reads the whole body, even where it must not follow."""
        return None


class _Bearer(AuthBase):
    def __init__(self, key: SecretStr | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        return request


def checked_origin(base: str) -> str:
    """The origin without a trailing slash. Raises ValueError for one that must not see the key."""
    origin = base.strip().removesuffix("/")
    if not _ORIGIN.fullmatch(origin):
        raise ValueError("VAST_URL: allowed is https://<host> of vast.ai, or http://<this machine>:<port>; no path")
    parts = urlsplit(origin)
    host = (parts.hostname or "").lower()
    if parts.port == 0:
        raise ValueError("VAST_URL: there is no port 0")
    ours = parts.scheme == "https" and (host == DOMAIN or host.endswith(f".{DOMAIN}"))
    if not ours and not _is_loopback_host(host):
        raise ValueError(f"VAST_URL {origin}: the key is sent only to https hosts of {DOMAIN} or to this machine")
    return origin


def _is_fetchable(url: str, *, may_be_here: bool) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    is_here = parts.scheme == "http" and may_be_here and _is_loopback_host(host)
    return bool(host) and parts.username is None and (parts.scheme == "https" or is_here)


def _is_loopback(origin: str) -> bool:
    return _is_loopback_host(urlsplit(origin).hostname or "")


def _is_loopback_host(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _redirected(location: str, path: str, *, may_be_here: bool) -> str:
    """The origin that a redirect leads to. Raises NoAnswer when the key, or the call, must not go there."""
    problem = ""
    try:
        parts = urlsplit(location)
        origin = checked_origin(f"{parts.scheme}://{parts.netloc}")
        if parts.path != path:
            problem = "to another path"
        elif _is_loopback(origin) and not may_be_here:
            problem = "to this machine"
    except ValueError:
        problem = "to a place that must not see the key"
    if problem:
        raise NoAnswer(f"{path}: redirected {problem}")
    return origin


def _answer(got: _Raw, secrets: Sequence[SecretStr]) -> Answer:
    decoded = got.data.decode(errors="replace")
    try:
        body, is_json = json.loads(decoded, parse_constant=lambda _: None), True
    except (ValueError, RecursionError):
        body, is_json = None, False
    return Answer(got.status, readable(_reason(body) if is_json else decoded, secrets), body, is_json)


def _reason(body: Any) -> str:
    """What an answer says in whichever of its four fields, or a list of its field names."""
    if not isinstance(body, Mapping):
        return ""
    said = [body[name] for name in ("error", "msg", "message", "detail") if isinstance(body.get(name), str)]
    return ": ".join(dict.fromkeys(said))


def readable(said: str, secrets: Sequence[SecretStr]) -> str:
    """A foreign text for an error: secrets taken out, on one line, without control characters, at most 300 long."""
    for secret in secrets:
        # Shorter values are words of any text: without this an env value "1" would blot out every number.
        if len(secret) >= 4:
            said = said.replace(secret.get_secret_value(), "[hidden]")
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in said[:4096]).split())
    return line if len(line) <= 300 else line[:299] + "…"


def _in_query(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _never_sent(problem: Exception) -> bool:
    if isinstance(problem, requests.ConnectTimeout):
        return True
    inner = problem.args[0] if problem.args else None
    reason = getattr(inner, "reason", None)
    return isinstance(reason, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError)


def _why(problem: Exception) -> str:
    """The kind of failure only: texts of the HTTP library hold addresses and, for a bad header, its value."""
    if isinstance(problem, requests.Timeout | TimeoutError | urllib3.exceptions.TimeoutError):
        return f"no answer in time ({type(problem).__name__})"
    if type(problem) in (ValueError, EOFError):
        return str(problem)
    return f"the connection failed ({type(problem).__name__})"
