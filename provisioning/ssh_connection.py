"""One ssh connection to one host: pinned host keys, keys of the person or an agent, a deadline on everything.

The library waits without end for some answers, so whatever is done here runs under a timer that closes the connection:
then every wait ends. A connection that was closed once stays closed; the caller makes a new one.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko

from provisioning.base import AuthenticationFailed, HostLost
from provisioning.host_keys import HostKeys
from provisioning.ssh_host import SshHost

# What goes wrong is raised, and told by us; the library would print it too, with the stack of its own thread.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

_BROKEN = (paramiko.SSHException, OSError, EOFError)
"""What the library raises when a connection breaks."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds: for a connection to stand, for one answer, and between two signs of life of an idle connection."""

    connect_s: float = 20.0
    answer_s: float = 60.0
    keepalive_s: float = 15.0


class Connection:
    """An open connection. For one thread."""

    def __init__(self, host: SshHost, client: paramiko.SSHClient, jump: Connection | None) -> None:
        self._host = host
        self._client = client
        self._jump = jump

    @classmethod
    def open(cls, host: SshHost, keys: HostKeys, deadlines: Deadlines) -> Connection:
        """Connect, through the jump host where there is one. Raises AuthenticationFailed or HostLost."""
        for path in host.keys:
            _check_key_file(path)
        with ExitStack() as opened:
            jump = None if host.jump is None else cls.open(host.jump, keys, deadlines)
            if jump is not None:
                opened.callback(jump.close)
            client = paramiko.SSHClient()
            opened.callback(client.close)
            keys.load_into(client)
            with _lost(host), within(deadlines.connect_s, client.close, f"{host.place} did not let us in"):
                _let_in(client, host, deadlines, _socket(jump, host, deadlines))
            opened.pop_all()
        return cls(host, client, jump)

    def run(self, command: str, deadline_s: float) -> paramiko.Channel:
        """Start a command line of the user's shell there. Raises HostLost."""
        said = f"{self._host.place} did not start our command"
        with _lost(self._host), within(deadline_s, self.close, said):
            transport = self._client.get_transport()
            if transport is None or not transport.is_active():
                raise EOFError("the connection is closed")
            channel = transport.open_session(timeout=deadline_s)
            channel.exec_command(command.encode())
            return channel

    def tunnel(self, host: SshHost, deadline_s: float) -> paramiko.Channel:
        """A stream from here on to another host."""
        transport = self._client.get_transport()
        if transport is None or not transport.is_active():
            raise EOFError("the connection to the jump host is closed")
        return transport.open_channel("direct-tcpip", (host.address, host.port), ("127.0.0.1", 0), timeout=deadline_s)

    def close(self) -> None:
        """Close it, and the one that it goes through."""
        self._client.close()
        if self._jump is not None:
            self._jump.close()


def _let_in(
    client: paramiko.SSHClient, host: SshHost, deadlines: Deadlines, way: socket.socket | paramiko.Channel
) -> None:
    """Prove who the host is and who we are, and keep the connection alive from then on."""
    files: Any = [_home(path) for path in host.keys] or None  # the library's hints know one file only
    connect_s = deadlines.connect_s
    client.connect(
        host.address, host.port, username=host.user or None, key_filename=files, look_for_keys=not host.keys,
        allow_agent=host.may_ask_agent, timeout=connect_s, banner_timeout=connect_s, auth_timeout=connect_s,
        channel_timeout=connect_s, sock=way,
    )  # fmt: skip
    transport = client.get_transport()
    if transport is None:
        raise EOFError("the connection was closed again")
    transport.set_keepalive(max(1, round(deadlines.keepalive_s)))


@contextmanager
def within(seconds: float, close: Callable[[], None], said: str) -> Iterator[None]:
    """Do what follows within a deadline, or `close` is called and HostLost raised with what is `said`."""
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        close()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (*_BROKEN, AttributeError) as error:  # the library forgets that its socket may be closed under it
        if is_late.is_set():
            raise HostLost(f"{said} within {seconds:g} s") from error
        raise
    finally:
        timer.cancel()
    if is_late.is_set():
        raise HostLost(f"{said} within {seconds:g} s")


@contextmanager
def _lost(host: SshHost) -> Iterator[None]:
    """Errors of the library as ours."""
    try:
        yield
    except paramiko.BadHostKeyException as error:
        raise HostKeys.changed(host.place, error.expected_key, error.key) from error
    except paramiko.AuthenticationException as error:
        tried = f"keys tried: {', '.join(host.keys)}" if host.keys else "tried: the ssh agent and the usual key files"
        raise AuthenticationFailed(f"{host.place} refused us ({error}); {tried}") from error
    except _BROKEN as error:
        raise HostLost(f"{host.place}: {error or type(error).__name__}") from error


def _socket(jump: Connection | None, host: SshHost, deadlines: Deadlines) -> socket.socket | paramiko.Channel:
    if jump is not None:
        return jump.tunnel(host, deadlines.connect_s)
    return socket.create_connection((host.address, host.port), deadlines.connect_s)


def _check_key_file(path: str) -> None:
    """As ssh does: a private key that others can read is no secret. Raises AuthenticationFailed."""
    try:
        mode = os.stat(_home(path)).st_mode
    except OSError as error:
        raise AuthenticationFailed(f"key file {path}: {error.strerror or error}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise AuthenticationFailed(f"key file {path} can be read by others; chmod 600 {path}")


def _home(path: str) -> str:
    with suppress(RuntimeError):
        return str(Path(path).expanduser())
    return path
