"""The lock of a home: a kernel flock with the holder's pid inside, released by death and never by age."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from runner.errors import HomeError

LOOKS = 5
LOOK_S = 0.01
"""Who only asks whether the lock is held shares it for an instant (`is_held`); a holder keeps it through all looks."""


class HomeLock:
    """An exclusive flock on one file. The descriptor is close-on-exec, so no child keeps the lock alive."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock if nobody holds it; says whether it is ours now."""
        if self._descriptor is not None:
            return True
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HomeError(f"{self._path}: the lock cannot be opened: {error.strerror}") from error
        if not _is_taken(descriptor):
            os.close(descriptor)
            return False
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _is_taken(descriptor: int) -> bool:
    """Take the lock for this descriptor unless somebody holds it; says whether it is taken."""
    for look in range(LOOKS):
        if look:
            time.sleep(LOOK_S)
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def is_held(path: Path) -> bool:
    """Whether some process holds the lock now. Keeps nothing and changes nothing."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder_pid(path: Path) -> int | None:
    """The pid written by the last holder, for messages only."""
    try:
        return int(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        return None
