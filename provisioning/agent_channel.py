"""Asks the agent of one host: starts it over a connection, sends a line, waits for a line.

What comes back is foreign: it is read up to a bound, and whatever is no answer is a lost host.
"""

from __future__ import annotations

import base64
import json
import secrets
import shlex
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import paramiko
from pydantic import TypeAdapter, ValidationError

from provisioning.agent import GREETING
from provisioning.agent_archive import BOOT, OLDEST_PYTHON, AgentArchive
from provisioning.base import HostLost, NoCapacity, SpawnRefused
from provisioning.ssh_connection import Connection, Deadlines
from provisioning.ssh_host import SshHost

MOST_ANSWER_BYTES = 64 * 2**20
"""A longer line is no answer of ours."""

MOST_PREFACE_BYTES = 2**20
"""What a login shell may say before the agent speaks."""

_PIECE = 65536

Value = TypeVar("Value")


class Connects(Protocol):
    """What opens a connection to a host."""

    def __call__(self) -> Connection:
        """A new connection. Raises AuthenticationFailed or HostLost."""
        ...


class Asks(Protocol):
    """What puts questions to one host: a connection, or the thread that owns it."""

    def ask(self, kind: TypeAdapter[Value], verb: str, *arguments: Any) -> Value:
        """The value of a verb, of this kind. Raises what the verb raises there, AuthenticationFailed, or HostLost."""
        ...

    def close(self) -> None:
        """Let go of the host; what was spawned there lives on."""
        ...


class AgentChannel:
    """The agent of one host, started when first asked and started again after it was lost. For one thread."""

    def __init__(
        self,
        host: SshHost,
        connect: Connects,
        archive: AgentArchive,
        deadlines: Deadlines,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._connect = connect
        self._archive = archive
        self._deadlines = deadlines
        self._monotonic = monotonic
        self._connection: Connection | None = None
        self._channel: paramiko.Channel | None = None
        self._heard = bytearray()

    def ask(self, kind: TypeAdapter[Value], verb: str, *arguments: Any) -> Value:
        """The value of a verb, which must be of this kind. Raises what the verb raises there, AuthenticationFailed, or
        HostLost: then nobody knows whether it was carried out, and the next question begins with a new connection."""
        line = json.dumps({"verb": verb, "arguments": arguments}).encode() + b"\n"
        until = self._monotonic() + self._deadlines.answer_s
        try:
            if self._channel is None:
                self._start()
                until = self._monotonic() + self._deadlines.answer_s
            self._send(line, until)
            answer = json.loads(self._line(until, MOST_ANSWER_BYTES))
            value, error = answer.get("value"), answer.get("error")
        except (OSError, EOFError, ValueError, RecursionError, AttributeError, paramiko.SSHException) as problem:
            complaint = self._complaint()
            self.close()
            raise HostLost(f"{self._host.name}: {problem or type(problem).__name__}{complaint}") from problem
        except HostLost:
            self.close()
            raise
        if error is not None:
            raise self._error(error)
        try:
            return kind.validate_python(value)
        except ValidationError as problem:
            first = problem.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise HostLost(f"{self._host.name} answered something else to {verb}: {where} {first['msg']}") from problem

    def close(self) -> None:
        """Let the agent end; what it spawned lives on."""
        connection, self._connection, self._channel, self._heard = self._connection, None, None, bytearray()
        if connection is not None:
            connection.close()

    def _start(self) -> None:
        self._connection = self._connect()
        nonce = secrets.token_hex(8)
        until = self._monotonic() + self._deadlines.answer_s
        self._channel = self._connection.run(self._command(nonce), self._deadlines.answer_s)
        said = self._after(f"armature boot {nonce} ", until)
        if said == "send":
            self._send(self._archive.data, until)
            said = self._after(f"armature boot {nonce} ", until)
        if said.startswith("python "):
            oldest = ".".join(map(str, OLDEST_PYTHON))
            raise HostLost(
                f"{self._host.name}: {self._host.python} there is {said.capitalize()}; {oldest} or newer is needed: "
                "name another one as `python`"
            )
        if said != "have":
            raise HostLost(f"{self._host.name}: the agent cannot be put there: {said[:200]}")
        self._after(f"{GREETING}{nonce}", until)

    def _command(self, nonce: str) -> str:
        """What the login shell there runs; it may be any shell, so nothing in it needs more than plain quotes."""
        code = f"import base64;exec(base64.b64decode('{base64.b64encode(BOOT.encode()).decode()}'))"
        arguments = [self._archive.hash, str(len(self._archive.data)), nonce]
        python = self._host.python
        # A quoted tilde would be a folder of that name.
        program = f'"$HOME"/{shlex.quote(python[2:])}' if python.startswith("~/") else shlex.quote(python)
        return f'{program} -I -S -c "{code}" {" ".join(arguments)}'

    def _after(self, prefix: str, until: float) -> str:
        """What follows a prefix on the first line that has it."""
        left = MOST_PREFACE_BYTES
        while left > 0:
            line = self._line(until, left)
            left -= len(line)
            text = line.decode(errors="replace")
            if prefix in text:
                return text[text.index(prefix) + len(prefix) :].rstrip("\r\n")
        raise ValueError("it says more than an agent would")

    def _send(self, data: bytes, until: float) -> None:
        assert self._channel is not None
        view = memoryview(data)
        while view:
            self._channel.settimeout(self._left(until))
            sent = self._channel.send(bytes(view[:_PIECE]))
            if sent == 0:
                raise EOFError("the agent ended")
            view = view[sent:]

    def _line(self, until: float, most: int) -> bytes:
        assert self._channel is not None
        searched = 0
        while (end := self._heard.find(b"\n", searched)) < 0:
            searched = len(self._heard)
            if searched > most:
                raise ValueError(f"an answer of more than {most:,} bytes")
            self._channel.settimeout(self._left(until))
            piece = self._channel.recv(_PIECE)
            if not piece:
                raise EOFError("the agent ended")
            self._heard += piece
        line = bytes(self._heard[: end + 1])
        del self._heard[: end + 1]
        return line

    def _left(self, until: float) -> float:
        left = until - self._monotonic()
        if left <= 0:
            raise TimeoutError(f"no answer within {self._deadlines.answer_s:g} s")
        return left

    def _complaint(self) -> str:
        """The last of what the agent said on its error stream."""
        if self._channel is None:
            return ""
        words = b""
        while len(words) < MOST_PREFACE_BYTES and self._channel.recv_stderr_ready():
            piece = self._channel.recv_stderr(_PIECE)
            if not piece:
                break
            words += piece
        text = words.decode(errors="replace").strip()[-400:]
        return f"; it said: {text}" if text else ""

    def _error(self, told: Any) -> Exception:
        if not (isinstance(told, list) and len(told) >= 2 and all(isinstance(part, str) for part in told)):
            return HostLost(f"{self._host.name}: the agent answered something else")
        name, *parts = told
        if name == "SpawnRefused" and len(parts) == 2:
            return SpawnRefused(*parts)
        kind = NoCapacity if name == "NoCapacity" else HostLost
        return kind(f"{self._host.name}: {parts[-1]}")
