"""The key pair of one home: made when first needed, known to no other home, and of no use to anybody but rented hosts.

A rented machine must let us in, and whoever runs it may read everything on it; so none of a person's own keys is ever
shown to it.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from provisioning.base import HomeKeyError


@dataclass(frozen=True, slots=True)
class HomeKey:
    """The private key's file, and the public line for whoever is to let us in."""

    path: Path
    public_line: str


def home_key(path: Path, comment: str = "armature") -> HomeKey:
    """The key pair whose private half stands at `path` (OpenSSH format, mode 0600), made if there is none.

    Of two processes that make it at once one wins, and both get its key. Raises HomeKeyError for a file that is no such
    key, or that others can read: a new one in its place could not get into machines that are rented already.
    """
    if not path.exists():
        _make(path)
    try:
        mode, data = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise HomeKeyError(f"key {path}: {error.strerror or error}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise HomeKeyError(f"key {path} can be read by others; chmod 600 {path}")
    try:
        key = load_ssh_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise HomeKeyError(f"key {path} is no private key without a password; it was kept as it is") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise HomeKeyError(f"key {path} is of another kind than ed25519; it was kept as it is")
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return HomeKey(path, f"{public} {comment}")


def _make(path: Path) -> None:
    """Put a new key there, whole or not at all, unless somebody was faster."""
    data = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)  # unlike a rename, it never takes away a key that is in use
        except FileExistsError:
            return
        _sync_folder(path.parent)
    except OSError as error:
        raise HomeKeyError(f"key {path} cannot be made: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
