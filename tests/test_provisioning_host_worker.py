"""One thread for each host: what is there comes here, and a host that hangs makes nobody else wait."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from provisioning.base import AuthenticationFailed, HostLost, Spawned
from provisioning.host_worker import HostWorker, Watched
from provisioning.mirror import NOTES, Mirror
from provisioning.questions import Question, Steps
from provisioning.ssh_connection import Deadlines
from provisioning.ssh_host import SshHost
from tests.fakes.attempts import until
from tests.fakes.files_now import files_now
from tests.fakes.sshd import Sshd

FLOAT = TypeAdapter(float)
NOTHING = TypeAdapter(None)
SPAWNED = TypeAdapter(tuple[Spawned, ...])
QUICK = Deadlines(connect_s=1.0, answer_s=1.0)


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def started(folder: Path, cleanup: ExitStack, name: str) -> Sshd:
    found = Sshd(folder / name, name)
    cleanup.callback(found.stop)
    found.start()
    return found


def worker_of(
    folder: Path,
    cleanup: ExitStack,
    sshd: Sshd,
    deadlines: Deadlines = QUICK,
    answer_s: float = 5.0,
    host: SshHost | None = None,
) -> HostWorker:
    agent = sshd.agent(folder / "known_hosts", deadlines, host)
    found = HostWorker(agent, answer_s=answer_s, look_s=0.02, pause_s=0.05)
    cleanup.callback(found.close)
    return found


def tree(folder: Path) -> dict[str, bytes]:
    found = files_now(folder).items()
    return {str(path.relative_to(folder)): data for path, data in found if path.name != NOTES}


def patiently(ask: Callable[[], object]) -> object:
    """The answer of a host that may have to be found again first."""

    def attempt() -> object:
        try:
            return (ask(),)
        except HostLost:
            return None

    return until(attempt)


def test_an_attempt_there_is_seen_here_to_its_end(tmp_path: Path, cleanup: ExitStack) -> None:
    sshd = started(tmp_path, cleanup, "loop")
    worker = worker_of(tmp_path, cleanup, sshd, Deadlines(5, 5))
    there, here = sshd.home / "run", tmp_path / "here"
    program = (
        "import pathlib, time\n"
        "for step in range(40):\n"
        "    print('line', step, flush=True)\n"
        "    time.sleep(0.01)\n"
        "pathlib.Path('model.safetensors').write_bytes(bytes(10**6))\n"
    )
    spec = {
        "attempt": "ab12/1", "argv": [sshd.host.python, "-I", "-S", "-c", program], "cwd": str(sshd.home), "env": {},
        "run_dir": str(there), "attempt_dir": f"{there}/attempt-1", "cores": [], "deadline_s": None, "grace_s": 10,
        "term_s": 1, "heartbeat_s": 0.05,
    }  # fmt: skip
    (spawned,) = worker.ask(SPAWNED, "spawn", [spec])
    watched = Watched(str(there), Mirror(here), (".safetensors",), (spawned.identity,))
    worker.watch([watched])
    until(lambda: (here / "attempt-1/stdout.log").exists() and worker.sight().alive.get(spawned.identity))
    until(lambda: (here / "attempt-1/exit.json").exists())
    until(lambda: worker.sight().alive[spawned.identity] is False)
    until(lambda: worker.sight().is_whole and tree(here) == tree(there))
    assert tree(here)["attempt-1/stdout.log"].count(b"line") == 40
    worker.watch(())
    assert worker.sight().lost == ""


def test_a_host_that_hangs_makes_nobody_else_wait(tmp_path: Path, cleanup: ExitStack) -> None:
    good, bad = (started(tmp_path, cleanup, name) for name in ("good", "bad"))
    workers = {sshd: worker_of(tmp_path, cleanup, sshd) for sshd in (good, bad)}
    for sshd, worker in workers.items():
        patiently(partial(worker.ask, FLOAT, "memory_mib"))
        (sshd.home / "run").mkdir()
        (sshd.home / "run" / "log").write_bytes(b"first\n")
        worker.watch([Watched(str(sshd.home / "run"), Mirror(tmp_path / "here" / sshd.host.name))])
        until(lambda sshd=sshd: tree(tmp_path / "here" / sshd.host.name) == {"log": b"first\n"})
    bad.signal_all(signal.SIGSTOP)
    until(lambda: workers[bad].sight().lost)
    began = time.monotonic()
    for _ in range(5):
        with pytest.raises(HostLost):
            workers[bad].ask(FLOAT, "memory_mib")
    assert workers[good].ask(FLOAT, "memory_mib") > 0
    assert time.monotonic() - began < 5
    for sshd in (good, bad):
        with (sshd.home / "run" / "log").open("ab") as log:
            log.write(b"second\n")
    until(lambda: tree(tmp_path / "here" / "good") == {"log": b"first\nsecond\n"})
    assert tree(tmp_path / "here" / "bad") == {"log": b"first\n"}
    bad.signal_all(signal.SIGCONT)
    until(lambda: tree(tmp_path / "here" / "bad") == {"log": b"first\nsecond\n"})
    until(lambda: workers[bad].sight().lost == "")


def test_a_network_that_was_away_is_caught_up_with(tmp_path: Path, cleanup: ExitStack) -> None:
    sshd = started(tmp_path, cleanup, "loop")
    worker = worker_of(tmp_path, cleanup, sshd)
    run = sshd.home / "run"
    run.mkdir()
    (run / "log").write_bytes(b"before\n")
    worker.watch([Watched(str(run), Mirror(tmp_path / "here"))])
    until(lambda: tree(tmp_path / "here") == tree(run))
    sshd.stop()
    (run / "log").write_bytes((run / "log").read_bytes() + b"while nobody looked\n" * 1000)
    until(lambda: worker.sight().lost)
    last = worker.sight().answered_s
    assert last is not None
    sshd.start()
    until(lambda: tree(tmp_path / "here") == tree(run))
    until(lambda: (worker.sight().answered_s or 0) > last)  # which is written down after the bytes


def test_a_question_that_was_not_begun_in_time_is_never_asked(tmp_path: Path, cleanup: ExitStack) -> None:
    sshd = started(tmp_path, cleanup, "loop")
    worker = worker_of(tmp_path, cleanup, sshd, Deadlines(5, 5), answer_s=0.3)
    patiently(partial(worker.ask, FLOAT, "memory_mib"))
    sshd.signal_all(signal.SIGSTOP)
    target = tmp_path / "written"
    with pytest.raises(HostLost, match=r"within 0\.3 s"):
        worker.ask(FLOAT, "memory_mib")  # keeps the thread busy
    with pytest.raises(HostLost, match=r"within 0\.3 s"):
        worker.ask(NOTHING, "write", str(target), "", False)
    sshd.signal_all(signal.SIGCONT)
    patiently(partial(worker.ask, FLOAT, "memory_mib"))
    assert not target.exists()


def test_a_host_that_refuses_us_is_not_asked_again_and_again(tmp_path: Path, cleanup: ExitStack) -> None:
    sshd = started(tmp_path, cleanup, "loop")
    sshd.make_key("clientkey")  # another one than the host knows
    worker = worker_of(tmp_path, cleanup, sshd, Deadlines(5, 5))
    worker.watch([Watched(str(sshd.home), Mirror(tmp_path / "here"))])
    with pytest.raises((AuthenticationFailed, HostLost), match="refused us"):  # by the question, or by the look before
        worker.ask(FLOAT, "memory_mib")
    for _ in range(20):
        with pytest.raises(HostLost, match="refused us"):
            worker.ask(FLOAT, "memory_mib")
    assert (sshd.folder / "sshd.log").read_text().count("Connection closed by authenticating user") <= 1


def test_closing_ends_the_thread_and_leaves_what_runs(tmp_path: Path, cleanup: ExitStack) -> None:
    sshd = started(tmp_path, cleanup, "loop")
    worker = worker_of(tmp_path, cleanup, sshd, answer_s=1.0)
    patiently(partial(worker.ask, FLOAT, "memory_mib"))
    worker.close()
    with pytest.raises(HostLost, match="nobody asks it any more"):
        worker.ask(FLOAT, "memory_mib")
    until(lambda: sshd.connections() == [])


def test_a_jump_host_that_dies_takes_the_way_and_not_the_answer(tmp_path: Path, cleanup: ExitStack) -> None:
    outer, inner = (started(tmp_path, cleanup, name) for name in ("outer", "inner"))
    worker = worker_of(tmp_path, cleanup, inner, host=replace(inner.host, jump=outer.host))
    patiently(partial(worker.ask, FLOAT, "memory_mib"))
    outer.stop()
    with pytest.raises(HostLost):
        worker.ask(FLOAT, "memory_mib")
    outer.start()
    patiently(partial(worker.ask, FLOAT, "memory_mib"))


# ---- mistakes of our own ---------------------------------------------------------------------------------------------


class Broken:
    """An agent that a mistake of ours ends, once it may."""

    def __init__(self, error: BaseException) -> None:
        self.may_break = threading.Event()
        self._error = error

    def ask(self, *_: Any) -> Any:
        assert self.may_break.wait(60)
        raise self._error

    def close(self) -> None:
        """There is no connection."""


def asking() -> Steps[None]:
    """Work of more than one question."""
    while True:
        yield Question(FLOAT, "memory_mib", ())


def broken_steps() -> Steps[None]:
    raise KeyError("steps")
    yield Question(FLOAT, "memory_mib", ())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [RecursionError("deep"), KeyError("x"), MemoryError()])
def test_whatever_ends_the_thread_nobody_waits_for_ever(error: BaseException) -> None:
    agent = Broken(error)
    worker = HostWorker(agent)  # type: ignore[arg-type]
    begun = [worker.begin(FLOAT, "memory_mib"), worker.carry_out(asking())]
    begun += [worker.carry_out(broken_steps()), worker.begin(FLOAT, "memory_mib"), worker.carry_out(asking())]
    agent.may_break.set()
    for future in begun:
        with pytest.raises(HostLost):
            worker.wait(future, 20)
    until(lambda: "mistake of our own" in worker.sight().lost)
    for ask in (worker.begin, worker.ask):
        with pytest.raises(HostLost, match="mistake of our own"):
            ask(FLOAT, "memory_mib")
    with pytest.raises(HostLost, match="mistake of our own"):
        worker.carry_out(asking())
    worker.close()  # what ended the thread is told while this test expects it


def test_what_cannot_be_tidied_up_ends_no_thread() -> None:
    def untidy() -> Steps[None]:
        try:
            yield Question(FLOAT, "memory_mib", ())
        finally:
            raise FileNotFoundError("the folder is gone")

    agent = Broken(HostLost("gone"))
    agent.may_break.set()
    worker = HostWorker(agent)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(HostLost, match="gone"):
            worker.wait(worker.carry_out(untidy()), 20)
    worker.close()


class Full:
    """An agent of a host whose run folder holds one file."""

    def ask(self, kind: TypeAdapter[Any], verb: str, *_: Any) -> Any:
        assert verb == "look"
        files = {"metrics.jsonl": [1, 3, 0, 0, "e30K"]}
        return kind.validate_python({"folders": [{"files": files, "odd": [], "is_whole": True}], "alive": []})

    def close(self) -> None:
        """There is no connection."""


def test_a_look_that_our_disk_has_no_room_for_tells_nothing_of_the_host(tmp_path: Path, cleanup: ExitStack) -> None:
    worker = HostWorker(Full(), look_s=0.01)  # type: ignore[arg-type]
    cleanup.callback(worker.close)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("provisioning.incoming.KEPT_FREE_BYTES", 2**62)
        worker.watch([Watched("/run", Mirror(tmp_path / "here"))])
        until(lambda: "metrics.jsonl: this machine cannot keep it" in worker.sight().lost)
        assert worker.sight().answered_s is None
    until(lambda: worker.sight().is_whole)
    assert worker.sight().lost == ""
    assert tree(tmp_path / "here") == {"metrics.jsonl": b"{}\n"}
