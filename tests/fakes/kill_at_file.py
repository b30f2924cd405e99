"""A kill -9 just before a chosen look at, or change of, the file system, in a child that is a copy of this process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


def killed_at(step: int, folder: Path, work: Callable[[], object]) -> bool:
    """Do `work` in a child that is killed at the `step`-th time (from 1) that it touches a file below `folder`.

    Whether it was killed; if not, it did its work to the end. Raises AssertionError if the work failed.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _arm(step, str(folder) + os.sep)
            work()
            code = 0
        finally:
            os._exit(code)  # nothing of the tests may run in the child
    _, status = os.waitpid(child, 0)
    was_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert was_killed or os.waitstatus_to_exitcode(status) == 0, f"the work ended with {status}"
    return was_killed


def steps_of(folder: Path, work: Callable[[], object]) -> int:
    """How often `work` touches a file below `folder`; it is done in a child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        count = [0]

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if _is_touch(event, arguments, str(folder) + os.sep):
                count[0] += 1

        try:
            sys.addaudithook(hook)
            work()
            os.write(writing, str(count[0]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading) as pipe:
        return int(pipe.read())


def _arm(step: int, prefix: str) -> None:
    left = [step]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if _is_touch(event, arguments, prefix):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _is_touch(event: str, arguments: tuple[Any, ...], prefix: str) -> bool:
    return event in _EVENTS and str(arguments[0]).startswith(prefix)
