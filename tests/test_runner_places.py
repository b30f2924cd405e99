from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select

from provisioning.base import Handle, HostLost, Offer, ProcessOwner, Request, Slot
from provisioning.gpu_watch import GpuProcess, GpuReading
from provisioning.gpus import Gpu, GpuSurvey
from provisioning.local import LocalProvider
from runner.errors import InfrastructureError
from runner.home import Home
from runner.lock import HomeLock
from runner.places import Places, left_out, refuse_occupied
from runner.quarantine import RELEASE_WITHIN_S, REPROBE_S
from runner.records import AttemptKind, RunState
from runner.run_facts import Shape
from runner.store import changes, tables
from runner.store.facts import StoredRun, read_run
from runner.store.session import Session
from tests.fakes.new_database import new_database

UUIDS = ("GPU-aa", "GPU-bb")
GPU_SHAPE, CPU_SHAPE = Shape(1, 1), Shape(0, 1)
ANNA = ProcessOwner("anna", "python train.py")


@dataclass
class FakeDriver:
    """Two GPUs whose readings a test sets; counts how often it was asked."""

    readings: dict[str, GpuReading | str] = field(default_factory=dict)
    asked: int = 0

    def survey(self) -> GpuSurvey:
        self.asked += 1
        return GpuSurvey(tuple(Gpu(uuid, index, "card", 24_000) for index, uuid in enumerate(UUIDS)))

    def read(self, uuids: Sequence[str]) -> Mapping[str, GpuReading | str]:
        self.asked += 1
        return {uuid: self.readings.get(uuid, GpuReading(uuid, 10)) for uuid in uuids}


@dataclass
class Rig:
    """A home, a machine with two GPUs, and a clock that a test moves."""

    session: Session
    driver: FakeDriver
    now: float = 1_000.0

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """A new controller of the same home."""
        machine = LocalProvider("", {}, driver=self.driver, cores=lambda: (0, 1), monotonic=lambda: self.now)
        self.places = Places(self.session, {"local": machine}, lambda: self.now, lambda: self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def use(self, uuid: str, used_mib: int, *processes: GpuProcess) -> None:
        """What the driver says of a GPU from now on; what was read before has grown old."""
        self.driver.readings[uuid] = GpuReading(uuid, used_mib, processes)
        self.wait(3.0)

    def attempt(self, slot: Slot, *, phase: str = "live", number: int = 1, **values: Any) -> StoredRun:
        """A run of its own with one attempt on a slot, as the controller would have stored it."""
        before = values.pop("before", self.places.before(slot))
        lease = self.places.hold("local")[0].lease
        with self.session.transaction() as connection:
            name = f"lab/a{number}-s0-{number}"
            _insert_run(connection, name, number)
            changes.add_attempt(connection, name, 1, AttemptKind.TRAIN, lease, asdict(slot), self.now)
            changes.set_attempt(connection, name, 1, phase=phase, before=before, **values)
        return self.read(name)

    def end(self, run: StoredRun, **exit_record: Any) -> StoredRun:
        with self.session.transaction() as connection:
            record = {"code": 0, "cause": "exited", "leftover_pids": [], **exit_record}
            changes.set_attempt(connection, run.run, 1, phase="ended", exit=record, ended=self.now)
        return self.read(run.run)

    def read(self, run: str) -> StoredRun:
        with self.session.reading() as connection:
            return read_run(connection, run)

    def names(self, *shapes: tuple[int, int, float]) -> list[str]:
        found = self.places.slots(shapes or [GPU_SHAPE])
        return [slot.name for slots in found.values() for slot in slots]

    def events(self, what: str) -> list[Any]:
        with self.session.reading() as connection:
            return list(connection.execute(select(tables.events).where(tables.events.c.what == what)))


def _insert_run(connection: Connection, name: str, number: int) -> None:
    if connection.execute(select(tables.studies)).first() is None:
        connection.execute(insert(tables.studies).values(study="lab", document={}, source="", lint=[], created=1.0))
    connection.execute(
        insert(tables.runs).values(
            run=name, id=str(number), study="lab", arm=f"a{number}", seed=0, generation=1, arm_order=0, launch=1,
            identity=name, arm_document={}, snapshot={}, provenance={}, state=RunState.RUNNING, overridden=[],
            created=1.0, changed=1.0,
        )
    )  # fmt: skip


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    home = Home(tmp_path / "runs")
    new_database(home)
    lock = HomeLock(home.lock)
    assert lock.acquire()
    session = Session(home.database, pid=1, now=1.0)
    yield Rig(session, FakeDriver())
    session.close()
    lock.release()


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pid 42 is anna's; no other process is visible."""
    monkeypatch.setattr("provisioning.local.owner_of", {42: ANNA}.get)


GPU0 = Slot("gpu0", (0,), (UUIDS[0],), (0,), 24_000)


class TestSlotsOnOffer:
    def test_all_when_nobody_is_there(self, rig: Rig) -> None:
        assert rig.names() == ["gpu0", "gpu1"]
        assert rig.places.withheld() == ()

    @pytest.mark.usefixtures("stranger")
    def test_a_gpu_that_somebody_computes_on_is_left_out_until_they_leave(self, rig: Rig) -> None:
        rig.use(UUIDS[0], 21_014, GpuProcess(42, 21_004))
        assert rig.names() == ["gpu1"]
        (reason,) = rig.places.withheld(GPU_SHAPE)
        assert str(reason).startswith("gpu0: pid 42 (anna: python train.py) holds 21,004 MiB")
        assert len(rig.places.cut([GPU_SHAPE])[GPU_SHAPE]) == 2
        rig.use(UUIDS[0], 10)
        assert rig.names() == ["gpu0", "gpu1"]
        assert rig.events("quarantine") == []

    @pytest.mark.usefixtures("stranger")
    def test_shared_gpus_offer_what_is_left_and_a_restart_remembers(self, rig: Rig) -> None:
        rig.use(UUIDS[0], 21_014, GpuProcess(42, 21_004))
        rig.places.request_slots("local", None, share_gpus=True)
        rig.restart()
        assert [slot.vram_mib for slot in rig.places.slots([GPU_SHAPE])[GPU_SHAPE]] == [2_996, 24_000]
        assert rig.names(Shape(1, 1, 10.0)) == ["gpu1"]
        assert rig.places.withheld()[0].kind == "memory"
        rig.places.request_slots("local", None, share_gpus=False)
        assert rig.names() == ["gpu1"]
        assert len(rig.events("share_gpus")) == 2

    def test_cpu_slots_ask_no_driver(self, rig: Rig) -> None:
        rig.names(CPU_SHAPE)
        asked = rig.driver.asked  # taking the machine looks once
        for _ in range(10):
            rig.places.prove_released([])
            assert rig.names(CPU_SHAPE) == ["cpu0", "cpu1"]
            rig.wait(60.0)
        assert rig.driver.asked == asked

    def test_our_own_live_attempt_keeps_its_slot_in_the_cut(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        mark = ProcessOwner("me", "python", f"{rig.session.home_id}/lab/a1-s0-1/attempt-1")
        monkeypatch.setattr("provisioning.local.owner_of", {7: mark}.get)
        run = rig.attempt(GPU0)
        rig.use(UUIDS[0], 9_010, GpuProcess(7, 9_000))
        assert rig.places.prove_released([run]) == ()
        assert rig.names() == ["gpu0", "gpu1"]
        rig.places.prove_released([])  # given up: nobody follows it, and it is still there
        assert rig.names() == ["gpu1"]
        assert rig.places.withheld()[0].kind == "stray"

    def test_memory_of_our_own_that_no_process_accounts_for_accuses_nobody(self, rig: Rig) -> None:
        # In a container whose driver lists no processes, a live run is only memory; a barrier counts its slot.
        run = rig.attempt(GPU0)
        rig.use(UUIDS[0], 9_010)
        rig.places.prove_released([run])
        assert rig.names() == ["gpu0", "gpu1"]
        run = rig.end(run)
        assert rig.places.prove_released([run]) == (GPU0,)
        assert rig.names() == ["gpu0", "gpu1"]

    def test_a_gpu_that_does_not_answer_goes_to_quarantine_and_comes_back(self, rig: Rig) -> None:
        rig.driver.readings[UUIDS[1]] = "GPU is lost"
        assert rig.names() == ["gpu0"]
        assert rig.names() == ["gpu0"]
        assert len(rig.events("quarantine")) == 1
        rig.restart()
        assert rig.names() == ["gpu0"]
        rig.use(UUIDS[1], 10)
        waiting = rig.attempt(GPU0)
        rig.places.prove_released([waiting])
        assert rig.names() == ["gpu0", "gpu1"]
        assert [event.reason for event in rig.events("quarantine_lifted")] == [
            "slot gpu1 may be used again: its GPU memory is back"
        ]


class TestRelease:
    def test_a_slot_counts_as_busy_until_its_memory_is_back(self, rig: Rig) -> None:
        run = rig.attempt(GPU0)
        rig.use(UUIDS[0], 5_000)
        run = rig.end(run)
        assert rig.places.prove_released([run]) == (run.attempt and run.attempt.slot,)
        assert rig.places.release_state(run.run, 1) == "waiting"
        rig.use(UUIDS[0], 266)
        assert rig.places.prove_released([run]) == ()
        assert rig.places.release_state(run.run, 1) == "free"
        asked = rig.driver.asked
        rig.wait(60.0)
        rig.places.prove_released([run])
        assert rig.driver.asked == asked, "what is proven is not asked again"

    def test_what_does_not_come_back_is_quarantined_with_evidence_and_lifted_later(self, rig: Rig) -> None:
        run = rig.attempt(GPU0)
        rig.use(UUIDS[0], 5_000)
        run = rig.end(run)
        rig.places.prove_released([run])
        rig.wait(RELEASE_WITHIN_S)
        assert rig.places.prove_released([run]) == ()
        assert rig.places.release_state(run.run, 1) == "quarantined"
        (event,) = rig.events("quarantine")
        assert "GPU-aa holds 4,990 MiB more than before the start, 30 s after attempt 1 of lab/a1-s0-1" in event.reason
        assert (event.run, event.attempt) == (run.run, 1)
        assert rig.names() == ["gpu1"]
        rig.restart()
        assert rig.names() == ["gpu1"], "a restart remembers"
        rig.use(UUIDS[0], 10)
        rig.places.prove_released([run])
        assert rig.names() == ["gpu0", "gpu1"]
        assert len(rig.events("quarantine_lifted")) == 1

    def test_a_quarantine_is_looked_at_seldom(self, rig: Rig) -> None:
        run = rig.end(rig.attempt(GPU0))
        rig.use(UUIDS[0], 5_000)
        rig.places.prove_released([run])
        rig.wait(RELEASE_WITHIN_S)
        rig.places.prove_released([run])
        asked = rig.driver.asked
        for _ in range(10):
            rig.wait(REPROBE_S / 11)
            rig.places.prove_released([run])
        assert rig.driver.asked == asked
        rig.wait(REPROBE_S / 5)
        rig.places.prove_released([run])
        assert rig.driver.asked > asked

    @pytest.mark.parametrize("restarts", ["before it was seen", "while waiting"])
    def test_a_release_that_a_kill_cut_off_is_proven_by_the_next_controller(self, rig: Rig, restarts: str) -> None:
        run = rig.attempt(GPU0)
        rig.use(UUIDS[0], 5_000)
        run = rig.end(run)
        if restarts == "while waiting":
            rig.places.prove_released([run])
        rig.restart()
        assert len(rig.places.prove_released([])) == 1, "the run itself is settled and no longer open"
        rig.use(UUIDS[0], 10)
        assert rig.places.prove_released([]) == ()
        rig.restart()
        assert rig.places.prove_released([]) == ()

    def test_an_evaluation_on_the_same_slot_takes_it_over(self, rig: Rig) -> None:
        run = rig.end(rig.attempt(GPU0))
        rig.use(UUIDS[0], 5_000)
        assert len(rig.places.prove_released([run])) == 1
        other = rig.attempt(GPU0, number=2)
        rig.wait(RELEASE_WITHIN_S)
        assert rig.places.prove_released([run, other]) == ()
        assert rig.events("quarantine") == []

    def test_an_attempt_without_a_value_from_before_is_not_asked_about(self, rig: Rig) -> None:
        run = rig.end(rig.attempt(GPU0, before=None))
        rig.use(UUIDS[0], 5_000)
        assert rig.places.prove_released([run]) == ()


class TestCpuSlots:
    SLOT = Slot("cpu1", (1,))

    @pytest.fixture
    def left(self) -> Iterator[subprocess.Popen[bytes]]:
        """A process that did not end with its attempt."""
        process = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"],
                                   stdin=subprocess.PIPE)  # fmt: skip
        yield process
        process.communicate()

    def test_nothing_left_is_free_at_once(self, rig: Rig) -> None:
        run = rig.end(rig.attempt(self.SLOT))
        assert rig.places.before(self.SLOT) is None
        assert rig.places.prove_released([run]) == ()
        assert rig.names(CPU_SHAPE) == ["cpu0", "cpu1"]

    def test_a_process_that_lives_on_keeps_the_slot_until_it_is_gone(
        self, rig: Rig, left: subprocess.Popen[bytes]
    ) -> None:
        run = rig.end(rig.attempt(self.SLOT), leftover_pids=[left.pid])
        assert rig.places.prove_released([run]) == (self.SLOT,)
        # The process is as old as the test: only the clocks of the waiting move on.
        with rig.session.transaction() as connection:
            changes.set_attempt(connection, run.run, 1, ended=rig.now + RELEASE_WITHIN_S)
        rig.restart()
        assert rig.places.prove_released([run]) == (self.SLOT,)
        rig.wait(RELEASE_WITHIN_S)
        assert rig.places.prove_released([run]) == ()
        assert rig.names(CPU_SHAPE) == ["cpu0"]
        assert f"pid {left.pid}" in rig.places.withheld(CPU_SHAPE)[0].reason
        rig.restart()
        left.kill()
        left.wait()
        rig.places.prove_released([run])
        assert rig.names(CPU_SHAPE) == ["cpu0", "cpu1"]
        (lifted,) = rig.events("quarantine_lifted")
        assert lifted.reason == "slot cpu1 may be used again: the processes that were left are gone"

    def test_a_number_that_passed_to_a_younger_process_means_nothing(
        self, rig: Rig, left: subprocess.Popen[bytes]
    ) -> None:
        run = rig.end(rig.attempt(self.SLOT), leftover_pids=[left.pid])
        rig.wait(86_400.0)
        assert rig.places.prove_released([run]) == ()
        assert rig.events("quarantine") == []


class _Away(LocalProvider):
    """A host of one's own that does not answer."""

    name = "ssh"

    def slots(self, handle: Handle, request: Request) -> tuple[Slot, ...]:
        raise HostLost("no route")


class _NothingRented(LocalProvider):
    name = "vast"

    def hosts(self) -> tuple[Offer, ...]:
        return ()


def test_a_silent_host_is_no_reason_for_a_run_that_waits_for_another_provider(rig: Rig) -> None:
    providers = {"ssh": _Away("", {}), "vast": _NothingRented("", {})}
    places = Places(rig.session, providers, lambda: rig.now)
    own, rented = (CPU_SHAPE._replace(provider=name) for name in providers)
    assert places.slots([own, rented]) == {own: (), rented: ()}
    assert [one.reason for one in places.withheld(own)] == ["no route"]
    assert places.withheld(rented) == ()
    assert list(places.silent().values()) == ["no route"]


class TestAPlan:
    @pytest.mark.usefixtures("stranger")
    def test_it_names_who_is_in_the_way_and_refuses_when_all_are_taken(self) -> None:
        busy = {uuid: GpuReading(uuid, 21_014, (GpuProcess(42, 21_004),)) for uuid in UUIDS}
        machine = LocalProvider("", {}, driver=FakeDriver({UUIDS[0]: busy[UUIDS[0]]}), cores=lambda: (0, 1))
        label = "armature/c0ffee/plan"
        slots = (GPU0, replace(GPU0, name="gpu1", gpu_uuids=(UUIDS[1],), gpu_indices=(1,)))
        cut = {GPU_SHAPE: slots, CPU_SHAPE: (Slot("cpu0", (0,)),)}
        found = left_out(machine, label, cut, (), share_gpus=False)
        assert [one.slot for one in found[GPU_SHAPE]] == ["gpu0"]
        assert found[CPU_SHAPE] == ()
        refuse_occupied(cut, found)
        full = LocalProvider("", {}, driver=FakeDriver(dict(busy)), cores=lambda: (0, 1))
        taken = left_out(full, label, cut, (), share_gpus=False)
        with pytest.raises(InfrastructureError, match=r"gpu0: pid 42 \(anna: .* 21,004 MiB.*gpu1: .*nothing was"):
            refuse_occupied(cut, taken)
        assert left_out(full, label, cut, (), share_gpus=True)[GPU_SHAPE] == ()
        assert [one.slot for one in left_out(full, label, cut, [GPU0], share_gpus=False)[GPU_SHAPE]] == ["gpu1"]
