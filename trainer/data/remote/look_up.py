"""What the set at an address is: its index, asked for once per process, or that of the copy that is here. No torch.

In the cache, sets/<beginning of the index's digest>/ holds index.json and the shards; so sets that differ never mix,
and one set under two addresses is there once. sets/addresses/ remembers what an address stood for when it was last
opened.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from trainer.cache import cache_folder
from trainer.data.remote.address import Address, parse_address
from trainer.data.remote.faults import Cut, NotReachable
from trainer.data.set_index import INDEX, MOST_BYTES, SetIndex, parse_index, read_index
from trainer.errors import DataError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGITS = 32
_unanswered: dict[str, str] = {}
"""Addresses that did not answer this process, and the note on what was taken for the answer."""


@dataclass(frozen=True, slots=True)
class RemoteSet:
    """A set that is elsewhere: its index, and the folder of its copy here, whole or not.

    `revision` is the commit of the hub at which the index was read, '' elsewhere. `note` says why the answer is an old
    one, '' if it is new.
    """

    address: Address
    index: SetIndex
    folder: Path
    revision: str = ""
    note: str = ""


def look_up(path: str, wanted: str | None = None) -> RemoteSet:
    """The set at an address; with `wanted`, the digest of the index that it must have.

    Of a wanted set whose index is here nothing is asked. Where nobody answers, what is known of the address holds.
    Raises NotReachable if nothing is known of it either, NotThere if it has no index, DataError if that is not in order
    or is another one than wanted.
    """
    found = _looked_up(path, wanted, cache_folder())
    if isinstance(found, DataError):
        raise type(found)(str(found))
    return found


def remember(found: RemoteSet) -> None:
    """Keep the index of a set and what its address stands for. Raises OSError."""
    found.folder.mkdir(parents=True, exist_ok=True)
    _replace(found.folder / INDEX, found.index.content)
    known = {"address": found.address.text, "index": found.index.digest, "revision": found.revision}
    pointer = _pointer(found.address, found.folder.parent)
    pointer.parent.mkdir(exist_ok=True)
    _replace(pointer, json.dumps(known, indent=1).encode() + b"\n")


@lru_cache(maxsize=16)
def _looked_up(path: str, wanted: str | None, cache: Path) -> RemoteSet | DataError:
    """Answers of all kinds are kept: a rule and a note that ask the same wait for the network once."""
    try:
        address, sets = parse_address(path), cache / "sets"
        known = _remembered(address, sets)
        if wanted is not None:
            revision = known.revision if known and known.index.digest == wanted else ""
            if (here := _here(address, sets, wanted, revision)) is not None:
                return replace(here, note=_unanswered.get(path, ""))
        try:
            found = _asked(address, sets)
        except (NotReachable, Cut) as error:
            if known is None:
                return NotReachable(str(error))
            _unanswered[path] = f"{error}; taken for the set that it was when last opened here (index {_short(known)})"
            found = replace(known, note=_unanswered[path])
        if wanted is not None and found.index.digest != wanted:
            return DataError(
                f"{address.text} is not the set that this run was made for: its index is {_short(found)}, "
                f"data.index wants {wanted[:12]}…; bring that set back, name its revision, or start a run of its own "
                "for the new one (data.index: null)"
            )
        return found
    except DataError as error:
        return error


def _asked(address: Address, sets: Path) -> RemoteSet:
    from trainer.data.remote.http import get  # an HTTP library, which runs on data that is here need not load

    content = b""
    with get(address, INDEX) as reply:
        for piece in reply.pieces:
            content += piece
            if len(content) > MOST_BYTES:
                raise DataError(f"{address.text}: {INDEX} has more than {MOST_BYTES:,} bytes, so it is no index")
        commit = reply.headers.get("x-repo-commit", "")
        length = reply.headers.get("content-length", "")
    if length.isdecimal() and len(content) < int(length):
        raise Cut(f"{address.text}: the answer with {INDEX} broke off")
    index = parse_index(content, f"{address.text}/{INDEX}")
    revision = commit if address.repository and _COMMIT.fullmatch(commit) else ""
    return RemoteSet(address, index, _folder(sets, index.digest), revision)


def _remembered(address: Address, sets: Path) -> RemoteSet | None:
    """What was at the address when somebody on this machine last opened it."""
    try:
        known = json.loads(_pointer(address, sets).read_bytes())
        return _here(address, sets, str(known["index"]), str(known["revision"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a note of ours that is not there or damaged is worth as much as none


def _here(address: Address, sets: Path, digest: str, revision: str) -> RemoteSet | None:
    folder = _folder(sets, digest)
    try:
        index = read_index(folder)
    except DataError:
        return None
    return RemoteSet(address, index, folder, revision) if index.digest == digest else None


def _short(found: RemoteSet) -> str:
    return f"{found.index.digest[:12]}…"


def _folder(sets: Path, digest: str) -> Path:
    return sets / re.sub("[^0-9a-f]", "_", digest[:_DIGITS])


def _pointer(address: Address, sets: Path) -> Path:
    return sets / "addresses" / f"{hashlib.sha256(address.text.encode()).hexdigest()[:_DIGITS]}.json"


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_bytes(content)
    unfinished.replace(path)
