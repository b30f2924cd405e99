"""Where every sample of a tar file lies, so that any of them can be read without the others. No torch here.

As WebDataset has it, a sample is all members that share their path up to the first dot of the file name: `dir/7.json`
and `dir/7.image.npy` belong to the sample `dir/7` and have the suffixes `json` and `image.npy`.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trainer.errors import DataError

_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)")
_BLOCK = 512


class Span(NamedTuple):
    """Bytes of a file: `size` of them from `offset` on."""

    offset: int
    size: int


class Entry(NamedTuple):
    """One sample of a tar file: where its members are, by suffix, and which suffixes occur more than once."""

    members: dict[str, Span]
    repeated: tuple[str, ...]


def index_tar(path: Path) -> dict[str, Entry]:
    """All samples of a tar file by key, in the order of their first members.

    Members that are no plain files, and names without a suffix, belong to no sample. Raises DataError if the file is no
    uncompressed tar, or ends before it should.
    """
    samples: dict[str, Entry] = {}
    end = 0
    for member in _members(path):
        end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
        named = _NAME.fullmatch(member.name)
        if not member.isfile() or named is None:
            continue
        key, suffix = named.groups()
        entry = samples.setdefault(key, Entry({}, ()))
        if suffix in entry.members:
            samples[key] = entry._replace(repeated=(*entry.repeated, suffix))
        else:
            entry.members[suffix] = Span(member.offset_data, member.size)
    _require_end(path, end)
    return samples


def first_entry(path: Path) -> dict[str, Span]:
    """The members of the first sample by suffix; empty for a tar without samples. Raises DataError as `index_tar`."""
    first, found = None, {}
    for member in _members(path):
        named = _NAME.fullmatch(member.name)
        if not member.isfile() or named is None:
            continue
        key, suffix = named.groups()
        if first not in (None, key):
            break
        first = key
        found[suffix] = Span(member.offset_data, member.size)
    return found


def read_span(descriptor: int, span: Span) -> bytes:
    """The bytes of a span of an open file. Raises EOFError if the file ends within it."""
    parts, offset, left = [], span.offset, span.size
    while left:
        part = os.pread(descriptor, left, offset)
        if not part:
            raise EOFError(f"the file ends {left} bytes too early")
        parts.append(part)
        offset, left = offset + len(part), left - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.offset_data + member.size > size:
                    raise _cut_off(path, f"{member.name} ends at byte {member.offset_data + member.size:,} of {size:,}")
                yield member
    except tarfile.TarError as error:
        kind = "an empty file" if size == 0 else "no uncompressed tar file, or cut off"
        raise DataError(f"{path} is {kind} ({error}): copy it again, or take it out of the set") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _require_end(path: Path, end: int) -> None:
    """A whole tar ends with blocks of zeros; without them it was cut off between two members."""
    with path.open("rb") as file:
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise _cut_off(path, f"there is no end mark at byte {end:,}")


def _cut_off(path: Path, detail: str) -> DataError:
    return DataError(f"{path} is cut off ({detail}): copy it again, or take it out of the set")
