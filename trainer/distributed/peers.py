"""The processes that a leader starts: they live as long as it does, and when one of them fails all end.

A process that is told to end with its leader is killed by the kernel when that one is gone (Linux, prctl(2),
PR_SET_PDEATHSIG); elsewhere it looks for its leader between two orders.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import trainer
from trainer.errors import EXIT_INTERNAL, TeamError

LEADER_PID = "TRAINER_LEADER_PID"
"""Environment variable of a process that a leader started: without that leader it must not live."""
NOTICE_S = 10.0
"""How long the leader may take to see for itself that another process failed, before it is ended from within."""
FAREWELL_S = 30.0
"""How long the others may take to end once they were told to."""
_LOOK_EVERY_S = 0.2
_PR_SET_PDEATHSIG = 1


class Peers:
    """Processes 1 to `size` - 1 of a team, started with `argv` for the trainer; a thread watches them."""

    def __init__(self, argv: Sequence[str], size: int, port: int) -> None:
        command = [sys.executable, "-m", "trainer", *argv]
        self._processes = {
            rank: subprocess.Popen(command, stdin=subprocess.DEVNULL, env=_environment(rank, size, port))
            for rank in range(1, size)
        }
        self._may_end = False
        self._failed: tuple[int, int] | None = None
        self._failure = threading.Event()
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def failure(self, wait_s: float = 0.0) -> TeamError | None:
        """The error of the first process that failed within `wait_s` from now, if one did."""
        if not self._failure.wait(wait_s) or self._failed is None:
            return None
        self._over.set()
        return _error(*self._failed)

    def expect_end(self) -> None:
        """From now on it is no failure that one of them ends."""
        self._may_end = True

    def await_end(self) -> None:
        """Return when all have ended, as they were told to. Who has not within FAREWELL_S is killed."""
        deadline = time.monotonic() + FAREWELL_S
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue  # killed below
        self.kill()

    def kill(self) -> None:
        """End all that still run, at once: only the leader holds anything worth keeping."""
        self._over.set()
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            for rank, process in self._processes.items():
                code = process.poll()
                if code is None or self._may_end:
                    continue
                self._failed = (rank, code)
                self._failure.set()
                if not self._over.wait(NOTICE_S):
                    self._end_all(_error(rank, code))
                return

    def _end_all(self, error: TeamError) -> None:
        """The main thread waits for a device or a process that will never answer: nothing else ends it."""
        print(f"trainer train: {error}", file=sys.stderr, flush=True)
        for process in self._processes.values():
            process.kill()
        os._exit(error.exit_code)


def end_with_leader() -> None:
    """Have this process killed when the leader that started it ends; nothing happens if none did."""
    leader = os.environ.get(LEADER_PID)
    if leader is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    require_leader()


def require_leader() -> None:
    """Raise TeamError if the leader that started this process is gone."""
    leader = os.environ.get(LEADER_PID)
    if leader is not None and os.getppid() != int(leader):
        raise TeamError("the leader of this process is gone")


def _error(rank: int, code: int) -> TeamError:
    """A death by signal, or an end without a reason, says nothing that the trainer has a code for."""
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return TeamError(f"process {rank} {how}; its own words are above", code if code > 0 else EXIT_INTERNAL)


def _environment(rank: int, size: int, port: int) -> dict[str, str]:
    root = str(Path(trainer.__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": root if inherited is None else f"{root}{os.pathsep}{inherited}",
        LEADER_PID: str(os.getpid()),
    }
