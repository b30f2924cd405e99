"""Everything that can be wrong with shards: each is read once, every member is compared with its artefact. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from trainer.data.artefacts import CAPTION_FILE, JSON_MEMBER
from trainer.data.set_index import INDEX, PACK_AGAIN, SetIndex, Shard
from trainer.data.split import split
from trainer.data.tar_index import Entry, index_tar
from trainer.errors import DataError
from trainer.prepare.finding import Finding, Kind
from trainer.prepare.image_checks import is_unfinished
from trainer.prepare.recipe import Recipe
from trainer.prepare.shard_tar import plan_file

_CHUNK_BYTES = 1 << 20


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Checked:
    """A shard that was read: ids in their order, and what was found."""

    ids: tuple[str, ...]
    findings: tuple[Finding, ...]


def check_shard(root: Path, shard: Shard, members: tuple[str, ...], files: Mapping[str, Mapping[str, str]]) -> Checked:
    """Read a shard of the set in `root`. `members` are what its samples need beside `json`; `files` holds SHA-256 of
    the files of every image of which all is there, by id."""

    def finding(kind: Kind, found: str, needed: str, id: str = "") -> Finding:
        return Finding(kind, f"{root.name}/{shard.path}", found, needed, id)

    try:
        size = (root / shard.path).stat().st_size
    except OSError as error:
        return Checked((), (finding("missing shard", error.strerror or str(error), "a file"),))
    if size != shard.size_bytes:
        return Checked((), (finding("wrong size", f"{size:,} bytes", f"{shard.size_bytes:,}"),))
    try:
        entries = index_tar(root / shard.path)
        digest, hashes = _hashes(root / shard.path, entries)
    except (DataError, OSError) as error:
        return Checked((), (finding("changed shard", str(error), "a whole tar file"),))
    if digest != shard.sha256:
        return Checked(tuple(entries), (finding("changed shard", f"SHA-256 {digest}", shard.sha256),))
    found = [finding("wrong count", f"{len(entries)} samples", str(shard.samples))]
    found = found if len(entries) != shard.samples else []
    others = []
    for id, own in hashes.items():
        missing = [suffix for suffix in (JSON_MEMBER, *members) if suffix not in own]
        if missing or entries[id].repeated:
            problem = f"no {' and no '.join(missing)}" if missing else f"{entries[id].repeated[0]} twice"
            found.append(finding("incomplete sample", f"{id}: {problem}", "every member once", id))
        elif other := _differences(own, members, files.get(id)):
            others.append((id, other))
    if others:
        first, other = others[0]
        problem = f"{len(others)} of {len(entries)} samples, such as {first}: {other}"
        found.append(finding("other sample", problem, "what their artefacts are now", first))
    return Checked(tuple(entries), tuple(found))


def check_index(index: SetIndex, ids: tuple[str, ...], recipes: Mapping[str, Recipe]) -> Iterator[Finding]:
    """Whether an index says of its shards, which all hold `ids` together, what is true."""
    path = f"shards/{INDEX}"
    sides = split(ids)
    if (index.held_out, index.probe) != (sides.held_out, sides.probe):
        yield Finding("broken index", path, "other held-out or probe ids", "those of the split of its samples")
    if dict(index.recipes) != {name: recipe.as_json() for name, recipe in recipes.items()}:
        yield Finding("stale", path, "packed from artefacts of other recipes", f"those of recipes.json: {PACK_AGAIN}")


def unknown_shard_files(root: Path, index: SetIndex) -> Iterator[Finding]:
    """What lies beside the shards and belongs to none of them."""
    shards = [root / shard.path for shard in index.shards]
    known = {root / INDEX, *shards, *map(plan_file, shards)}
    folders = {path.parent for path in shards}
    for path in sorted(root.rglob("*")):
        if path not in known and path not in folders and not is_unfinished(path):
            relative = path.relative_to(root.parent).as_posix()
            yield Finding("unknown file", relative, "no shard of the index", "nothing")


def _hashes(tar: Path, entries: Mapping[str, Entry]) -> tuple[str, dict[str, dict[str, str]]]:
    """SHA-256 of a tar, and of every member by sample and suffix, the JSON as that of its caption's file."""
    whole = hashlib.sha256()
    found: dict[str, dict[str, str]] = {key: {} for key in entries}
    spans = sorted((span, key, suffix) for key, entry in entries.items() for suffix, span in entry.members.items())
    with tar.open("rb") as file:
        for span, key, suffix in spans:
            _feed(file, span.offset - file.tell(), whole)
            own = hashlib.sha256()
            if suffix == JSON_MEMBER:
                content = file.read(span.size)
                whole.update(content)
                own.update(_caption(content, key))
            else:
                _feed(file, span.size, whole, own)
            found[key][suffix] = own.hexdigest()
        while chunk := file.read(_CHUNK_BYTES):
            whole.update(chunk)
    return whole.hexdigest(), found


def _feed(file: BinaryIO, size: int, *hashes: _Hash) -> None:
    while size > 0 and (chunk := file.read(min(size, _CHUNK_BYTES))):
        size -= len(chunk)
        for one in hashes:
            one.update(chunk)


def _caption(content: bytes, id: str) -> bytes:
    """What the file of the caption would hold; nothing that a file could hold if the JSON is none, or another's."""
    try:
        said = json.loads(content)
        return said["caption"].encode() if said["image_id"] == id else b"\0" + content
    except (ValueError, KeyError, TypeError, AttributeError):
        return b"\0" + content


def _differences(own: Mapping[str, str], members: tuple[str, ...], files: Mapping[str, str] | None) -> str:
    if files is None:
        return "its artefacts are no longer all there"
    if CAPTION_FILE in files and own[JSON_MEMBER] != files[CAPTION_FILE]:
        return "another caption or id"
    other = [name for name in members if own[name] != files.get(name)]
    more = sorted(own.keys() - {JSON_MEMBER, *members})
    return f"another {other[0]}" if other else f"{more[0]}, which no recipe has" if more else ""
