"""Run folders come home from other machines: tried again, given up in the end, and what is missing is named."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from sqlalchemy import insert, select, update

from provisioning.base import Handle, HostLost, Offer, Slot
from provisioning.host_worker import HostWorker
from provisioning.questions import Question, Steps
from runner.home import Home
from runner.homecoming import NAMED_FILES, Homecoming, Limits
from runner.places import Places
from runner.records import AttemptKind, RunState
from runner.store import changes, leases, tables
from runner.store.session import Session
from tests.fakes.asked_agent import AskedAgent
from tests.fakes.attempts import until
from tests.fakes.files_now import files_now
from tests.fakes.new_database import new_database

LIMITS = Limits(again_s=10.0, within_s=3600.0, tries=3)
RUN = "lab/A-s0-1"
FILES = {
    "conf.yaml": b"a: 1\n",
    "attempt-1/exit.json": b"{}",
    "attempt-1/metrics.jsonl": b"{}\n" * 50,
    "checkpoints/step_000002/model.safetensors": b"weights",
    "checkpoints/step_000002/state.json": b"{}",
}


@dataclass
class Far:
    """A shell of another machine whose agent is of this process: it answers when a test lets it. `silent` says why it
    does not."""

    here: Path
    there: Path
    agent: AskedAgent = field(default_factory=AskedAgent)
    silent: str = ""
    work: list[tuple[Steps[Any], Future[Any]]] = field(default_factory=list)
    is_here = False
    python = "python3"
    mask = None

    def path_there(self, path: str) -> str:
        if self.silent:
            raise HostLost(self.silent)
        return str(self.there / Path(path).relative_to(self.here))

    def carry_out(self, steps: Steps[Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self.work.append((steps, future))
        return future

    def serve(self, most: int = 10**6) -> None:
        """Answer so many questions of each work in hand; an error ends it."""
        for steps, future in self.work:
            answer = None
            try:
                for _ in range(most):
                    if future.cancelled():
                        break
                    question = steps.send(answer)
                    if self.silent:
                        raise HostLost(self.silent)
                    answer = self.agent.ask(question.kind, question.verb, *question.arguments)
            except StopIteration as end:
                future.set_result(end.value)
            except HostLost as error:
                future.set_exception(error)
            steps.close()
        self.work.clear()

    def close(self) -> None:
        pass


@dataclass
class FarProvider:
    """One machine that is ours."""

    shell_there: Far
    name: str = "ssh"

    def hosts(self) -> Sequence[Offer]:
        return (Offer(self.name, "ada", 0, 1),)

    def shell(self, _handle: Handle) -> Far:
        return self.shell_there


@dataclass
class Rig:
    """A home with one run whose files are on another machine, and a clock that a test moves."""

    folder: Path
    now: float = 1_000.0

    def __post_init__(self) -> None:
        self.home = Home(self.folder / "runs")
        new_database(self.home)
        self.session = Session(self.home.database, pid=1, now=self.now)
        self.far = Far(self.home.root, self.folder / "there")
        for name, data in FILES.items():
            path = self.far.there / RUN / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        with self.session.transaction() as connection:
            row = leases.intend(connection, self.session.home_id, "ssh", "ada", self.now)
            leases.own(connection, row.id, "ada")
            connection.execute(insert(tables.studies).values(study="lab", document={}, source="", lint=[], created=1.0))
            connection.execute(
                insert(tables.runs).values(
                    run=RUN, id="1", study="lab", arm="A", seed=0, generation=1, arm_order=0, launch=1, identity="1",
                    provider="ssh", arm_document={"kind": "trainer"}, snapshot={}, provenance={},
                    state=RunState.FINISHED, overridden=[], created=1.0, changed=1.0,
                )
            )  # fmt: skip
        self.lease = row.id
        self.ended_attempt(1)
        self.restart()

    def restart(self) -> None:
        """A new controller of the same home."""
        provider: Any = FarProvider(self.far)
        places = Places(self.session, {"ssh": provider}, lambda: self.now, lambda: self.now)
        self.homecoming = Homecoming(self.session, self.home, places, lambda: self.now, lambda: self.now, LIMITS)

    def ended_attempt(self, number: int) -> None:
        """One more attempt that has ended there."""
        with self.session.transaction() as connection:
            slot = asdict(Slot("cpu0", (0,), host="ada"))
            changes.add_attempt(connection, RUN, number, AttemptKind.TRAIN, self.lease, slot, self.now)
            changes.set_attempt(connection, RUN, number, phase="ended", ended=self.now)

    def set_run(self, **values: Any) -> None:
        with self.session.transaction() as connection:
            connection.execute(update(tables.runs).values(**values))

    def add_child(self, step: int) -> None:
        """A run that begins with a checkpoint of the other."""
        with self.session.transaction() as connection:
            connection.execute(
                insert(tables.runs).values(
                    run="lab/A-rescue1-s0-2", id="2", study="lab", arm="A-rescue1", seed=0, generation=1, arm_order=0,
                    launch=1, identity="2", provider="ssh", arm_document={"kind": "trainer"}, snapshot={},
                    provenance={}, state=RunState.QUEUED, overridden=[], created=1.0, changed=1.0, parent=RUN,
                    initial_checkpoint={"run": RUN, "step": step},
                )
            )  # fmt: skip

    def round(self, wait_s: float = 0.0, *, serve: bool = True) -> bool:
        """Wait, one round, and what it asked for is answered."""
        self.now += wait_s
        found = self.homecoming.step()
        if serve:
            self.far.serve()
        return found

    def syncs(self) -> list[str]:
        rows = tables.attempts
        with self.session.reading() as connection:
            return list(connection.execute(select(rows.c.sync).order_by(rows.c.attempt)).scalars())

    def events(self, what: str) -> list[Any]:
        with self.session.reading() as connection:
            return list(connection.execute(select(tables.events).where(tables.events.c.what == what)))

    def here(self) -> dict[str, bytes]:
        folder = self.home.root / RUN
        found = files_now(folder).items()
        return {path.relative_to(folder).as_posix(): data for path, data in found if not path.name.startswith(".")}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    found = Rig(tmp_path)
    yield found
    found.homecoming.close()
    found.session.close()


def step_folder(root: Path, step: int) -> Path:
    return root / RUN / "checkpoints" / f"step_{step:06d}"


def without(name: str) -> Callable[[str, Any], Any]:
    """An agent that cannot read the file with these bytes: what asks for its hash hears that it is not there."""

    def change(verb: str, value: Any) -> Any:
        return [None if one and one[1] == len(FILES[name]) else one for one in value] if verb == "digests" else value

    return change


def test_a_folder_comes_home_and_is_settled_once(rig: Rig) -> None:
    assert rig.round()
    assert rig.homecoming.host_of(RUN) == "ada"
    assert rig.round(), "what has arrived is settled in the round that sees it"
    assert rig.here() == FILES
    assert rig.syncs() == ["done"]
    (event,) = rig.events("synced")
    assert event.reason == "5 files are here, each with the hash that it has there"
    assert (event.data["files"], event.data["bytes_brought"]) == (5, sum(map(len, FILES.values())))
    assert event.data["left"] == event.data["refused"] == event.data["lost"] == {}
    asked = len(rig.far.agent.verbs)
    assert not rig.round(1000.0)
    assert rig.homecoming.host_of(RUN) == ""
    assert len(rig.far.agent.verbs) == asked
    assert rig.events("waived") == []


def test_a_host_that_does_not_answer_costs_no_try(rig: Rig) -> None:
    rig.far.silent = "no route"
    for number in range(30):
        rig.restart() if number == 15 else None
        assert rig.round(LIMITS.again_s)
    assert rig.syncs() == ["pending"]
    rig.far.silent = ""
    rig.round(LIMITS.again_s)
    rig.round()
    assert rig.syncs() == ["done"]
    assert rig.here() == FILES


def test_a_connection_that_is_lost_on_the_way_costs_no_try_either(rig: Rig) -> None:
    draw = random.Random(1)
    lost = 0

    def cut() -> str:
        nonlocal lost
        is_lost = lost < 8 or draw.random() < 0.3
        lost += is_lost
        return "after" if is_lost else ""

    rig.far.agent.cut = cut
    for _ in range(100):
        rig.round(LIMITS.again_s)
        if rig.syncs() == ["done"]:
            break
    assert lost > 2 * LIMITS.tries
    assert rig.here() == FILES


def test_a_failed_try_is_repeated_after_a_while_and_not_sooner(rig: Rig) -> None:
    rig.far.silent = "no route"
    rig.round()
    rig.far.silent = ""
    for _ in range(5):
        rig.round(LIMITS.again_s / 6)
    assert rig.far.agent.verbs == []
    rig.round(LIMITS.again_s / 2)
    assert rig.far.agent.verbs[0] == "files"


def test_a_file_that_cannot_be_had_is_given_up_after_some_tries_and_named(rig: Rig) -> None:
    name = "attempt-1/metrics.jsonl"
    rig.far.agent = AskedAgent(without(name))
    tried = 0
    while rig.syncs() == ["pending"]:
        rig.round(LIMITS.again_s / 2)
        tried += 1
        assert tried < 50
    assert rig.far.agent.verbs.count("files") == LIMITS.tries
    assert rig.syncs() == ["waived"]
    (event,) = rig.events("waived")
    assert event.data["lost"] == {name: "it is gone, or cannot be read there"}
    assert event.data["files"] == 4
    assert f"{name} (it is gone, or cannot be read there)" in event.reason
    assert "tried often enough" in event.reason
    assert rig.here() == {key: data for key, data in FILES.items() if key != name}
    assert not rig.round(LIMITS.again_s)
    assert rig.events("synced") == []


def test_a_disk_of_ours_that_fails_costs_tries(rig: Rig) -> None:
    while rig.syncs() == ["pending"]:
        rig.round(LIMITS.again_s, serve=False)
        for steps, future in rig.far.work:
            steps.close()
            future.set_exception(OSError(5, "Input/output error"))
        rig.far.work.clear()
        assert rig.now < 1_000 + 5 * LIMITS.tries * LIMITS.again_s
    (event,) = rig.events("waived")
    assert "tried often enough" in event.reason


def test_what_has_no_room_here_is_waited_for_and_then_named(rig: Rig) -> None:
    huge = rig.far.there / RUN / "dump.npy"
    huge.touch()
    os.truncate(huge, 60 * 2**30)  # less than a run may hold, and sparse there
    disk = os.statvfs(rig.home.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("provisioning.incoming.KEPT_FREE_BYTES", disk.f_bavail * disk.f_frsize - 2**30)
        patch.setattr(rig.far.agent, "ask", without_hashing(rig.far.agent.ask))
        rig.round()
        rig.round(serve=False)
        assert rig.here() == FILES, "what has room has come"
        assert rig.syncs() == ["pending"]
        for _ in range(2 * LIMITS.tries):
            rig.round(LIMITS.again_s)
    (event,) = rig.events("waived")
    assert list(event.data["lost"]) == ["dump.npy"]
    assert "MiB are free" in event.reason
    assert sum(path.stat().st_size for path in rig.home.root.rglob("*.part")) == 0


def without_hashing(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Asks an agent for everything but the hashes of large blocks: nobody compares them here, and they take long."""

    def asked(kind: TypeAdapter[Any], verb: str, *arguments: Any) -> Any:
        if verb != "digests" or arguments[1][0][0] != "dump.npy":
            return ask(kind, verb, *arguments)
        return kind.validate_python([[1, 60 * 2**30, 1, "0" * 64] for _ in arguments[1]])

    return asked


def test_the_best_checkpoint_is_missed_by_name(rig: Rig) -> None:
    rig.set_run(best_step=1)
    for _ in range(2 * LIMITS.tries + 1):
        rig.round(LIMITS.again_s)
    (event,) = rig.events("waived")
    assert event.data["lost"] == {"checkpoints/step_000001": "the best checkpoint is not there, or not complete"}
    assert rig.here() == FILES, "the last one came all the same"


def test_a_checkpoint_that_another_run_begins_with_comes_too(rig: Rig) -> None:
    for step in (1, 3):
        shutil.copytree(rig.far.there / RUN / "checkpoints/step_000002", step_folder(rig.far.there, step))
    rig.add_child(step=1)
    rig.round()
    assert rig.homecoming.host_of(RUN) == "ada"
    rig.round()
    (event,) = rig.events("synced")
    assert event.data["checkpoints"] == [1, 3]
    assert step_folder(rig.home.root, 1).is_dir()


def test_what_is_whole_here_stays_when_nothing_more_of_it_comes(rig: Rig) -> None:
    rig.round()
    rig.round()
    assert rig.syncs() == ["done"]
    rig.ended_attempt(2)  # it went on from there, and its machine is gone before anything was compared
    rig.homecoming.step()
    rig.far.serve(most=1)
    with rig.session.transaction() as connection:
        connection.execute(update(tables.leases).values(state="released"))
    rig.round(serve=False)
    assert rig.syncs() == ["done", "waived"]
    assert rig.here() == FILES
    (event,) = rig.events("waived")
    assert event.data["checkpoints"] == [2]


@pytest.mark.parametrize("name", ["step_100.pt", "step_final/model.pt", "step_000100/optimizer.pt", "step_000100"])
def test_what_a_script_calls_a_checkpoint_is_one_of_its_files(rig: Rig, name: str) -> None:
    """We know nothing of it: it comes home, is nowhere missed, and stays."""
    rig.set_run(arm_document={"kind": "command"}, best_step=7)
    shutil.rmtree(rig.far.there / RUN / "checkpoints")
    path = rig.far.there / RUN / "checkpoints" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    rig.round()
    rig.round()
    assert rig.syncs() == ["done"]
    assert rig.here()[f"checkpoints/{name}"] == b"weights"


@pytest.mark.parametrize("name", ["step_000002", "step_1"])
def test_a_file_where_a_checkpoint_should_be_ends_nothing(rig: Rig, name: str) -> None:
    shutil.rmtree(rig.far.there / RUN / "checkpoints")
    (rig.far.there / RUN / "checkpoints").mkdir()
    (rig.far.there / RUN / "checkpoints" / name).write_bytes(b"no folder")
    rig.round()
    rig.round()
    assert rig.syncs() == ["done"]


def test_time_runs_out_and_what_is_missing_is_listed(rig: Rig) -> None:
    for number in range(NAMED_FILES + 5):
        (rig.far.there / RUN / f"picture-{number:02d}.png").write_bytes(b"x")
    rig.homecoming.step()
    rig.far.serve(most=2)  # what the host holds, and a part of its hashes
    rig.round(LIMITS.within_s - 1, serve=False)
    assert rig.syncs() == ["pending"]
    rig.round(1.0, serve=False)
    assert rig.syncs() == ["waived"]
    (event,) = rig.events("waived")
    assert "did not come in time" in event.reason
    assert f"and {len(FILES) + NAMED_FILES + 5 - NAMED_FILES} more" in event.reason
    assert len(event.data["lost"]) == len(FILES) + NAMED_FILES + 5


def test_a_host_that_was_never_heard_of_again_is_given_up_in_the_end(rig: Rig) -> None:
    rig.far.silent = "no route"
    rig.round()
    rig.round(LIMITS.within_s)
    (event,) = rig.events("waived")
    assert "nobody knows what it holds" in event.reason
    assert rig.syncs() == ["waived"]


def test_a_run_that_works_again_is_let_be_until_it_ends(rig: Rig) -> None:
    rig.round(serve=False)
    ((_, future),) = rig.far.work
    rig.set_run(state=RunState.RUNNING)
    rig.round()
    assert future.cancelled()
    assert rig.homecoming.host_of(RUN) == "ada"
    rig.round(10 * LIMITS.within_s)
    assert rig.syncs() == ["pending"]
    rig.ended_attempt(2)
    (rig.far.there / RUN / "attempt-2").mkdir()
    (rig.far.there / RUN / "attempt-2" / "exit.json").write_bytes(b"{}")
    rig.set_run(state=RunState.CANCELLED)
    rig.round()
    rig.round()
    assert rig.syncs() == ["done", "done"], "one look at the folder settles both"
    assert rig.here() == {**FILES, "attempt-2/exit.json": b"{}"}
    assert len(rig.events("synced")) == 1


def test_a_new_controller_goes_on_with_what_has_arrived(rig: Rig) -> None:
    rig.homecoming.step()
    rig.far.serve(most=3)
    rig.restart()
    rig.round()
    rig.round()
    assert rig.syncs() == ["done"]
    assert rig.here() == FILES


@settings(max_examples=12)  # each makes a database
@given(faults=st.lists(st.sampled_from(["silent", "before", "after", "working", "restart", "none"]), max_size=12))
def test_whatever_happens_on_the_way_all_comes_home_or_is_named(
    tmp_path_factory: pytest.TempPathFactory, faults: list[str]
) -> None:
    rig = Rig(tmp_path_factory.mktemp("rig"))
    for fault in faults:
        rig.far.silent = "no route" if fault == "silent" else ""
        where = fault if fault in ("before", "after") else ""
        rig.far.agent.cut = partial(str, where)
        rig.set_run(state=RunState.RUNNING if fault == "working" else RunState.FINISHED)
        if fault == "restart":
            rig.restart()
        rig.round(LIMITS.again_s)
    rig.far.silent, rig.far.agent.cut = "", lambda: ""
    rig.set_run(state=RunState.FINISHED)
    for _ in range(3):
        rig.round(LIMITS.again_s)
    assert rig.syncs() == ["done"]
    assert rig.here() == FILES
    assert len(rig.events("synced")) == 1
    rig.session.close()


# ---- the thread of a host --------------------------------------------------------------------------------------------


class HeldAgent:
    """An agent whose answer a test holds back, and then loses."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.may_go_on = threading.Event()

    def ask(self, kind: TypeAdapter[Any], verb: str, *_arguments: Any) -> Any:
        if verb == "held":
            self.asked.set()
            self.may_go_on.wait(60)
            raise HostLost("the connection is gone")
        return kind.validate_python(1)

    def close(self) -> None:
        pass


NUMBER = TypeAdapter(int)


def held() -> Steps[int]:
    answer: int = yield Question(NUMBER, "held", ())
    return answer


def last_words(asked: threading.Event, may_go_on: threading.Event) -> Steps[int]:
    """Work that is let be between its last answer and its result."""
    yield Question(NUMBER, "quick", ())
    asked.set()
    may_go_on.wait(60)
    return 2


def broken() -> Steps[int]:
    yield Question(NUMBER, "quick", ())
    raise OSError(5, "Input/output error")


def test_a_disk_of_ours_that_fails_under_work_is_told_to_whoever_waits_for_it() -> None:
    agent: Any = HeldAgent()
    worker = HostWorker(agent, look_s=0.01)
    with pytest.raises(OSError, match="Input/output error"):
        worker.carry_out(broken()).result(30)
    assert worker.ask(NUMBER, "quick") == 1
    worker.close()


@pytest.mark.parametrize("where", ["its question is lost", "it has its result"])
def test_work_that_nobody_wants_any_more_leaves_its_host_alone(where: str) -> None:
    agent: Any = HeldAgent()
    worker = HostWorker(agent, pause_s=0.01, look_s=0.01)
    steps = held() if where == "its question is lost" else last_words(agent.asked, agent.may_go_on)
    work = worker.carry_out(steps)
    assert agent.asked.wait(60)
    work.cancel()  # the run works there again
    agent.may_go_on.set()

    def answers() -> bool:
        try:
            return worker.ask(NUMBER, "quick") == 1
        except HostLost:  # until it may be asked again; a thread that has ended never may
            return False

    until(answers)
    worker.close()
