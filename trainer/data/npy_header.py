"""The header of NumPy's .npy format, read without NumPy, so that a check of a configuration stays fast. No torch here.

Format: 6 magic bytes, two version bytes, the length of the header (2 bytes in version 1, 4 later, little-endian) and a
Python literal with the keys descr, fortran_order and shape (numpy.lib.format).
"""

from __future__ import annotations

import ast
from typing import Any, NamedTuple

_MAGIC = b"\x93NUMPY"
LONGEST_BYTES = 4096
"""No header of a plain array is as long as this."""


class Header(NamedTuple):
    """Shape, element type as NumPy writes it ('<f2'), order, and where the numbers start."""

    shape: tuple[int, ...]
    descr: str
    is_fortran: bool
    start: int


def read_header(data: bytes) -> Header:
    """The header of the file that begins with `data`. Raises ValueError for anything else."""
    length_bytes = 2 if data[6:7] == b"\x01" else 4
    start = 8 + length_bytes + int.from_bytes(data[8 : 8 + length_bytes], "little")
    if data[:6] != _MAGIC or start > min(len(data), LONGEST_BYTES):
        raise ValueError("is no .npy file, or its header is cut off")
    try:
        content = ast.literal_eval(data[8 + length_bytes : start].decode("latin-1").strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError("has a header that is no literal") from error
    if not isinstance(content, dict) or not _is_plain(content):
        raise ValueError("is no .npy file of plain numbers")
    return Header(content["shape"], content["descr"], content["fortran_order"], start)


def _is_plain(content: dict[str, Any]) -> bool:
    shape = content.get("shape")
    return (
        isinstance(shape, tuple)
        and all(type(side) is int and side >= 0 for side in shape)
        and isinstance(content.get("descr"), str)
        and isinstance(content.get("fortran_order"), bool)
    )
