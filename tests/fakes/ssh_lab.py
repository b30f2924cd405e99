"""A home whose runs are placed on hosts that are real sshd processes on loopback; and its rounds in this process."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from provisioning import Setting
from provisioning.host_keys import HostKeys
from provisioning.local import LocalProvider
from provisioning.ssh import SshProvider
from provisioning.ssh_connection import Deadlines
from provisioning.ssh_host import SshHost
from runner.controller import Controller, Round
from runner.detach import SUPERVISOR
from runner.home import Home
from runner.launching import Options, commit, prepare
from runner.store.database import reading
from runner.store.hosts import read_hosts
from runner.store.opening import driver_of
from runner.store.session import Session
from tests.fakes.attempts import until
from tests.fakes.files_now import files_now
from tests.fakes.lab import DEADLINE_S, ROOT, Lab
from tests.fakes.sshd import Sshd

ANSWER_S = 1.0
"""What a round of these tests may wait for one host."""

QUICK = Deadlines(connect_s=ANSWER_S, answer_s=ANSWER_S)


@dataclass
class SshLab(Lab):
    """A lab beside its hosts, by name; `hosts.yaml` in its folder lists them. Nobody's own known_hosts is read: HOME is
    a folder of the lab, here and in the commands."""

    hosts: dict[str, Sshd] = field(default_factory=dict)

    @property
    def hosts_file(self) -> Path:
        return self.folder / "hosts.yaml"

    @property
    def runs_below(self) -> Path:
        """The folder of this lab and of its hosts."""
        return self.folder.parent

    def add_host(self, name: str, *, is_up: bool = True) -> Sshd:
        """One more host, listed from now on."""
        self.hosts[name] = Sshd(self.folder.parent / name, name)
        if is_up:
            self.hosts[name].start()
        self.list_hosts()
        return self.hosts[name]

    def list_hosts(self, **changed: dict[str, Any]) -> None:
        """Write the list; `changed` are keys of single hosts that shall say something else."""
        blocks = {name: {**_block(sshd.host), **changed.get(name, {})} for name, sshd in self.hosts.items()}
        self.hosts_file.write_text(json.dumps({"hosts": blocks}))

    def there(self, host: str, run: str) -> Path:
        """The run folder on a host of the run of this name (A-s0)."""
        return self.runs_there(host) / str(self.status()[run]["run_dir"])

    def runs_there(self, host: str) -> Path:
        """What a host has of this home."""
        (home_id,) = self.rows("SELECT home_id FROM home")[0]
        return self.hosts[host].home / ".armature" / "runs" / str(home_id)

    def host_of(self, run: str) -> str:
        """The host that a run is on, or was."""
        return str(self.status()[run]["slot"]).split(":")[0]

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of the database."""
        with reading(Home(self.home)) as connection:
            return [tuple(row) for row in driver_of(connection).execute(query, values)]

    def events(self, what: str) -> list[str]:
        """What the events of this kind say, oldest first."""
        return [reason for (reason,) in self.rows("SELECT reason FROM events WHERE what = ? ORDER BY id", what)]

    def event_data(self, what: str) -> list[dict[str, Any]]:
        """The data of the events of this kind, oldest first."""
        return [json.loads(data) for (data,) in self.rows("SELECT data FROM events WHERE what = ? ORDER BY id", what)]

    def values(self, run_dir: str, name: str = "loss") -> dict[int, float]:
        """The points of a run that count, by step."""
        query = (
            "SELECT p.step, p.value FROM points AS p JOIN series AS s ON s.id = p.series "
            "WHERE s.run = ? AND s.name = ? ORDER BY p.step"
        )
        return {int(step): float(value) for step, value in self.rows(query, run_dir, name)}

    def attempts(self) -> list[tuple[Any, ...]]:
        """(run folder, number, phase, sync) of every attempt."""
        return self.rows("SELECT run, attempt, phase, sync FROM attempts ORDER BY run, attempt")

    def clean_up(self) -> None:
        """Leave nothing alive, whatever state a test left it in: nothing is asked, everything is killed."""
        pid = self.controller_pid() if self.home.exists() else None
        if pid is not None and pid != os.getpid():
            self.kill_controller()
        for sshd in self.hosts.values():
            sshd.stop()
        for _ in range(2):  # a supervisor may be about to start what was not there at the first look
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)
        until(lambda: not self.processes())


def _block(host: SshHost) -> dict[str, Any]:
    return {
        "address": host.address, "port": host.port, "user": host.user, "keys": list(host.keys), "python": host.python
    }  # fmt: skip


@contextmanager
def ssh_lab(folder: Path, *names: str) -> Iterator[SshLab]:
    """A lab with hosts of these names, up and listed."""
    (folder / "lab").mkdir()
    (folder / "person").mkdir()
    lab = SshLab(folder / "lab", {"HOME": str(folder / "person")}, draws_reports=False)
    try:
        for name in names:
            lab.add_host(name)
        yield lab
    finally:
        lab.clean_up()


class QuickClock:
    """The machine's clocks; a wait is never long."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float, descriptors: Collection[int] = ()) -> frozenset[int]:
        time.sleep(min(seconds, 0.02))
        return frozenset()


@dataclass
class Rounds:
    """The rounds of one controller in this process, with hosts that count as silent after `silent_s`; `took_s` says
    what each round took."""

    lab: SshLab
    silent_s: float
    took_s: list[float] = field(default_factory=list)
    controller: Controller | None = None
    _providers: dict[str, Any] = field(default_factory=dict)

    def launch(self, *arms: Path, **options: Any) -> None:
        """Ask for a launch, on the hosts of the list and with their keys accepted unless told otherwise, and begin."""
        places = {"provider": "ssh", "hosts": str(self.lab.hosts_file), "slots": 1, "accepts": lambda *_: True}
        commit(prepare(Home(self.lab.home), arms, Options(**{**places, **options})))
        if self.controller is None:
            self.begin()

    def begin(self) -> None:
        """A new controller."""
        home = Home(self.lab.home)
        session = Session(home.database, pid=os.getpid(), now=time.time())
        self._providers = _QuickProviders(home, session, self.silent_s)
        environment = {"PATH": os.environ["PATH"]}
        self.controller = Controller(home, session, self._providers, QuickClock(), environment, _no_report)

    def end(self) -> None:
        """Close it, as a signal would; what runs lives on."""
        if self.controller is not None:
            self.controller.close()
            self.controller = None
            for provider in self._providers.values():
                if hasattr(provider, "close"):
                    provider.close()

    def step(self) -> Round:
        assert self.controller is not None
        began = time.monotonic()
        found = self.controller.step()
        self.took_s.append(time.monotonic() - began)
        return found

    def until(self, condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
        """Rounds until the condition holds; returns what it returned."""
        assert self.controller is not None
        end = time.monotonic() + deadline_s
        while True:
            self.step()
            if found := condition():
                return found
            assert time.monotonic() < end, f"not within {deadline_s} s: {what}\n{self.lab.status()}"
            self.controller.wait(0.02)

    def until_ended(self) -> None:
        """Rounds until nothing is left to do, files included, and the hosts are given back."""
        assert self.controller is not None
        end = time.monotonic() + DEADLINE_S
        while self.step().open or not self.controller.let_go():
            assert time.monotonic() < end, f"not over: {self.lab.status()} {self.lab.attempts()}"
            self.controller.wait(0.02)


class _QuickProviders(dict[str, Any]):
    """Providers as a controller makes them, with short durations."""

    def __init__(self, home: Home, session: Session, silent_s: float) -> None:
        self._silent_s = silent_s
        self._home = home
        self._session = session

    def __missing__(self, name: str) -> Any:
        if name == "local":
            made: Any = LocalProvider(str(SUPERVISOR), {})
        else:
            with self._session.reading() as connection:
                hosts, listed = read_hosts(connection)
            keys = HostKeys(self._home.root / "known_hosts", Setting("", {}, self._home.root).accepts, also=None)
            made = SshProvider(
                str(SUPERVISOR), hosts, keys, self._home.root, QUICK,
                listed=listed, answer_s=ANSWER_S, look_s=0.05, pause_s=0.1, silent_s=self._silent_s,
            )  # fmt: skip
        self[name] = made
        return made


@contextmanager
def rounds(lab: SshLab, silent_s: float = 0.5) -> Iterator[Rounds]:
    """Rounds of a lab, ended in the end; HOME is the lab's, and no report is begun."""
    found = Rounds(lab, silent_s)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", lab.extra_environment["HOME"])
        patch.setattr("provisioning.ssh.CUT_S", 0.2)
        patch.setattr("provisioning.host_worker.LONGEST_PAUSE_S", 0.3)
        patch.setattr("runner.reporting.history.studies_without_report", lambda *_: {})
        try:
            yield found
        finally:
            found.end()


def _no_report(_home: Home, _study: str) -> Any:
    raise AssertionError("these tests ask for reports themselves")


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder that is no note of ours, by path."""
    found = files_now(folder).items()
    return {path.relative_to(folder).as_posix(): data for path, data in found if not path.name.startswith(".")}


KEEPING = """
import pathlib, sys
sys.path.insert(0, {root!r})
from tests.fakes import quick_trainer
quick_trainer.BEST, quick_trainer.EVERY, quick_trainer.PAUSE_S = {best}, {every}, 0.02
say_only = quick_trainer.save
def save(run_dir, step, metrics):
    folder = pathlib.Path(run_dir) / "checkpoints" / f"step_{{step:06d}}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(f"weights of step {{step}}".encode() * 1000)
    (folder / "state.json").write_text("{{}}")
    say_only(run_dir, step, metrics)
obey_only = quick_trainer.obey
def obey(run_dir, *rest):
    # A step that is made before the run begins has nobody who asks for anything.
    return obey_only(run_dir, *rest) if (run_dir / "control.json").exists() else 0
quick_trainer.save, quick_trainer.obey = save, obey
sys.exit(quick_trainer.main(sys.argv[1:]))
"""


def keeping_python(folder: Path, best: int, every: int) -> Path:
    """An interpreter for `environment.python`: the quick trainer, with checkpoints that hold something, one each
    `every` steps, the one at `best` being the best."""
    program = folder / "keeping.py"
    program.write_text(KEEPING.format(root=str(ROOT), best=best, every=every))
    path = folder / "keeping-python"
    path.write_text(
        f'#!/bin/sh\ncase "$1 $3" in "-m check"|-c*) exec {sys.executable} "$@";; esac\n'
        f'exec {sys.executable} -P {program} "$@"\n'
    )
    path.chmod(0o755)
    return path
