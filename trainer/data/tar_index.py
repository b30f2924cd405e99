"""Where every sample of a tar file lies, so that any of them can be read without the others. No torch here.

As WebDataset has it, a sample is all members that share their path up to the first dot of the file name: `dir/7.json`
and `dir/7.image.npy` belong to the sample `dir/7` and have the suffixes `json` and `image.npy`.

Headers are read here and not by tarfile, which takes a minute for half a million of them. Format: POSIX.1-2001 (pax)
and GNU's long names, blocks of 512 bytes, a block of zeros at the end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trainer.errors import DataError

_PLAIN = (b"0", b"\0", b"7")
_EXTENDED, _LONG_NAME, _OF_THE_NEXT = b"x", b"L", (b"x", b"L", b"K", b"g")
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
    for key, suffix, span in _named_members(path):
        entry = samples.setdefault(key, Entry({}, ()))
        if suffix in entry.members:
            samples[key] = entry._replace(repeated=(*entry.repeated, suffix))
        else:
            entry.members[suffix] = span
    return samples


def first_entry(path: Path) -> dict[str, Span]:
    """The members of the first sample by suffix; empty for a tar without samples. Raises DataError as `index_tar`."""
    first, found = None, {}
    for key, suffix, span in _named_members(path):
        if first not in (None, key):
            break
        first = key
        found[suffix] = span
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


def _named_members(path: Path) -> Iterator[tuple[str, str, Span]]:
    """Key, suffix and place of every plain file that belongs to a sample."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        for name, span in _plain_files(path, descriptor):
            named = _NAME.fullmatch(name)
            if named is not None:
                yield named[1], named[2], span
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    finally:
        os.close(descriptor)


def _plain_files(path: Path, descriptor: int) -> Iterator[tuple[str, Span]]:
    size, offset = os.fstat(descriptor).st_size, 0
    extended: dict[str, str] = {}
    while (header := os.pread(descriptor, _BLOCK, offset)) != bytes(_BLOCK):
        if len(header) < _BLOCK:
            raise _cut_off(path, f"there is no end mark at byte {offset:,}") if offset else _no_tar(path)
        kind, name = header[156:157], extended.get("path") or _name(header)
        span = Span(offset + _BLOCK, int(extended["size"]) if "size" in extended else _number(header[124:136]))
        if not _is_header(header) or span.size < 0:
            raise _no_tar(path)
        offset = span.offset + -(-span.size // _BLOCK) * _BLOCK
        if span.offset + span.size > size:
            raise _cut_off(path, f"{name} ends at byte {span.offset + span.size:,} of {size:,}")
        if kind in _OF_THE_NEXT:
            try:
                extended |= _extended(kind, os.pread(descriptor, span.size, span.offset))
            except ValueError as error:
                raise _no_tar(path) from error
            continue
        extended = {}
        if kind in _PLAIN and not name.endswith("/"):
            yield name, span


def _is_header(header: bytes) -> bool:
    """Whether the checksum fits: the sum of all bytes, its own field counted as eight spaces."""
    return _number(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _number(field: bytes) -> int:
    """A number of a header: octal digits or, for large ones, big-endian behind a set bit; -1 for neither."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else -1


def _name(header: bytes) -> str:
    name, prefix = (_text(header[start:end]) for start, end in ((0, 100), (345, 500)))
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _extended(kind: bytes, data: bytes) -> dict[str, str]:
    """What an extra header says of the member behind it, of its path and its size. Raises ValueError if damaged."""
    if kind == _LONG_NAME:
        return {"path": _text(data)}
    found = {}
    while kind == _EXTENDED and data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or int(length) < len(length) + 3:
            raise ValueError("no length of a record")
        record, data = data[: int(length)], data[int(length) :]
        key, _, value = record[len(length) + 1 : -1].partition(b"=")
        found[key.decode(errors="replace")] = value.decode(errors="surrogateescape")
    if not found.get("size", "0").isdecimal():
        raise ValueError("no size")
    return {key: value for key, value in found.items() if key in ("path", "size")}


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="surrogateescape")


def _no_tar(path: Path) -> DataError:
    kind = "an empty file" if path.stat().st_size == 0 else "no uncompressed tar file, or damaged"
    return DataError(f"{path} is {kind}: copy it again, or take it out of the set")


def _cut_off(path: Path, detail: str) -> DataError:
    return DataError(f"{path} is cut off ({detail}): copy it again, or take it out of the set")
