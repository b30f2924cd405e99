"""Which processes of this machine are alive, told apart by more than their number."""

from __future__ import annotations

import functools
import os
import pwd
from pathlib import Path

from provisioning.base import Leftover, ProcessIdentity, ProcessOwner

MARK = "RUNNER_ATTEMPT"
"""The variable that a supervisor sets for the whole tree of its attempt."""

COMMAND_LETTERS = 60

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def identity_of(pid: int) -> ProcessIdentity | None:
    """The identity of a process that exists now (alive or zombie); None when there is none of this number."""
    found = _state_and_start(pid)
    if found is None:
        return None
    boot_id, init_start_ticks = _boot()
    return ProcessIdentity(boot_id, init_start_ticks, pid, found[1])


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether exactly this process still runs. A zombie has ended; so has everything of an earlier boot."""
    found = _state_and_start(identity.pid)
    return found is not None and found[0] not in "ZX" and identity_of(identity.pid) == identity


def can_see(identity: ProcessIdentity) -> bool:
    """Whether a process that we do not find is proven gone.

    It is after a reboot, and where its pid 1 is ours. With the same boot and another pid 1 it may live on in another
    container, out of sight.
    """
    ours = identity_of(os.getpid())
    assert ours is not None
    return identity.boot_id != ours.boot_id or identity.init_start_ticks == ours.init_start_ticks


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


def state_of(pid: int) -> str | None:
    """The state letter of a process (R, S, D, T, Z …); None when there is none of this number."""
    found = _state_and_start(pid)
    return None if found is None else found[0]


def leftover(pid: int) -> Leftover | None:
    """The process of this number with its age, when it runs (a zombie does not)."""
    identity, found = identity_of(pid), _state_and_start(pid)
    if identity is None or found is None or found[0] in "ZX" or found[1] != identity.start_ticks:
        return None
    since_boot_s = float((_PROC / "uptime").read_bytes().split()[0])
    return Leftover(identity, since_boot_s - identity.start_ticks / _TICKS_PER_S)


def owner_of(pid: int) -> ProcessOwner | None:
    """Whose a process is; None when none of this number can be seen from here, or it has just ended.

    What another user runs shows no environment, so it carries no mark.
    """
    try:
        uid = (_PROC / str(pid)).stat().st_uid
    except OSError:
        return None
    return ProcessOwner(_user(uid), _command(pid), _mark(pid))


def _mark(pid: int) -> str:
    """The mark of the process, or of the nearest process above it: a child may have been started without it."""
    seen: set[int] = set()
    while pid > 1 and pid not in seen:
        seen.add(pid)
        for word in _words(pid, "environ"):
            if word.startswith(f"{MARK}="):
                return word.removeprefix(f"{MARK}=")
        fields = _stat_fields(pid)
        pid = 0 if fields is None else int(fields[1])
    return ""


def _command(pid: int) -> str:
    """The start of the command line; a process without one (the kernel's own) shows its short name."""
    words = _words(pid, "cmdline")
    if not words:
        try:
            return (_PROC / str(pid) / "comm").read_text(errors="replace").strip()
        except OSError:
            return "?"
    line = " ".join(words)
    return line if len(line) <= COMMAND_LETTERS else line[: COMMAND_LETTERS - 1] + "…"


def _words(pid: int, name: str) -> list[str]:
    """The parts of a file of /proc that zero bytes end; [] when we may not read it."""
    try:
        data = (_PROC / str(pid) / name).read_bytes()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in data.split(b"\0") if part]


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


@functools.cache
def _boot() -> tuple[str, int]:
    """(boot id, start ticks of pid 1): neither can change while we live."""
    init = _state_and_start(1)
    boot_id = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return boot_id, 0 if init is None else init[1]


def _state_and_start(pid: int) -> tuple[str, int] | None:
    """(state letter, start in clock ticks since boot)."""
    fields = _stat_fields(pid)
    return None if fields is None else (fields[0].decode("ascii"), int(fields[19]))


def _stat_fields(pid: int) -> list[bytes] | None:
    """Fields 3 (the state) to the last of /proc/PID/stat; 4 is the parent, 22 the start."""
    try:
        text = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    return text[text.rindex(b")") + 2 :].split()  # the name before may hold blanks and brackets
