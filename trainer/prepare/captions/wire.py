"""One HTTP exchange with a caption server: bounded in time and size, and careful with the key.

The key goes to the one address that was given: no redirect is followed, no proxy of the environment reads it, and no
error keeps an exception of the HTTP library, whose request holds it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import requests
import urllib3
from requests.auth import AuthBase
from urllib3.util.retry import Retry

from trainer.prepare.captions.address import Key

MOST_ANSWER_BYTES = 2**20
_MOST_SAID = 300
_PIECE = 65536


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `said` is readable text for an error; `body` is None where the answer was no JSON object.

    `wait_s` is what the server asks us to wait before the next question, None if it does not say.
    """

    status: int
    said: str
    body: Mapping[str, Any] | None = field(repr=False)
    wait_s: float | None = None


@dataclass(frozen=True, slots=True)
class NoReply:
    """Nothing whole came back; `why` says what happened."""

    why: str


class Wire:
    """Exchanges with one server."""

    def __init__(self, base: str, key: Key) -> None:
        self.base = base
        self.key = key

    def exchange(self, path: str, timeout_s: float, body: Mapping[str, Any] | None = None) -> Reply | NoReply:
        """GET a path, or POST a body to it; each silence, and the whole answer, take at most `timeout_s`."""
        try:
            with _Session() as session:
                # A proxy carries https without reading it; plain http it would read, key included.
                session.trust_env = self.base.startswith("https:")
                with session.request(
                    "GET" if body is None else "POST",
                    self.base + path,
                    data=None if body is None else json.dumps(body),
                    headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
                    # An own object even without a key: else the library looks for a password in ~/.netrc.
                    auth=_Bearer(self.key),
                    timeout=timeout_s,
                    allow_redirects=False,
                    stream=True,
                ) as response:
                    content = _content(response, time.monotonic() + timeout_s, timeout_s)
                    return self._reply(response, content)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, EOFError, ValueError) as error:
            return NoReply(_why(error, timeout_s))

    def _reply(self, response: requests.Response, content: bytes) -> Reply:
        text = content.decode(errors="replace")
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            body = None
        body = body if isinstance(body, dict) else None
        return Reply(
            response.status_code,
            self.readable(_reason(body) if body is not None else text),
            body,
            _wait_s(response.headers.get("Retry-After")),
        )

    def readable(self, text: str) -> str:
        """A foreign text for an error: one line, without the key, not long."""
        line = " ".join(re.sub(r"[^\x20-\x7e\u00a1-\ufffc]", " ", self.key.taken_out_of(text)[:4096]).split())
        return line if len(line) <= _MOST_SAID else line[: _MOST_SAID - 1] + "…"


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """None: otherwise the library prepares the way even where it must not follow."""
        return None


class _Bearer(AuthBase):
    def __init__(self, key: Key) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = self._key.header
        return request


def _content(response: requests.Response, until_s: float, timeout_s: float) -> bytes:
    content = bytearray()
    # read1 gives what is there; read would wait for a full piece from a server that drips.
    while piece := response.raw.read1(_PIECE, decode_content=True):
        content += piece
        if len(content) > MOST_ANSWER_BYTES:
            raise ValueError(f"an answer of more than {MOST_ANSWER_BYTES:,} bytes")
        if time.monotonic() > until_s:
            raise TimeoutError(timeout_s)
    if response.raw.length_remaining:
        raise EOFError("the answer ended too early")
    return bytes(content)


def _reason(body: Mapping[str, Any]) -> str:
    """What an answer says went wrong: Ollama has `error`, others `error.message`, `message` or `detail`."""
    error = body.get("error")
    said = [error.get("message") if isinstance(error, Mapping) else error, body.get("message"), body.get("detail")]
    return ": ".join(text for text in said if isinstance(text, str))


def _wait_s(header: str | None) -> float | None:
    """Retry-After in seconds: a number or a date; nonsense counts as nothing."""
    if header is None:
        return None
    try:
        return Retry().parse_retry_after(header)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None


def _why(error: Exception, timeout_s: float) -> str:
    """The kind of failure only: texts of the HTTP library hold addresses and headers."""
    if isinstance(error, requests.Timeout | TimeoutError | urllib3.exceptions.TimeoutError):
        return f"no answer within {timeout_s:g} s"
    if type(error) in (ValueError, EOFError):
        return str(error)
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate was not accepted"
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    if isinstance(reason, urllib3.exceptions.NameResolutionError):
        return "there is no host of this name"
    if isinstance(reason, urllib3.exceptions.NewConnectionError):
        return "no connection: nothing listens there"
    return f"the connection broke ({type(error).__name__})"
