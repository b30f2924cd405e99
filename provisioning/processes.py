"""Which processes of this machine are alive, told apart by more than their number."""

from __future__ import annotations

import os
from pathlib import Path

from provisioning.base import ProcessIdentity

_PROC = Path("/proc")


def identity_of(pid: int) -> ProcessIdentity | None:
    """The identity of a process that exists now (alive or zombie); None when there is none of this number."""
    found = _state_and_start(pid)
    if found is None:
        return None
    init = _state_and_start(1)
    boot_id = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ProcessIdentity(boot_id, 0 if init is None else init[1], pid, found[1])


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether exactly this process still runs. A zombie has ended; so has everything of an earlier boot."""
    found = _state_and_start(identity.pid)
    return found is not None and found[0] not in "ZX" and identity_of(identity.pid) == identity


def end_descriptor(identity: ProcessIdentity) -> int | None:
    """A pidfd of exactly this process, for the caller to close; None when it does not run (any more)."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except OSError:
        return None
    # Asked after opening: the number cannot have passed to another process since.
    if is_alive(identity):
        return descriptor
    os.close(descriptor)
    return None


def _state_and_start(pid: int) -> tuple[str, int] | None:
    """(state letter, start in clock ticks since boot), fields 3 and 22 of /proc/PID/stat."""
    try:
        text = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the name before may hold blanks and brackets
    return fields[0].decode("ascii"), int(fields[19])
