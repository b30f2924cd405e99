"""Which addresses and keys a caption server may have. A key is sent to that address and written nowhere."""

from __future__ import annotations

import os
import re
from urllib.parse import SplitResult, urlsplit

from trainer.errors import UsageError

KEY_VARIABLE = "CAPTION_API_KEY"
_HEADER_TEXT = re.compile(r"[\x21-\x7e]+")


class Key:
    """An API key that no repr, log or traceback shows. '' is none."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def __repr__(self) -> str:
        return "Key(hidden)" if self._text else "Key(none)"

    def __bool__(self) -> bool:
        return bool(self._text)

    @property
    def header(self) -> str:
        """The value of an Authorization header."""
        return f"Bearer {self._text}"

    def is_in(self, text: str) -> bool:
        """Whether a text repeats the key."""
        return bool(self._text) and self._text in text

    def taken_out_of(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self._text, "[hidden]") if self._text else text


def key_of_environment() -> Key:
    """The key in CAPTION_API_KEY, if there is one. Raises UsageError for one that no header can carry."""
    text = os.environ.get(KEY_VARIABLE, "").strip()
    if text and not _HEADER_TEXT.fullmatch(text):
        raise UsageError(f"{KEY_VARIABLE} holds white space or other characters that an API key cannot have")
    return Key(text)


def base_of(url: str) -> str:
    """The address in front of /api/… and /v1/…: without a slash, and without a /v1, at its end.

    Raises UsageError for anything but http(s)://host[:port][/path]. A wrong address is not repeated: it may hold a
    password.
    """
    try:
        parts = urlsplit(url.strip())
        problem = _problem(parts)
    except ValueError:  # of a port that is no number, or of half an IPv6 address
        problem = "it is no address"
    if problem:
        raise UsageError(f"--caption-url cannot be used: {problem}; allowed: http(s)://host[:port], such as {EXAMPLE}")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


EXAMPLE = "http://localhost:11434"


def _problem(parts: SplitResult) -> str:
    if parts.scheme not in ("http", "https"):
        return "it is neither http nor https"
    if "@" in parts.netloc:
        return f"it holds a name or a password; a key belongs into the environment variable {KEY_VARIABLE}"
    if not parts.hostname or parts.port == 0 or re.search(r"[\s\\]", parts.netloc + parts.path):
        return "it has no host, or one that cannot be"
    if parts.query or parts.fragment:
        return "it has a part behind ? or #"
    return ""
