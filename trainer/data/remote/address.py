"""Where a set of shards may be that is not here: `https://…`, `http://…`, or `hub:OWNER/NAME[@REVISION]`. No torch.

An address is a folder that holds index.json and the bucket folders. Addresses are stored with every run, so they hold
no passwords and no keys. Unprotected http goes to this machine only, unless ARMATURE_ALLOW_HTTP=1 is set.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from trainer.errors import DataError

ALLOWED = "https://host/folder, http://127.0.0.1:port/folder, or hub:OWNER/NAME[@REVISION]"
ALLOW_HTTP = "ARMATURE_ALLOW_HTTP"
DEFAULT_REVISION = "main"
HUB = "https://huggingface.co"
_SCHEMES = ("https://", "http://", "hub:")
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_REPOSITORY = re.compile(rf"hub:({_NAME}/{_NAME})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")
_URL = re.compile(r"https?://[!-~]+")


@dataclass(frozen=True, slots=True)
class Address:
    """`text` is what a person wrote. `base` is the folder as a URL, '' for the hub, where it is `repository` (a set of
    data) at `revision`."""

    text: str
    base: str = ""
    repository: str = ""
    revision: str = DEFAULT_REVISION

    def url(self, name: str, revision: str = "") -> str:
        """The URL of a file of the set, of the hub at `revision` if one is given."""
        if not self.repository:
            return f"{self.base}/{quote(name)}"
        at = quote(revision or self.revision, safe="")
        return f"{hub_endpoint()}/datasets/{self.repository}/resolve/{at}/{quote(name)}"


def is_address(path: str) -> bool:
    """Whether a `data.path` is the address of a set that is elsewhere."""
    return path.startswith(_SCHEMES)


def parse_address(text: str) -> Address:
    """The address in a text. Raises DataError that says what is allowed."""
    if text.startswith("hub:"):
        found = _REPOSITORY.fullmatch(text)
        if found is None or ".." in text:
            raise DataError(f"{text!r} is no data set of the hub; allowed: hub:OWNER/NAME or hub:OWNER/NAME@REVISION")
        return Address(text, repository=found[1], revision=found[2] or DEFAULT_REVISION)
    if not is_address(text) or not _URL.fullmatch(text):
        raise DataError(f"{text!r} is no address of a set; allowed: {ALLOWED}")
    require_safe(text)
    parts = urlsplit(text)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise DataError(f"{parts.scheme}://{parts.hostname}…: addresses are stored, so they hold no user, ? or #")
    return Address(text, base=text.rstrip("/"))


def require_safe(url: str) -> None:
    """Raise DataError unless nobody on the way can read or change what is sent there."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise DataError(f"{url!r} is no address: {error}") from error
    if not host or parts.scheme not in ("https", "http"):
        raise DataError(f"{url!r} is no address; allowed: {ALLOWED}")
    if parts.scheme == "http" and not is_loopback(host) and os.environ.get(ALLOW_HTTP) != "1":
        raise DataError(
            f"http://{host} is not protected: anybody on the way could exchange the data; use https, or set "
            f"{ALLOW_HTTP}=1 in a network that you trust"
        )


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def origin(url: str) -> tuple[str, str | None, int]:
    """Scheme, host and port: what a token is given to."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def hub_endpoint() -> str:
    """The hub, or the mirror of it that HF_ENDPOINT names. Raises DataError for one that is not safe."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB
    require_safe(endpoint)
    return endpoint
