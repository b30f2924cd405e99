"""A real agent that is asked without a connection, through JSON as on the line; and connections that are cut."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from provisioning.agent import Agent
from provisioning.base import HostLost
from provisioning.questions import Ask
from tests.fakes.attempts import SUPERVISOR
from tests.fakes.sshd import Sshd

MOST_LINE_BYTES = 2**20


class AskedAgent:
    """Asks an agent of this process. `verbs` are those that were asked; `change` may change an answer, as a hostile
    host would; `cut`, when it says so, loses the question before or the answer after it."""

    def __init__(self, change: Callable[[str, Any], Any] = lambda _, value: value) -> None:
        self._agent = Agent(str(SUPERVISOR), sys.executable, {})
        self._change = change
        self.cut: Callable[[], str] = lambda: ""
        self.verbs: list[str] = []

    def ask(self, kind: TypeAdapter[Any], verb: str, *arguments: Any) -> Any:
        """As AgentChannel.ask."""
        self.verbs.append(verb)
        cut = self.cut()
        if cut == "before":
            raise HostLost("cut before")
        line = json.dumps({"verb": verb, "arguments": arguments})
        answer = json.dumps(self._agent.answer(json.loads(line)))
        assert max(len(line), len(answer)) <= MOST_LINE_BYTES
        if cut == "after":
            raise HostLost("cut after")
        told = json.loads(answer)
        assert "error" not in told, told
        try:
            return kind.validate_python(self._change(verb, told["value"]))
        except ValidationError as error:
            raise HostLost(str(error)) from error


def often_cut(ask: Ask, sshd: Sshd, seed: int, share: float) -> tuple[Ask, list[str]]:
    """The same questions, while a share of them has all sessions of a real server killed within a few milliseconds;
    the verbs of the questions that were lost are listed."""
    draw, lost = random.Random(seed), []

    def cut() -> None:
        for pid in sshd.connections():
            os.kill(pid, signal.SIGKILL)

    def cutting(kind: TypeAdapter[Any], verb: str, *arguments: Any) -> Any:
        timer = threading.Timer(draw.uniform(0, 0.006), cut)
        if draw.random() < share:
            timer.start()
        try:
            return ask(kind, verb, *arguments)
        except HostLost:
            lost.append(verb)
            raise
        finally:
            timer.cancel()
            if timer.ident is not None:
                timer.join()

    return cutting, lost


def tree(folder: Path) -> dict[str, bytes | None]:
    """What lies below a folder: bytes of files, None for folders."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in found.items()}


@contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """Within, no file of this process may grow beyond so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
