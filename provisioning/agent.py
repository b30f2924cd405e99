"""What runs on a host at the far end of a connection: the verbs of this package on that machine, asked over a pipe.

Nothing but the standard library is there, and the package itself as one archive. One line of JSON in, one line out, in
order: `{"verb": …, "arguments": […]}` gives `{"value": …}` or `{"error": [name, text, …]}`; bytes are base64. The first
line out is a greeting, so that what a login shell says before it cannot be taken for an answer. It ends when its input
does; what it spawned lives on. It is single-threaded and keeps nothing: a new one knows as much as the last.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, Any

from provisioning.agent_code import code_piece, code_state, code_unpack, file_in_place, folder_in_place
from provisioning.agent_files import digests, files, pieces
from provisioning.base import (
    Handle,
    HostLost,
    NoCapacity,
    ProcessIdentity,
    Request,
    Slot,
    SpawnRefused,
)
from provisioning.changes import changes
from provisioning.gpus import MASK
from provisioning.local import LocalProvider
from provisioning.local_shell import LocalShell
from provisioning.nvidia_smi import SmiDriver

GREETING = "armature agent "

_OF_THE_CONNECTION = re.compile(r"SSH_|RUNNER_ATTEMPT$|SHLVL$|PWD$|OLDPWD$|_$")
"""Variables that say something about this connection, and nothing about the machine."""


@dataclass(frozen=True, slots=True)
class Survey:
    """How many usable GPUs and cores a host has, and one sentence for each GPU that is left out."""

    gpus: int
    cores: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class About:
    """Who and where the agent is: the name of the host, the home folder of its user, and the mask of GPUs that holds
    for it (None = all)."""

    host: str
    home: str
    python: str
    mask: str | None


class Agent:
    """The verbs, by name. Every argument and value is plain JSON."""

    def __init__(self, supervisor_path: str, python: str, environment: Mapping[str, str]) -> None:
        self._shell = LocalShell(supervisor_path, python)
        self._mask = environment.get(MASK)
        self._variables = {name: value for name, value in environment.items() if not _OF_THE_CONNECTION.match(name)}
        self._provider = LocalProvider(supervisor_path, environment, driver=SmiDriver(), python=python)
        self._verbs: Mapping[str, Callable[..., Any]] = {
            "about": self.about,
            "read": self.read,
            "stamp": self._shell.stamp,
            "write": self.write,
            "names": self._shell.names,
            "look": self.look,
            "spawn": self.spawn,
            "is_alive": lambda identity: self._shell.is_alive(ProcessIdentity(**identity)),
            "can_see": lambda identity: self._shell.can_see(ProcessIdentity(**identity)),
            "free_disk_mib": self._shell.free_disk_mib,
            "memory_mib": self._shell.memory_mib,
            "survey": self.survey,
            "slots": self.slots,
            "probe": self.probe,
            "code_state": code_state,
            "code_piece": code_piece,
            "code_unpack": code_unpack,
            "file_in_place": file_in_place,
            "folder_in_place": folder_in_place,
            "files": files,
            "digests": digests,
            "pieces": pieces,
        }

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request."""
        verb = self._verbs.get(str(request.get("verb")))
        if verb is None:
            return {"error": ["HostLost", f"the agent has no verb {request.get('verb')!r}"]}
        try:
            return {"value": verb(*request.get("arguments", ()))}
        except SpawnRefused as error:
            return {"error": ["SpawnRefused", error.attempt, error.reason]}
        except (HostLost, NoCapacity) as error:
            return {"error": [type(error).__name__, str(error)]}

    def about(self) -> dict[str, Any]:
        """Who and where the agent is."""
        return asdict(About(platform.node(), os.path.expanduser("~"), platform.python_version(), self._mask))

    def read(self, path: str, offset: int, limit: int | None) -> str | None:
        """Bytes of a file, base64."""
        data = self._shell.read(path, offset, limit)
        return None if data is None else base64.b64encode(data).decode()

    def write(self, path: str, data: str, is_durable: bool) -> None:
        """Replace a file with these bytes, base64."""
        self._shell.write(path, base64.b64decode(data), is_durable=is_durable)

    def look(self, folders: Sequence[Sequence[Any]], pids: Sequence[Any], budget_bytes: int) -> dict[str, Any]:
        """Everything that one round wants to know: what is new in each folder (path, what is known of it, endings of
        paths that are not wanted), and which of these processes run. Those are looked at first: what a process that
        has ended left behind is then among what is new."""
        alive = [self._shell.is_alive(ProcessIdentity(**one)) for one in pids]
        found = []
        for folder, known, skipped in folders:
            found.append(changes(folder, known, skipped, budget_bytes))
            budget_bytes -= sum(len(piece[4]) for piece in found[-1]["files"].values())
        return {"folders": found, "alive": alive}

    def spawn(self, launch_specs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Fork one supervisor for each launch spec. What it does not say of the environment is as it is here."""
        specs = [{**spec, "env": {**self._variables, **spec["env"]}} for spec in launch_specs]
        spawned = [asdict(one) for one in self._shell.spawn(specs)]
        tell_switch("staged")
        return spawned

    def survey(self) -> dict[str, Any]:
        """What an offer may name."""
        survey = self._provider.survey()
        cores = sum(one.cores for one in self._provider.offers(Request(None, 0, 1)))
        return asdict(Survey(len(survey.gpus), cores, survey.notes))

    def slots(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        """This machine cut into slots."""
        return [asdict(slot) for slot in self._provider.slots(_HERE, Request(**request))]

    def probe(self, label: str, slot: Mapping[str, Any], pids: Sequence[int]) -> dict[str, Any]:
        """A look at one slot."""
        cores, uuids, indices = (tuple(slot[name]) for name in ("cores", "gpu_uuids", "gpu_indices"))
        pinned = Slot(slot["name"], cores, uuids, indices, slot["vram_mib"], slot["shares_cores"])
        return asdict(self._provider.probe(Handle("local", label, ""), pinned, pids))

    def close(self) -> None:
        """Let go of the spawner."""
        self._shell.close()


_HERE = Handle("local", "", "")


def tell_switch(name: str) -> None:
    """Touch a file that the switch of a rented machine watches; nothing on a machine that has none."""
    with suppress(OSError):
        descriptor = os.open(
            os.path.expanduser(f"~/.armature/switch/{name}"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        os.utime(descriptor)
        os.close(descriptor)


def serve(agent: Agent, lines: IO[bytes], answers: IO[bytes]) -> None:
    """Answer line by line until the input ends."""
    for line in lines:
        answers.write(json.dumps(agent.answer(json.loads(line))).encode() + b"\n")
        answers.flush()
        tell_switch("contact")
    agent.close()


def main(supervisor_path: str, nonce: str) -> None:
    """Greet with the nonce of the caller, then serve standard input."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library might print is no answer
    answers.write(f"{GREETING}{nonce}\n".encode())
    answers.flush()
    serve(Agent(supervisor_path, sys.executable, os.environ), sys.stdin.buffer, answers)
