"""Rounds of the controller in this process, with real supervisors: cut off between intent, act and confirmation."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from provisioning.base import Handle, HostLost, Shell, Spawned
from provisioning.local import LocalProvider
from runner.controller import Controller
from runner.detach import SUPERVISOR
from runner.home import Home
from runner.launching import Options, commit, prepare
from runner.store import tables
from runner.store.session import Session
from runner.store.status import read_status
from tests.fakes.lab import Lab


class Killed(BaseException):
    """Stands for a kill -9: nothing may catch it."""


class BrittleShell:
    """A real shell that dies before or after its next spawn."""

    def __init__(self, shell: Shell, dies: str) -> None:
        self._shell = shell
        self._dies = dies

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shell, name)

    def spawn(self, launch_specs: Sequence[Mapping[str, Any]]) -> tuple[Spawned, ...]:
        if self._dies == "before":
            raise Killed
        self._shell.spawn(launch_specs)
        raise Killed


class BrittleProvider(LocalProvider):
    """This machine, with a shell that dies."""

    dies = "before"

    def shell(self, handle: Handle) -> Any:
        return BrittleShell(super().shell(handle), self.dies)


class Ticking:
    """A clock of which a test decides the wall time; waiting is real but short."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float, descriptors: Collection[int] = ()) -> frozenset[int]:
        time.sleep(min(seconds, 0.01))
        return frozenset()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path, draws_reports=False)
    yield found
    found.clean_up()


def controller(lab: Lab, provider: type[LocalProvider] = LocalProvider) -> Controller:
    home = Home(lab.home)
    session = Session(home.database, pid=os.getpid(), now=time.time())
    reports: Callable[..., Any] = _no_report
    made = provider(str(SUPERVISOR), os.environ)
    return Controller(home, session, {"local": made}, Ticking(), dict(os.environ), reports)


class _Done:
    def poll(self) -> int:
        return 0


def _no_report(_home: Home, _study: str) -> Any:
    return _Done()


def until_idle(found: Controller) -> None:
    deadline = time.monotonic() + 60
    while found.step().open:
        assert time.monotonic() < deadline, "still open after 60 s"
        time.sleep(0.02)
    assert found.let_go()
    found.close()


def runs(lab: Lab) -> list[dict[str, Any]]:
    session = Session(Home(lab.home).database, pid=0, now=0.0)
    with session.reading() as connection:
        document = read_status(connection, time.time())
    session.close()
    return [run for study in document["studies"] for run in study["runs"]]


@pytest.mark.parametrize("dies", ["before", "after"])
def test_a_controller_cut_off_around_a_spawn_starts_nothing_twice(lab: Lab, dies: str) -> None:
    script = (
        "import os\n"
        "from pathlib import Path\n"
        "with open(Path(os.environ['RUNNER_RUN_DIR']) / 'starts', 'a') as file:\n"
        "    file.write('x')\n"
        "print('step 1/1 loss=1')\n"
    )
    commit(prepare(Home(lab.home), [lab.arm("once", script, steps=1)], Options()))
    BrittleProvider.dies = dies
    first = controller(lab, BrittleProvider)
    with pytest.raises(Killed):
        first.step()
    first.close()  # as the death of a process closes its pipes
    assert [run["state"] for run in runs(lab)] == ["starting"]
    until_idle(controller(lab))
    (run,) = runs(lab)
    assert (run["state"], run["attempts"], run["points"]) == ("finished", 1, 1)
    assert (lab.home / run["run_dir"] / "starts").read_text() == "x"


def test_an_error_in_one_run_becomes_its_event_and_the_others_go_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(prepare(Home(lab.home), [lab.arm("bad"), lab.arm("good")], Options()))
    from runner.stage import Stage

    write = Stage._write_files

    def break_one(self: Stage, shell: Shell, run: Any, *rest: Any) -> None:
        if run.arm == "bad":
            raise RuntimeError("the disk said no")
        write(self, shell, run, *rest)

    monkeypatch.setattr(Stage, "_write_files", break_one)
    found = controller(lab)
    until_idle(found)
    bad, good = runs(lab)
    assert (bad["state"], good["state"]) == ("failed(staging)", "finished")
    assert "the disk said no" in bad["reason"]
    session = Session(Home(lab.home).database, pid=0, now=0.0)
    with session.reading() as connection:
        (event,) = connection.execute(select(tables.events).where(tables.events.c.what == "trouble")).all()
    session.close()
    assert "RuntimeError: the disk said no" in event.reason
    assert "Traceback" in event.data["traceback"]


@pytest.mark.parametrize("kind", [HostLost, RuntimeError])
def test_what_a_host_says_cannot_touch_the_terminal_that_shows_the_log(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[Exception]
) -> None:
    commit(prepare(Home(lab.home), [lab.arm("bad")], Options()))
    from runner.stage import Stage

    def break_it(*_: object) -> None:
        raise kind("it said: \x1b]0;owned\x07\x1b[2J\u202e")

    monkeypatch.setattr(Stage, "_write_files", break_it)
    found = controller(lab)
    found.step()
    found.close()
    said = capsys.readouterr().err
    assert "bad-s0: " in said
    assert "it said: \\x1b]0;owned\\x07" in said
    assert all(character.isprintable() or character == "\n" for character in said)


def test_every_state_change_has_a_reason_and_the_order_is_the_drawn_one(lab: Lab) -> None:
    commit(prepare(Home(lab.home), [lab.arm("talker", steps=3)], Options()))
    until_idle(controller(lab))
    session = Session(Home(lab.home).database, pid=0, now=0.0)
    with session.reading() as connection:
        events = connection.execute(select(tables.events).where(tables.events.c.run.is_not(None))).all()
        leases = connection.execute(select(tables.leases)).all()
    session.close()
    order = [event.what for event in events]
    # A process may end before anybody has seen it running.
    assert order in [["queued", "placed", "staging", "starting", *seen, "finished"] for seen in ([], ["running"])]
    assert all(event.reason for event in events)
    assert [(lease.provider, lease.state) for lease in leases] == [("local", "released")]
    assert leases[0].label.startswith("armature/")


def test_what_a_run_folder_holds(lab: Lab) -> None:
    commit(prepare(Home(lab.home), [lab.arm("talker", steps=3)], Options()))
    until_idle(controller(lab))
    (run,) = runs(lab)
    folder = lab.home / run["run_dir"]
    assert {"config.yaml", "provenance.json", "control.json", "attempt-1"} <= {path.name for path in folder.iterdir()}
    control = json.loads((folder / "control.json").read_text())
    assert control == {"attempt": 1, "seq": 1, "probe_every_steps": None, "stop": None}
    record = json.loads((folder / "attempt-1" / "exit.json").read_text())
    assert (record["code"], record["cause"], record["leftover_pids"]) == (0, "exited", [])
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["snapshot"] == json.loads(json.dumps(provenance["code"]["hash"]))
    assert not any(name.startswith(("PATH", "HOME")) for name in provenance["variables"])
