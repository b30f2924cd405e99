"""Makes every instance of a fake that begins to run a real machine: sshd on loopback, a HOME, start commands, GPUs.

A container is a tree of processes under one of ours (container.py). As root it also has process numbers and an /etc/ssh
of its own, by the kernel's namespaces, as a rented one has; elsewhere it sees the processes of this machine, and
`/etc/ssh/` in its start commands is replaced by a folder of its own. Either way all that runs in it ends with it, and
with the process that plays the fake, however that ends.
"""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from functools import cache
from pathlib import Path
from types import TracebackType

from tests.fakes.sshd import configured, free_port, make_key
from tests.fakes.vast.fake import Fake
from tests.fakes.vast.machine import Endpoint, Instance
from tests.fakes.vast.world import Change

HERE = Path(__file__).resolve().parent
BEGINS_WITHIN_S = 30.0
ENDS_WITHIN_S = 30.0
TRIES = 5  # another process may take a port between our choice and the server's start
SSH = "/etc/ssh"
NAMESPACES = ("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # not `-p 8000:8000`, which is a port map among the variables


@cache
def namespaces() -> tuple[str, ...]:
    """The command that puts a program into namespaces of its own; () where we may not, or have no such program."""
    if os.geteuid() != 0 or shutil.which(NAMESPACES[0]) is None or not Path(SSH).is_dir():
        return ()
    done = subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False)
    return () if done.returncode else NAMESPACES


class Container:
    """The running container of one instance. Raises RuntimeError when it does not come up."""

    def __init__(self, folder: Path, prefix: tuple[str, ...]) -> None:
        with (folder / "container.err").open("ab") as errors:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, "-I", "-S", str(HERE / "container.py"), str(folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
            )  # fmt: skip
        said = self._said()
        if said != "ready":
            self.end()
            raise RuntimeError(f"the container in {folder} did not begin: {said or 'see container.err'}")

    def end(self) -> None:
        """End it with all that runs in it; afterwards nothing of it is left. Raises RuntimeError if it does not end."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"container {self._process.pid} still runs after {ENDS_WITHIN_S} s") from None

    def _said(self) -> str:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], BEGINS_WITHIN_S)
        return self._process.stdout.readline().decode().strip() if readable else "it says nothing"


class Instances:
    """Plays the machines of one fake from its construction until closed; use it as a context.

    Each instance has a folder of its own below `folder` (a temporary one by default) until it is destroyed. Troubles of
    a boot (machine.TROUBLES) that are the host's are played here. A frozen instance is not stopped here.
    """

    def __init__(self, fake: Fake, folder: Path | None = None, is_isolated: bool | None = None) -> None:
        """`is_isolated` asks for namespaces (True) or for none (False); by default they are used where they can be."""
        self._fake = fake
        self._temporary = tempfile.TemporaryDirectory(prefix="fake-vast-") if folder is None else None
        self.folder = Path(self._temporary.name if self._temporary else folder or "").resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._prefix = () if is_isolated is False else namespaces()
        if is_isolated and not self._prefix:
            raise RuntimeError("namespaces of its own for a container need root and unshare")
        self._running: dict[int, Container] = {}
        world = fake.world
        self._before = (world.endpoint, world.watch, fake.container_log)
        world.endpoint, world.watch, fake.container_log = self._endpoint, self._changed, self.log

    def __enter__(self) -> Instances:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all containers and leave the fake as it was; a temporary folder is removed."""
        with self._fake.lock:
            world = self._fake.world
            world.endpoint, world.watch, self._fake.container_log = self._before
            for number in list(self._running):
                self._running.pop(number).end()
            if self._temporary is not None:
                self._temporary.cleanup()

    def home(self, number: int) -> Path:
        """HOME of an instance, whether it runs or is stopped."""
        return self.folder / str(number) / "home"

    def host_key(self, number: int) -> str:
        """The public host key of an instance that has run, as its file holds it."""
        return (self.folder / str(number) / "ssh" / "ssh_host_ed25519_key.pub").read_text()

    def log(self, number: int) -> list[str]:
        """What an instance has printed so far, over all its starts."""
        try:
            return (self.folder / str(number) / "log").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []

    def _endpoint(self, instance: Instance) -> Endpoint | None:
        """Start a container that can be reached: at one port as the gateway's, at another one directly."""
        for left in reversed(range(TRIES)):
            gateway, direct = free_port(), free_port()
            try:
                self._begin(instance, (gateway, direct))
            except RuntimeError:
                if not left:
                    raise
                continue
            break
        return Endpoint("127.0.0.1", gateway, "127.0.0.1", direct)

    def _changed(self, change: Change) -> None:
        """Follow what has become of an instance."""
        instance = change.after
        runs = instance.living and instance.running_since_s is not None
        if runs and instance.id not in self._running and "ssh" in instance.runtype:
            self._begin(instance, ())  # nobody listens, and all else is as ever
        if not runs and instance.id in self._running:
            self._running.pop(instance.id).end()
        folder = self.folder / str(instance.id)
        if not instance.living and folder.is_dir():
            shutil.rmtree(folder)
        elif change.event == "change" and folder.is_dir():
            self._let_in(instance)
        self._before[1](change)

    def _begin(self, instance: Instance, ports: tuple[int, ...]) -> None:
        folder, home = self.folder / str(instance.id), self.home(instance.id)
        for made in (folder / "ssh", folder / "bin", home):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        host_key = folder / "ssh" / "ssh_host_ed25519_key"
        if not host_key.exists():
            make_key(host_key)
        self._let_in(instance)
        self._add_gpus(instance, folder)
        environment = self._environment(instance, ports)
        onstart = instance.onstart if self._prefix else instance.onstart.replace(f"{SSH}/", f"{folder}/ssh/")
        (folder / "onstart.sh").write_text(onstart + "\n")
        sshd = None
        if ports and instance.boot.trouble != "ssh_hangs":
            sessions = {name: value for name, value in environment.items() if "\n" not in value}
            for name in sorted(set(environment) - set(sessions)):
                with (folder / "log").open("a") as log:
                    log.write(f"{name} has a line break: start commands see it, ssh sessions do not\n")
            sshd = configured(folder, ports, host_key, folder / "authorized_keys", sessions)
        self._write_private(
            folder / "container.json",
            {
                "sshd": sshd, "ports": ports, "home": str(home), "log": str(folder / "log"), "environment": environment,
                "onstart": ["sh", str(folder / "onstart.sh")] if onstart else [],
                "mounts": [[str(folder / "ssh"), SSH]] if self._prefix else [],
            },
        )  # fmt: skip
        self._running[instance.id] = Container(folder, self._prefix)

    def _let_in(self, instance: Instance) -> None:
        keys = self.folder / str(instance.id) / "authorized_keys"
        keys.write_text("".join(f"{key.strip()}\n" for key in instance.ssh_keys))

    def _environment(self, instance: Instance, ports: tuple[int, ...]) -> dict[str, str]:
        """What everything in the container finds. The programs are those of this machine, Python ours."""
        folder = self.folder / str(instance.id)
        path = [str(folder / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        found = {"LANG": "C.UTF-8", "PUBLIC_IPADDR": "127.0.0.1"}
        found |= {name: value for name, value in instance.environment if NAME.fullmatch(name)}
        found |= {"PATH": os.pathsep.join(path), "HOME": str(self.home(instance.id)), "VAST_URL": self._fake.base_url}
        if not self._prefix:
            found["SSH_HOST_KEYS"] = f"{folder}/ssh/ssh_host_*_key.pub"  # for who looks in /etc/ssh without being told
        if ports:
            found["VAST_TCP_PORT_22"] = str(ports[-1])
        return found | self._fake.container_environment(instance.id)

    def _add_gpus(self, instance: Instance, folder: Path) -> None:
        """Put nvidia-smi there, with the name and the memory that the offer gives."""
        offer, trouble = instance.offer, instance.boot.trouble
        given = offer.gpu_ids[:-1] if trouble == "fewer_gpus" else offer.gpu_ids
        gpus = [
            {
                "index": str(place), "uuid": f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'{offer.machine_id}/{gpu}')}",
                "name": offer.gpu_name, "memory.total": str(offer.gpu_ram_mb), "memory.used": "1",
                "mig.mode.current": "[N/A]",
            }
            for place, gpu in enumerate(given)
        ]  # fmt: skip
        self._write_private(folder / "gpus.json", {"broken": trouble == "nvidia_smi_broken", "gpus": gpus})
        words = [sys.executable, "-I", "-S", str(HERE / "nvidia_smi.py"), str(folder / "gpus.json")]
        program = folder / "bin" / "nvidia-smi"
        program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        program.chmod(0o755)

    def _write_private(self, path: Path, document: object) -> None:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(document, file)
