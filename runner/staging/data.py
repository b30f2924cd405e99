"""Data by reference: what an arm may write in `data`, where it stands on a host, and how a run is told. Pure.

A run gets `RUNNER_DATA_<NAME>` in its environment and may write `{data:NAME}` in its command or, as the beginning of
the value, in `trainer.data.path`. What is fetched stands in `<folder>/data/<hash of the reference>/<its last name>`,
once for all runs on that host; a path on the host is used where it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

ALLOWED = (
    "/path/on/the/host",
    "rsync://host/module/path",
    "user@host:/path",
    "https://host/file#sha256=…",
    "s3://bucket/key",
    "hf://datasets/org/name@revision",
)
NAME_IN_WORDS = "1 to 64 letters, digits, '.', '_' and '-', first a letter"
MOST_CHARACTERS = 2_000

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_REMOTE_SHELL = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9._-]*:(?P<path>/.*)")
_HUB = re.compile(r"hf://datasets/[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w.-]+)?(?:/[^/@?#]+)*")
_FRAGMENT = re.compile(r"sha256=[0-9a-fA-F]{64}")
_ADDRESS = re.compile(r"[a-z0-9]+://")
# What the parts of a signed or keyed address are called: whoever has such an address has the data.
_KEYED = re.compile(
    r"(?:.*[-_])?(?:sig|signature|token|key|keyid|api_?key|(?:aws)?access_?key(?:_?id)?|secret|password|credential|auth)",
    re.IGNORECASE,
)
_PLACE = re.compile(r"\{data:([^{}]*)\}")


class BadReference(ValueError):
    """A reference that names nothing that can be fetched; the message says why, without what may be secret."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference that is allowed. `kind` is path, rsync, http, s3 or hf; `name` is what its place ends in."""

    text: str
    kind: str
    name: str

    @property
    def key(self) -> str:
        """SHA-256 (hex) of what is asked for."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def place(self, folder: str) -> str:
        """Where it stands on a host whose staging folder is `folder` (absolute)."""
        return self.text if self.kind == "path" else f"{folder}/data/{self.key[:32]}/{self.name}"


def parse(text: str) -> Reference:
    """The reference in a text. Raises BadReference for what is none, and for one that holds a secret."""
    if len(text) > MOST_CHARACTERS:
        raise BadReference(f"has {len(text)} characters, more than {MOST_CHARACTERS}")
    if not text.isprintable() or text != text.strip():
        raise BadReference("holds a character that cannot be printed, or a blank at an end")
    kind = _kind(text)
    if kind == "path":
        _check_path(text)
    elif kind == "hf":
        _check_hub(text)
    elif _ADDRESS.match(text):
        _check_address(text, kind)
    return Reference(text, kind, _last_name(text))


def name_problem(name: str, others: Sequence[str] = ()) -> str:
    """Why a name cannot be given to data beside `others`; '' when it can."""
    if not _NAME.fullmatch(name):
        return "is no name for data"
    clash = next((other for other in others if variable(other) == variable(name)), None)
    return "" if clash is None else f"becomes {variable(name)}, as {clash} does"


def variable(name: str) -> str:
    """The environment variable that holds the path of this data."""
    return "RUNNER_DATA_" + re.sub("[.-]", "_", name).upper()


def places(data: Mapping[str, str], folder: str) -> dict[str, str]:
    """Where each name of an arm's `data` stands on a host with this staging folder."""
    return {name: parse(text).place(folder) for name, text in data.items()}


def variables(placed: Mapping[str, str]) -> dict[str, str]:
    """The environment variables of a run whose data stands in these places."""
    return {variable(name): path for name, path in placed.items()}


def names_in(text: str) -> tuple[str, ...]:
    """The names that `{data:NAME}` stands for in a value of the trainer block."""
    return tuple(_PLACE.findall(text))


def names_in_argument(argument: str) -> tuple[str, ...]:
    """The same in an argument of a command, where a doubled brace is a literal one. Raises ValueError for braces that
    do not match."""
    return tuple(form for _, name, form, _ in Formatter().parse(argument) if name == "data" and form is not None)


def with_places(command: Sequence[str], placed: Mapping[str, str]) -> list[str]:
    """The command with every `{data:NAME}` replaced, all other placeholders and doubled braces kept for later."""
    return [_argument(argument, placed) for argument in command]


def misplaced(trainer: Mapping[str, Any]) -> str | None:
    """The dotted key of the first value in a trainer block that holds `{data:` where it means nothing: outside of
    `data.path`, or not at its beginning. None when there is none."""
    for key, value in _texts(trainer, ""):
        begins = key == "data.path" and re.match(r"\{data:[^{}]*\}(?:/|$)", value) is not None
        if value.count("{data:") > (1 if begins else 0):
            return key
    return None


def _kind(text: str) -> str:
    if text.startswith("/"):
        return "path"
    for kind, start in (("rsync", "rsync://"), ("http", "http://"), ("http", "https://"), ("s3", "s3://")):
        if text.startswith(start):
            return kind
    if text.startswith("hf://"):
        return "hf"
    if _ADDRESS.match(text):
        raise BadReference(f"begins with {text.partition('//')[0]}//, which nothing here fetches")
    before, colon, _ = text.partition("@")[0].partition(":")
    if colon and "@" in text and before:
        raise BadReference("holds a password, and references are stored")
    found = _REMOTE_SHELL.fullmatch(text)
    if found is None:
        raise BadReference("is neither an absolute path nor an address; a relative path means nothing on another host")
    if re.search(r"[*?\[\]$`;&|<>\\\"' ]", found["path"]):
        raise BadReference("holds characters that a remote shell would read as its own")
    return "rsync"


def _check_path(text: str) -> None:
    parts = text.split("/")
    if text == "/" or any(part in (".", "..") for part in parts) or "" in parts[1:-1]:
        raise BadReference("is no plain absolute path of a file or folder")


def _check_hub(text: str) -> None:
    # A revision with a / in it (refs/convert/parquet) would read as one and a file: it cannot be said here.
    if not _HUB.fullmatch(text) or ".." in text.split("/"):
        raise BadReference("is no dataset of the hub")


def _check_address(text: str, kind: str) -> None:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise BadReference("is no address: its host or port cannot be read") from error
    if not host:
        raise BadReference("names no host")
    if parts.password is not None or (parts.username is not None and kind != "rsync"):
        raise BadReference("holds a user or password, and references are stored")
    if any(_KEYED.fullmatch(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise BadReference("looks like a signed address or holds a key, and references are stored")
    if parts.fragment and not (kind == "http" and _FRAGMENT.fullmatch(parts.fragment)):
        raise BadReference("ends in a # that means nothing; https://…#sha256= and 64 hex digits does")
    path = unquote(parts.path)
    if kind != "http" and path.strip("/") == "":
        raise BadReference("names a whole host or bucket" if kind != "rsync" else "names no module")
    if kind == "http" and (path.endswith("/") or not path):
        raise BadReference("names a folder; http fetches one file")
    if ".." in path.split("/"):
        raise BadReference("holds ..")


def _last_name(text: str) -> str:
    """A plain file name for the place: the last part of the reference, without what a file system would not like."""
    bare = re.split(r"[?#]", text)[0] if _ADDRESS.match(text) and not text.startswith("hf://") else text
    last = unquote(bare).rstrip("/").split("/")[-1].split("@")[0]
    return re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".-")[-100:] or "data"


def _argument(argument: str, placed: Mapping[str, str]) -> str:
    text = ""
    for literal, name, form, conversion in Formatter().parse(argument):
        text += _doubled(literal)
        if name == "data" and form is not None and form in placed:
            text += _doubled(placed[form])
        elif name is not None:
            text += "{" + name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "") + "}"
    return text


def _doubled(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _texts(value: Any, key: str) -> list[tuple[str, str]]:
    if isinstance(value, str):
        return [(key, value)]
    if isinstance(value, Mapping):
        return [
            found for name, inner in value.items() for found in _texts(inner, f"{key}.{name}" if key else str(name))
        ]
    if isinstance(value, list | tuple):
        return [found for index, inner in enumerate(value) for found in _texts(inner, f"{key}[{index}]")]
    return []
