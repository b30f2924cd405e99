"""One GET: bounded in silence, careful with redirects and with the token. No torch.

A redirect is followed only to an address that is as well protected, and the token of the hub goes to the origin that it
was meant for and to no other: what stores the files of the hub gets signed addresses instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from trainer.data.remote.address import Address, origin, require_safe
from trainer.data.remote.faults import Cut, NotReachable, NotThere
from trainer.data.remote.reply import Reply
from trainer.errors import DataError

PIECE_BYTES = 2**20
_TIMEOUT_S = (10.0, 30.0)  # for a connection, and for each silence of the other side
_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429, 500, 502, 503, 504)


@contextmanager
def get(address: Address, name: str, revision: str = "", start: int = 0) -> Iterator[Reply]:
    """A file of a set from byte `start` on. Raises NotThere, NotReachable, Cut, and DataError for unsafe redirects."""
    first = url = address.url(name, revision)
    token = hub_token() if address.repository else None
    for _ in range(_MOST_REDIRECTS + 1):
        response = _send(url, token if origin(url) == origin(first) else None, start)
        try:
            if response.status_code in _REDIRECTS:
                url = _followed(url, response.headers.get("location", ""))
                continue
            _raise_for(response, name, address)
            headers = {key.lower(): value for key, value in response.headers.items()}
            yield Reply(response.status_code, headers, _pieces(response, name))
            return
        finally:
            response.close()
    raise DataError(f"{address.text}: {name} is redirected more than {_MOST_REDIRECTS} times")


def hub_token() -> str | None:
    """HF_TOKEN, or the token of the hub's own login; None without either."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    try:
        from huggingface_hub import get_token  # part of the extra that prepares; reading a public set needs none
    except ImportError:
        return None
    return get_token()


class _OwnHeader(requests.auth.AuthBase):
    """Keeps the library from putting what stands in a .netrc in the place of our header."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _send(url: str, token: str | None, start: int) -> requests.Response:
    """Errors name the host alone: an address that was redirected to may hold a signature."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "armature"}
    if start:
        headers["Range"] = f"bytes={start}-"
    host = urlsplit(url).netloc
    try:
        return requests.get(
            url, headers=headers, auth=_OwnHeader(token), stream=True, allow_redirects=False, timeout=_TIMEOUT_S
        )
    except requests.exceptions.SSLError:
        raise DataError(f"{host} does not prove that it is {host}: its certificate is not valid") from None
    except requests.Timeout:
        raise NotReachable(f"{host} does not answer") from None
    except requests.RequestException:
        raise NotReachable(f"{host} cannot be reached: is the network there, and the name right?") from None


def _followed(url: str, location: str) -> str:
    following = urljoin(url, location)
    require_safe(following)
    if origin(url)[0] == "https" and origin(following)[0] != "https":
        raise DataError(f"{urlsplit(url).netloc} redirects from https to {urlsplit(following).netloc} without it")
    return following


def _raise_for(response: requests.Response, name: str, address: Address) -> None:
    status, where = response.status_code, f"{address.text}: {name}"
    if status in (requests.codes.ok, requests.codes.partial_content):
        return
    if status in (404, 410):
        missing = f", or {address.repository} has no revision {address.revision}" if address.repository else ""
        raise NotThere(f"{where} is not there (status {status}){missing}")
    if status in (401, 403):
        hint = "set HF_TOKEN to a token that may read it" if address.repository else "the set must be readable by all"
        raise NotReachable(f"{where} may not be read (status {status}): {hint}")
    if status == requests.codes.requested_range_not_satisfiable:
        raise Cut(f"{where}: the server has no more of it than is here (status 416)")
    if status in _PASSING:
        raise Cut(f"{where}: the server cannot answer now (status {status})")
    raise DataError(f"{where} is answered with status {status}")


def _pieces(response: requests.Response, name: str) -> Iterator[bytes]:
    """What the network has brought so far, each time: of an answer that breaks off nothing is lost."""
    try:
        while piece := response.raw.read1(PIECE_BYTES, decode_content=False):
            yield piece
    except (requests.RequestException, urllib3.exceptions.HTTPError):
        raise Cut(f"the answer with {name} broke off") from None
