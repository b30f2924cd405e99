"""Arrays in NumPy's .npy format from memory, strictly: no pickles, no half arrays, nothing behind the numbers."""

from __future__ import annotations

import math

import numpy as np

from trainer.data.npy_header import read_header


def parse_npy(data: bytes) -> np.ndarray:
    """The array of a whole .npy file, in C order and not writeable. Raises ValueError if it is broken."""
    header = read_header(data)
    try:
        dtype = np.dtype(header.descr)
    except TypeError as error:
        raise ValueError(f"has the unknown type {header.descr!r}") from error
    if dtype.hasobject:
        raise ValueError("holds Python objects, not numbers")
    expected, given = math.prod(header.shape) * dtype.itemsize, len(data) - header.start
    if given != expected:
        raise ValueError(f"holds {given} bytes of numbers where its header promises {expected}")
    flat = np.frombuffer(data, dtype=dtype, offset=header.start)
    if header.is_fortran:
        return np.ascontiguousarray(flat.reshape(header.shape[::-1]).T)
    return flat.reshape(header.shape)
