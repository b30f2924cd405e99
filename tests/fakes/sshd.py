"""A real sshd on loopback with keys of its own, to be reached as any host is; it can be made to refuse and to hang."""

from __future__ import annotations

import getpass
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from provisioning.agent_archive import agent_archive
from provisioning.agent_channel import AgentChannel
from provisioning.host_keys import HostKeys
from provisioning.ssh_connection import Connection, Deadlines
from provisioning.ssh_host import SshHost
from tests.fakes.attempts import SUPERVISOR

LOOK_S = 0.005
INSTALL = "apt-get install openssh-server"


def sshd_path() -> str:
    """Where sshd is. Raises RuntimeError with the command that installs it."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise RuntimeError(f"these tests need a real sshd; install it: {INSTALL}")
    return found


def make_key(path: Path) -> None:
    """A new key pair in these two files (`path` and `path`.pub); an old one is replaced."""
    for old in (path, path.with_name(f"{path.name}.pub")):
        old.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


def configured(
    folder: Path,
    ports: tuple[int, ...],
    host_key: Path,
    authorized_keys: Path,
    environment: Mapping[str, str],
    lines: tuple[str, ...] = (),
) -> list[str]:
    """Write a server's configuration into a folder; the command that runs it in the foreground.

    `environment` is set in every session; no value may hold a line break. `lines` are more lines of configuration.
    """
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    config = [
        *(f"Port {port}" for port in ports), "ListenAddress 127.0.0.1", f"HostKey {host_key}",
        f"PidFile {folder}/sshd.pid", f"AuthorizedKeysFile {authorized_keys}", "StrictModes no",
        "UsePAM no", "PasswordAuthentication no", "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password", "AllowTcpForwarding yes", "MaxStartups 100:30:200", "MaxSessions 64",
        # One line: of several, the server takes the first.
        f"SetEnv {' '.join(map(_quoted, environment.items()))}", "Subsystem sftp internal-sftp", *lines,
    ]  # fmt: skip
    (folder / "sshd_config").write_text("\n".join(config) + "\n")
    return [sshd_path(), "-D", "-f", f"{folder}/sshd_config", "-E", f"{folder}/sshd.log"]


def _quoted(pair: tuple[str, str]) -> str:
    text = "=".join(pair).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def agent_of(host: SshHost, known_hosts: Path, deadlines: Deadlines) -> AgentChannel:
    """The agent of a host over a connection of its own; a new host's key is accepted."""
    keys = HostKeys(known_hosts, lambda *_: True, also=None)
    connect = partial(Connection.open, host, keys, deadlines)
    return AgentChannel(host, connect, agent_archive(str(SUPERVISOR)), deadlines)


class Sshd:
    """One server. `host` is how to reach it; `home` is where HOME points for what it runs."""

    def __init__(self, folder: Path, name: str = "loop") -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self.port = free_port()
        for key in ("hostkey", "clientkey"):
            self.make_key(key)
        (folder / "authorized_keys").write_text((folder / "clientkey.pub").read_text())
        keys = (str(folder / "clientkey"),)
        self.host = SshHost(name, "127.0.0.1", self.port, getpass.getuser(), keys, python=sys.executable)
        self._process: subprocess.Popen[bytes] | None = None

    def make_key(self, name: str) -> None:
        """A new key pair of this name; an old one is replaced."""
        make_key(self.folder / name)

    def start(self, *lines: str) -> None:
        """Start it, with more lines of configuration."""
        keys, environment = self.folder / "authorized_keys", {"HOME": str(self.home)}
        command = configured(self.folder, (self.port,), self.folder / "hostkey", keys, environment, lines)
        listening = self.folder / "sshd.pid"  # written as soon as it listens
        listening.unlink(missing_ok=True)
        self._process = subprocess.Popen(command, start_new_session=True)
        while not (listening.exists() and listening.read_text().strip() == str(self._process.pid)):
            if self._process.poll() is not None:
                raise RuntimeError((self.folder / "sshd.log").read_text())
            time.sleep(LOOK_S)

    def agent(self, known_hosts: Path, deadlines: Deadlines, host: SshHost | None = None) -> AgentChannel:
        """The agent of this host, or of another one, over a connection of its own; a new host's key is accepted."""
        return agent_of(host or self.host, known_hosts, deadlines)

    def connections(self) -> list[int]:
        """Process numbers of the sessions that are open."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def signal_all(self, number: int) -> None:
        """Signal the server and every session: SIGSTOP makes it hang, SIGKILL cuts all connections."""
        assert self._process is not None
        for pid in [self._process.pid, *_below(self._process.pid)]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def stop(self) -> None:
        """End it with all its sessions; its port is free then."""
        if self._process is not None:
            server = psutil.Process(self._process.pid)
            server.suspend()  # or a session that begins while we look at the others outlives them
            while server.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                time.sleep(LOOK_S)
            self.signal_all(signal.SIGKILL)
            self._process.wait()
            self._process = None
            while not _is_free(self.port):
                time.sleep(LOOK_S)


def _below(pid: int) -> list[int]:
    """The sshd processes below one; what they run is not touched."""
    found = []
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    for child in map(int, children):
        try:
            name = Path(f"/proc/{child}/comm").read_text().strip()
        except OSError:
            continue
        if name.startswith("sshd"):
            found += [child, *_below(child)]
    return found


def free_port() -> int:
    """A port of our own: below those that the system gives to connections, for a server that stops comes back on its
    port, apart from those of tests that run at the same time, and not given before, for some are bound much later."""
    return next(port for port in _ports if _is_ours(port) and _is_free(port))


def _is_ours(port: int) -> bool:
    """Claim a port among all test processes of this machine, of other checkouts too, until this one ends."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0armature-test-port-{port}")
    except OSError:
        claim.close()
        return False
    claim.detach()  # stays open
    return True


def _is_free(port: int) -> bool:
    """Whether a server can start on it; connections that have ended and linger do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


def _own_ports() -> Iterator[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first, count = 12_000 + 2_000 * (worker % 8), 2_000
    for step in itertools.count(random.randrange(count)):
        yield first + step % count


_ports = _own_ports()
