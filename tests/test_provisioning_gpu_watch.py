from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.base import Handle, ProcessOwner, Slot, SlotProbe
from provisioning.gpu_watch import FOREIGN_MIB, IDLE_FLOOR_MIB, GpuProcess, GpuReading, home_of, slot_probe
from provisioning.gpus import Gpu, GpuSurvey, NvmlDriver
from provisioning.local import READING_S, SURVEY_S, LocalProvider
from provisioning.processes import leftover, owner_of
from tests.fakes.attempts import until

UUID = "GPU-1a2b"
HOME = "c0ffee"
OURS = ProcessOwner("me", "python -m trainer", f"{HOME}/lab/a-s0-1/attempt-1")
OTHER_HOME = ProcessOwner("me", "python -m trainer", f"{HOME}d/lab/a-s0-1/attempt-1")
ANNA = ProcessOwner("anna", "python train.py")
DESKTOP = ProcessOwner("anna", "/usr/lib/xorg/Xorg :0")


def look(used_mib: int, *processes: GpuProcess, **owners: ProcessOwner) -> SlotProbe:
    known = {int(name[1:]): owner for name, owner in owners.items()}
    return slot_probe({UUID: GpuReading(UUID, used_mib, processes)}, known, HOME)


class TestWhoseMemoryItIs:
    def test_an_idle_gpu_is_nobodys(self) -> None:
        assert look(600) == SlotProbe({UUID: 600}, {UUID: 0}, {UUID: 0})

    def test_a_stranger_is_named_with_user_command_and_memory(self) -> None:
        probe = look(21_500, GpuProcess(42, 21_004), p42=ANNA)
        assert [str(use) for use in probe.foreign] == ["pid 42 (anna: python train.py) holds 21,004 MiB"]
        assert probe.others_mib == {UUID: 21_004}
        assert probe.ours == ()

    @pytest.mark.parametrize(("mib", "competes"), [(FOREIGN_MIB, False), (FOREIGN_MIB + 1, True)])
    def test_little_is_let_pass_and_said(self, mib: int, competes: bool) -> None:
        probe = look(mib, GpuProcess(42, mib), p42=ANNA)
        assert bool(probe.foreign) is competes
        assert bool(probe.notes) is not competes

    def test_an_attempt_of_this_home_is_ours_and_of_another_home_is_not(self) -> None:
        probe = look(9_000, GpuProcess(1, 5_000), GpuProcess(2, 4_000), p1=OURS, p2=OTHER_HOME)
        assert [(use.pid, use.attempt) for use in probe.ours] == [(1, OURS.attempt)]
        assert [use.pid for use in probe.foreign] == [2]

    def test_what_only_draws_is_no_competitor(self) -> None:
        probe = look(3_000, GpuProcess(7, 2_900, is_graphics=True), p7=DESKTOP)
        assert probe.foreign == ()
        assert probe.graphics_mib == {UUID: 2_900}

    def test_what_draws_and_computes_computes_and_counts_once(self) -> None:
        both = (GpuProcess(7, 2_900), GpuProcess(7, 2_900, is_graphics=True))
        probe = look(3_000, *both, p7=ANNA)
        assert [(use.pid, use.mib) for use in probe.foreign] == [(7, 2_900)]
        assert probe.graphics_mib == {UUID: 0}

    @pytest.mark.parametrize(("used_mib", "competes"), [(IDLE_FLOOR_MIB, False), (IDLE_FLOOR_MIB + 1, True)])
    @pytest.mark.parametrize("listed", [(), (GpuProcess(4711, 8_000),), (GpuProcess(4711, None),)])
    def test_a_process_that_cannot_be_seen_is_only_its_memory(
        self, listed: tuple[GpuProcess, ...], used_mib: int, competes: bool
    ) -> None:
        probe = look(used_mib, *listed)
        assert [(use.pid, use.mib) for use in probe.foreign] == ([(None, used_mib)] if competes else [])

    def test_unseen_memory_beside_a_desktop_is_still_found(self) -> None:
        probe = look(30_000, GpuProcess(7, 900, is_graphics=True), p7=DESKTOP)
        assert [(use.pid, use.mib) for use in probe.foreign] == [(None, 29_100)]

    def test_a_stranger_without_a_number_gets_what_is_left(self) -> None:
        probe = look(30_000, GpuProcess(7, 900, is_graphics=True), GpuProcess(42, None), p7=DESKTOP, p42=ANNA)
        assert [(use.pid, use.mib) for use in probe.foreign] == [(42, 29_100)]
        assert "does not say how much memory" in probe.notes[0]

    def test_our_own_process_without_a_number_accuses_nobody(self) -> None:
        probe = look(30_000, GpuProcess(1, None), p1=OURS)
        assert probe.foreign == ()
        assert "our own processes" in probe.notes[0]

    def test_a_gpu_that_does_not_answer_is_a_problem_of_the_slot(self) -> None:
        probe = slot_probe({UUID: GpuReading(UUID, 10), "GPU-9": "GPU is lost"}, {}, HOME)
        assert probe.problem == "GPU-9 does not answer: GPU is lost"
        assert probe.used_mib == {UUID: 10}

    def test_a_label_names_its_home(self) -> None:
        assert home_of("armature/c0ffee/3") == "c0ffee"
        assert home_of("plan") == ""

    def test_without_a_home_nothing_is_ours(self) -> None:
        reading = {UUID: GpuReading(UUID, 5_000, (GpuProcess(1, 5_000),))}
        assert slot_probe(reading, {1: ProcessOwner("me", "x", "/lab/attempt-1")}, "").ours == ()

    processes = st.builds(GpuProcess, st.integers(1, 6), st.none() | st.integers(0, 90_000), is_graphics=st.booleans())
    owners = st.dictionaries(st.integers(1, 6), st.sampled_from([OURS, OTHER_HOME, ANNA, DESKTOP]))

    @given(used_mib=st.integers(0, 100_000), listed=st.lists(processes, max_size=8), owners=owners)
    def test_it_never_accuses_us_and_never_overlooks_a_large_stranger(
        self, used_mib: int, listed: list[GpuProcess], owners: dict[int, ProcessOwner]
    ) -> None:
        probe = slot_probe({UUID: GpuReading(UUID, used_mib, tuple(listed))}, owners, HOME)
        ours = {pid for pid, owner in owners.items() if owner == OURS}
        accused = {use.pid for use in probe.foreign}
        assert not accused & ours
        assert {use.pid for use in probe.ours} == ours & {one.pid for one in listed}
        large = {
            one.pid for one in listed
            if one.pid in owners and not one.is_graphics and one.mib is not None and one.mib > FOREIGN_MIB
        }  # fmt: skip
        assert large - ours <= accused
        assert probe.graphics_mib[UUID] <= probe.others_mib[UUID]


class NvmlError(Exception):
    pass


class NotSupported(NvmlError):
    pass


class NoPermission(NvmlError):
    pass


class FunctionNotFound(NvmlError):
    pass


class InvalidArgument(NvmlError):
    pass


@dataclass
class Nvml:
    """A stand-in for the pynvml module: one GPU, lists of processes, and a count of openings.

    `old` drivers know neither the second form of the memory record nor the sharing service.
    """

    used_mib: int = 700
    reserved_mib: int = 500
    compute: Sequence[tuple[int, int | None]] = ()
    shared: Sequence[tuple[int, int | None]] = ()
    graphics: Sequence[tuple[int, int | None]] | type[NvmlError] = ()
    old: bool = False
    broken: str = ""
    opened: int = 0
    is_open: int = 0
    NVMLError: Any = NvmlError
    NVMLError_NotSupported: Any = NotSupported
    NVMLError_NoPermission: Any = NoPermission
    NVMLError_FunctionNotFound: Any = FunctionNotFound
    NVMLError_InvalidArgument: Any = InvalidArgument
    nvmlMemory_v2: int = 0x02000028

    def nvmlInit(self) -> None:
        if self.broken == "driver":
            raise NvmlError("Driver/library version mismatch")
        self.opened += 1
        self.is_open += 1

    def nvmlShutdown(self) -> None:
        self.is_open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.1"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert self.is_open == 1
        if self.broken == "gpu":
            raise NvmlError("GPU is lost")
        return uuid

    def nvmlDeviceGetMemoryInfo(self, device: str, version: int | None = None) -> Any:
        if version is None:
            return SimpleNamespace(used=(self.used_mib + self.reserved_mib) * 2**20)
        if self.old:
            raise FunctionNotFound("Function Not Found")
        return SimpleNamespace(used=self.used_mib * 2**20, reserved=self.reserved_mib * 2**20)

    def nvmlDeviceGetComputeRunningProcesses(self, device: str) -> list[Any]:
        return _records(self.compute)

    def nvmlDeviceGetMPSComputeRunningProcesses(self, device: str) -> list[Any]:
        if self.old:
            raise FunctionNotFound("Function Not Found")
        return _records(self.shared)

    def nvmlDeviceGetGraphicsRunningProcesses(self, device: str) -> list[Any]:
        if isinstance(self.graphics, type):
            raise self.graphics("no")
        return _records(self.graphics)


def _records(processes: Sequence[tuple[int, int | None]]) -> list[Any]:
    return [
        SimpleNamespace(pid=pid, usedGpuMemory=None if mib is None else mib * 2**20 + 4096) for pid, mib in processes
    ]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Nvml], Nvml]:
    def put(nvml: Nvml) -> Nvml:
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        return nvml

    return put


class TestReadingTheDriver:
    def test_memory_and_all_three_lists(self, install: Callable[[Nvml], Nvml]) -> None:
        install(Nvml(compute=[(1, 300), (2, None)], shared=[(3, 40)], graphics=[(4, 20)]))
        assert NvmlDriver().read([UUID]) == {
            UUID: GpuReading(
                UUID, 700, (GpuProcess(1, 300), GpuProcess(2, None), GpuProcess(3, 40), GpuProcess(4, 20, True))
            )
        }

    def test_an_old_driver_counts_what_it_keeps_for_itself(self, install: Callable[[Nvml], Nvml]) -> None:
        install(Nvml(old=True, compute=[(1, 300)]))
        assert NvmlDriver().read([UUID]) == {UUID: GpuReading(UUID, 1_200, (GpuProcess(1, 300),))}

    @pytest.mark.parametrize("error", [NotSupported, NoPermission])
    def test_a_list_that_cannot_be_had_is_empty(self, install: Callable[[Nvml], Nvml], error: type[NvmlError]) -> None:
        install(Nvml(compute=[(1, 300)], graphics=error))
        reading = NvmlDriver().read([UUID])[UUID]
        assert isinstance(reading, GpuReading)
        assert reading.processes == (GpuProcess(1, 300),)

    def test_it_opens_once_and_again_after_a_failure(self, install: Callable[[Nvml], Nvml]) -> None:
        nvml = install(Nvml())
        driver = NvmlDriver()
        for _ in range(3):
            driver.read([UUID])
        assert (nvml.opened, nvml.is_open) == (1, 1)
        nvml.broken = "gpu"
        assert driver.read([UUID]) == {UUID: "GPU is lost"}
        assert nvml.is_open == 0
        nvml.broken = ""
        assert isinstance(driver.read([UUID])[UUID], GpuReading)
        assert (nvml.opened, nvml.is_open) == (2, 1)
        driver.close()
        driver.close()
        assert nvml.is_open == 0

    def test_a_driver_that_is_being_replaced_is_a_sentence(self, install: Callable[[Nvml], Nvml]) -> None:
        install(Nvml(broken="driver"))
        driver = NvmlDriver()
        assert driver.read([UUID, "GPU-9"]) == dict.fromkeys([UUID, "GPU-9"], "Driver/library version mismatch")
        assert driver.driver_version() == ""

    def test_no_library_is_a_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert NvmlDriver().read([UUID]) == {UUID: "the package nvidia-ml-py is not installed"}
        assert NvmlDriver().driver_version() == ""

    def test_the_version_leaves_nothing_open(self, install: Callable[[Nvml], Nvml]) -> None:
        nvml = install(Nvml())
        assert NvmlDriver().driver_version() == "570.1"
        assert nvml.is_open == 0

    def test_the_real_library_answers_for_a_gpu_that_is_not_there(self) -> None:
        driver = NvmlDriver()
        assert isinstance(driver.read(["GPU-00000000-0000-0000-0000-000000000000"]).popitem()[1], str)
        driver.close()


@dataclass
class FakeDriver:
    """GPUs whose readings a test sets; counts how often it was asked."""

    gpus: tuple[Gpu, ...] = (Gpu(UUID, 0, "card", 80_000), Gpu("GPU-2", 1, "card", 80_000))
    readings: dict[str, GpuReading | str] = field(default_factory=dict)
    surveys: int = 0
    reads: int = 0

    def survey(self) -> GpuSurvey:
        self.surveys += 1
        return GpuSurvey(self.gpus)

    def read(self, uuids: Sequence[str]) -> Mapping[str, GpuReading | str]:
        self.reads += 1
        return {uuid: self.readings.get(uuid, GpuReading(uuid, 0)) for uuid in uuids}


class Machine(LocalProvider):
    """This machine with GPUs and cores as a test wants them, and a clock that stands still."""

    def __init__(self, driver: FakeDriver, cores: Sequence[int] = (0, 1)) -> None:
        self.time_s, self.my_cores = 0.0, cores
        super().__init__("", {}, driver=driver, cores=lambda: self.my_cores, monotonic=lambda: self.time_s)


HANDLE = Handle("local", f"armature/{HOME}/1", "here")
SLOT = Slot("gpu0", (0, 1), (UUID,), (0,), 80_000)
SLEEPER = "import sys; print('up', flush=True); sys.stdin.read()"


@pytest.fixture
def sleeper() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts processes that wait, with an environment of their own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(program: str = SLEEPER, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", program],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()  # only now is the environment that of the new program
        return process

    yield start
    for process in started:
        process.communicate()


class TestTheProbeOfThisMachine:
    def test_real_processes_are_told_apart_by_their_mark(self, sleeper: Callable[..., subprocess.Popen[bytes]]) -> None:
        ours = sleeper(RUNNER_ATTEMPT=OURS.attempt).pid
        theirs = sleeper(RUNNER_ATTEMPT=OTHER_HOME.attempt).pid
        listed = (GpuProcess(ours, 9_000), GpuProcess(theirs, 8_000), GpuProcess(2**22 + 1, 7_000))
        driver = FakeDriver(readings={UUID: GpuReading(UUID, 24_000, listed)})
        probe = Machine(driver).probe(HANDLE, SLOT)
        assert [use.pid for use in probe.ours] == [ours]
        assert [(use.pid, use.mib) for use in probe.foreign] == [(theirs, 8_000), (None, 7_000)]
        assert probe.foreign[0].command.startswith(sys.executable)

    def test_a_child_that_lost_the_mark_is_known_by_its_parent(
        self, sleeper: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        program = (
            "import subprocess, sys; child = subprocess.Popen([sys.executable, '-I', '-S', '-c', "
            "'import sys; print(1, flush=True); sys.stdin.read()'], env={}, stdin=subprocess.PIPE, "
            "stdout=subprocess.PIPE); child.stdout.readline(); print(child.pid, flush=True); sys.stdin.read(); "
            "child.communicate()"
        )
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", program], env={"RUNNER_ATTEMPT": OURS.attempt}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        child = owner_of(int(process.stdout.readline()))
        assert child is not None
        assert child.attempt == OURS.attempt
        process.communicate()

    def test_a_process_that_vanished_has_no_owner(self) -> None:
        process = subprocess.Popen(["true"])
        process.wait()
        assert owner_of(process.pid) is None
        assert leftover(process.pid) is None

    def test_the_driver_is_asked_seldom(self) -> None:
        driver = FakeDriver()
        machine = Machine(driver)
        for _ in range(20):
            machine.survey()
            machine.probe(HANDLE, SLOT)
            machine.probe(HANDLE, Slot("gpu1", (0,), ("GPU-2",), (1,), 80_000))
        assert (driver.surveys, driver.reads) == (1, 1)
        machine.time_s += READING_S
        machine.probe(HANDLE, SLOT)
        assert (driver.surveys, driver.reads) == (1, 2)
        machine.time_s += SURVEY_S
        machine.survey()
        assert driver.surveys == 2

    def test_a_cpu_slot_asks_no_driver(self) -> None:
        driver = FakeDriver()
        assert Machine(driver).probe(HANDLE, Slot("cpu0", (1,))) == SlotProbe()
        assert (driver.surveys, driver.reads) == (0, 0)

    def test_a_core_that_was_taken_from_us_is_a_problem(self) -> None:
        machine = Machine(FakeDriver())
        machine.my_cores = (0,)
        assert machine.probe(HANDLE, SLOT).problem.startswith("core 1 is no longer ours")
        assert machine.probe(HANDLE, Slot("cpu0", (0,))).problem == ""

    def test_a_gpu_outside_the_survey_is_asked_for_all_the_same(self) -> None:
        machine = Machine(FakeDriver(readings={"GPU-9": "Not Found"}))
        assert machine.probe(HANDLE, Slot("gpu9", (), ("GPU-9",), (9,))).problem == "GPU-9 does not answer: Not Found"

    def test_leftovers_are_those_that_still_run(self, sleeper: Callable[..., subprocess.Popen[bytes]]) -> None:
        living, dead = sleeper(), sleeper()
        dead.kill()
        until(lambda: leftover(dead.pid) is None)  # a zombie, not yet waited for, does not run
        found = Machine(FakeDriver()).probe(HANDLE, Slot("cpu0", (0,)), [living.pid, dead.pid])
        assert [one.identity.pid for one in found.leftovers] == [living.pid]
        assert 0 <= found.leftovers[0].age_s < 60

    def test_it_sees_its_own_process(self) -> None:
        mine = owner_of(os.getpid())
        assert mine is not None
        assert "python" in mine.command or "pytest" in mine.command
