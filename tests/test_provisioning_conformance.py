"""What every provider and every shell must do. A new provider joins with one line in RIGS."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from provisioning import PROVIDERS
from provisioning.base import (
    Absent,
    Handle,
    NoCapacity,
    Present,
    ProcessIdentity,
    Provider,
    Released,
    Request,
    Shell,
    Slot,
    SlotProbe,
    SpawnRefused,
)
from provisioning.host_keys import HostKeys
from provisioning.local import LocalProvider
from provisioning.ssh import SshProvider
from tests.fakes.attempts import IGNORES_SIGTERM, SAVES_ON_SIGTERM, SUPERVISOR, until
from tests.fakes.rented_host import rented
from tests.fakes.sshd import Sshd

SMALL = Request(slots=None, gpus=0, cpus=1)
IMPOSSIBLE = Request(slots=None, gpus=0, cpus=100_000)
HOSTILE_NAMES = ["plain", "a b", "quo'te\"s", "new\nline", "$(touch pwned)", "-rf", "ünï", "*", "%s"]
OTHERS: list[dict[str, Any]] = [
    {"boot_id": "of-an-earlier-boot"}, {"init_start_ticks": 1 << 60}, {"start_ticks": 1}, {"pid": 1 << 22},
]  # fmt: skip
"""What makes an identity that of another process."""


@dataclass(frozen=True)
class Rig:
    """A provider to test, a folder as its shells name it and as its hosts do, and a Python there."""

    provider: Provider
    folder: str
    python: str
    there: str
    attempt_dirs: list[str] = field(default_factory=list)

    def attempt_dir(self, spec: dict[str, Any]) -> str:
        """The folder of an attempt, as the shell names it."""
        return f"{self.folder}/{str(spec['attempt_dir']).removeprefix(self.there + '/')}"


def local_rig(tmp_path: Path, cleanup: ExitStack) -> Rig:
    return Rig(LocalProvider(str(SUPERVISOR), {}), str(tmp_path), sys.executable, str(tmp_path))


def ssh_rig(tmp_path: Path, cleanup: ExitStack) -> Rig:
    sshd = Sshd(tmp_path / "sshd")
    cleanup.callback(sshd.stop)
    sshd.start()
    keys = HostKeys(tmp_path / "known_hosts", lambda *_: True, also=None)
    here = tmp_path / "here"
    provider = Followed(str(SUPERVISOR), [sshd.host], keys, here, answer_s=20.0, look_s=0.02)
    provider.here = here
    cleanup.callback(provider.close)
    return Rig(provider, str(here), sys.executable, f"{sshd.home}/.armature/runs/test")


class Followed(SshProvider):
    """Every shell copies the folder of the test from the start, as the loop has it done for the runs it reads."""

    here: Path

    def shell(self, handle: Handle) -> Shell:
        shell = super().shell(handle)
        shell.follow({str(self.here): ()})
        return shell


def vast_rig(tmp_path: Path, cleanup: ExitStack) -> Rig:
    provider, there = rented(tmp_path, cleanup)
    return Rig(provider, str(provider.here), sys.executable, str(there))


RIGS: dict[str, Callable[[Path, ExitStack], Rig]] = {
    "local": local_rig,
    "ssh": ssh_rig,
    "vast": vast_rig,
}


@pytest.fixture(params=sorted(RIGS))
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    with ExitStack() as cleanup:
        yield RIGS[request.param](tmp_path, cleanup)


@pytest.fixture
def handle(rig: Rig) -> Handle:
    held = rig.provider.create(rig.provider.offers(SMALL)[0], "armature/test/1")
    assert isinstance(held, Handle)
    return held


@pytest.fixture
def shell(rig: Rig, handle: Handle) -> Iterator[Shell]:
    opened = rig.provider.shell(handle)
    yield opened
    opened.close()
    last = rig.provider.shell(handle)
    for folder in rig.attempt_dirs:
        last.write(f"{folder}/stop.json", b'{"reason": "the test is over", "grace_s": 0, "term_s": 0}')
        until(partial(last.read, f"{folder}/exit.json"))
    last.close()


def launch_spec(rig: Rig, program: str, number: int = 1, **other: Any) -> dict[str, Any]:
    return {
        "attempt": f"{rig.there}/{number}",
        "argv": [rig.python, "-I", "-S", "-c", program],
        "cwd": "/",
        "env": {"TOKEN": "s3cret"},
        "run_dir": rig.there,
        "attempt_dir": f"{rig.there}/attempt-{number}",
        "cores": [],
        "deadline_s": None,
        "grace_s": 10,
        "term_s": 1,
        "heartbeat_s": 0.05,
        **other,
    }


def spawn(rig: Rig, shell: Shell, spec: dict[str, Any]) -> ProcessIdentity:
    (spawned,) = shell.spawn([spec])
    rig.attempt_dirs.append(rig.attempt_dir(spec))
    assert spawned.attempt == spec["attempt"]
    assert spawned.existing is False
    return spawned.identity


def exit_record(rig: Rig, shell: Shell, spec: dict[str, Any]) -> dict[str, Any]:
    path = f"{rig.attempt_dir(spec)}/exit.json"
    found: dict[str, Any] = json.loads(until(lambda: shell.read(path)) or b"")
    return found


class TestProvider:
    def test_every_place_of_the_table_is_tested_here(self, rig: Rig) -> None:
        assert rig.provider.name in RIGS
        assert set(PROVIDERS) <= set(RIGS)

    def test_offers_fit_the_request(self, rig: Rig) -> None:
        offers = rig.provider.offers(SMALL)
        assert offers
        for offer in offers:
            assert offer.provider == rig.provider.name
            assert offer.cores >= SMALL.cpus
            assert offer.price_usd_per_h >= 0
        assert [offer.price_usd_per_h for offer in offers] == sorted(offer.price_usd_per_h for offer in offers)

    def test_nothing_is_offered_for_what_does_not_exist(self, rig: Rig) -> None:
        assert rig.provider.offers(IMPOSSIBLE) == ()

    def test_a_label_is_present_from_create_to_release(self, rig: Rig, handle: Handle) -> None:
        assert (handle.provider, handle.label) == (rig.provider.name, "armature/test/1")
        assert isinstance(until(lambda: rig.provider.observe([handle.label])[handle.label]), Present)
        released = rig.provider.release(handle)
        assert isinstance(released, Released)
        assert released.proof
        assert rig.provider.observe([handle.label]) == {handle.label: Absent()}

    def test_releasing_twice_is_fine(self, rig: Rig, handle: Handle) -> None:
        rig.provider.release(handle)
        assert isinstance(rig.provider.release(handle), Released)

    def test_creating_a_label_twice_is_one_host(self, rig: Rig, handle: Handle) -> None:
        assert rig.provider.create(rig.provider.offers(SMALL)[0], handle.label) == handle

    def test_slots_are_apart_unless_they_say_so(self, rig: Rig, handle: Handle) -> None:
        slots = rig.provider.slots(handle, SMALL)
        assert slots
        assert len({slot.name for slot in slots}) == len(slots)
        cores = [core for slot in slots for core in slot.cores]
        assert len(set(cores)) == len(cores)
        assert not any(slot.shares_cores for slot in slots)
        assert rig.provider.slots(handle, SMALL) == slots

    def test_no_slot_at_all_is_no_capacity(self, rig: Rig, handle: Handle) -> None:
        with pytest.raises(NoCapacity, match="100000 CPU cores"):
            rig.provider.slots(handle, IMPOSSIBLE)


class TestProbe:
    def test_a_cpu_slot_of_its_own_has_nothing_to_check(self, rig: Rig, handle: Handle) -> None:
        for slot in rig.provider.slots(handle, SMALL):
            assert rig.provider.probe(handle, slot) == SlotProbe()

    def test_a_core_that_is_not_ours_is_a_problem(self, rig: Rig, handle: Handle) -> None:
        assert "100000" in rig.provider.probe(handle, Slot("cpu0", (100_000,))).problem

    def test_a_gpu_that_is_not_there_is_a_problem_and_no_error(self, rig: Rig, handle: Handle) -> None:
        probe = rig.provider.probe(handle, Slot("gpu99", (), ("GPU-none",), (99,)))
        assert "GPU-none does not answer" in probe.problem
        assert probe.used_mib == {}

    def test_processes_that_still_run_are_named_with_their_age(self, rig: Rig, handle: Handle, shell: Shell) -> None:
        spec = launch_spec(rig, IGNORES_SIGTERM)
        identity = spawn(rig, shell, spec)
        (slot, *_) = rig.provider.slots(handle, SMALL)
        (found,) = rig.provider.probe(handle, slot, [identity.pid]).leftovers
        assert found.identity == identity
        assert found.age_s >= 0
        shell.write(f"{rig.attempt_dir(spec)}/stop.json", b'{"reason": "enough", "grace_s": 0, "term_s": 0}')
        until(lambda: rig.provider.probe(handle, slot, [identity.pid]).leftovers == ())


class TestShellFiles:
    def test_what_is_written_is_read(self, rig: Rig, shell: Shell) -> None:
        data = bytes(range(256)) * 300
        for name in HOSTILE_NAMES:
            path = f"{rig.folder}/{name}/{name}"
            shell.write(path, data)
            assert shell.read(path) == data, name
            assert shell.read(path, 76_799) == b"\xff", name
            assert shell.read(path, 255, 2) == b"\xff\x00", name
            assert shell.read(path, len(data) + 5) == b"", name
            assert shell.names(f"{rig.folder}/{name}") == (name,)

    def test_what_is_not_there_is_none(self, rig: Rig, shell: Shell) -> None:
        shell.write(f"{rig.folder}/file", b"")
        for path in (f"{rig.folder}/none", f"{rig.folder}/no/folder", f"{rig.folder}/file/below"):
            assert shell.read(path) is None
            assert shell.stamp(path) is None
            assert shell.names(path) == ()

    def test_a_write_replaces_the_file_at_once(self, rig: Rig, shell: Shell) -> None:
        path = f"{rig.folder}/new/control.json"
        shell.write(path, b"one")
        before = shell.stamp(path)
        shell.write(path, b"two and more")
        after = shell.stamp(path)
        assert before is not None
        assert after is not None
        assert (before[1], after[1]) == (3, 12)
        assert before[0] != after[0]
        assert before[2] <= after[2]
        assert shell.names(f"{rig.folder}/new") == ("control.json",)

    def test_new_folders_and_files_are_private(self, rig: Rig, shell: Shell) -> None:
        shell.write(f"{rig.folder}/a/b/file", b"")
        paths = [f"{rig.there}/{name}" for name in ("a", "a/b", "a/b/file")]
        program = f"import os; print(*(os.stat(path).st_mode for path in {paths}))"
        spec = launch_spec(rig, program)
        spawn(rig, shell, spec)
        exit_record(rig, shell, spec)
        modes = (shell.read(f"{rig.attempt_dir(spec)}/stdout.log") or b"").split()
        assert [stat.S_IMODE(int(mode)) for mode in modes] == [0o700, 0o700, 0o600]

    def test_free_disk_is_that_of_the_nearest_folder(self, rig: Rig, shell: Shell) -> None:
        assert 64 < shell.memory_mib() < 2**30
        here, below = shell.free_disk_mib(rig.folder), shell.free_disk_mib(f"{rig.folder}/not/yet/there")
        assert here > 0
        assert abs(here - below) < 1024


class TestShellProcesses:
    def test_an_attempt_lives_and_leaves_its_record(self, rig: Rig, shell: Shell) -> None:
        spec = launch_spec(rig, "import sys; print('hello'); sys.exit(3)")
        identity = spawn(rig, shell, spec)
        ended = exit_record(rig, shell, spec)
        assert (ended["attempt"], ended["code"], ended["cause"]) == (spec["attempt"], 3, "exited")
        assert shell.read(f"{rig.attempt_dir(spec)}/stdout.log") == b"hello\n"
        until(lambda: not shell.is_alive(identity))

    def test_the_end_of_what_is_followed_comes_with_all_that_it_left(self, rig: Rig, shell: Shell) -> None:
        spec = launch_spec(rig, "import time; print('x' * 50_000); time.sleep(0.2); print('last')")
        identity = spawn(rig, shell, spec)
        shell.follow({rig.folder: (identity,)})
        until(lambda: not shell.is_alive(identity))
        assert json.loads(shell.read(f"{rig.attempt_dir(spec)}/exit.json") or b"{}")["code"] == 0
        assert (shell.read(f"{rig.attempt_dir(spec)}/stdout.log") or b"").endswith(b"last\n")

    def test_a_stop_file_stops_it(self, rig: Rig, shell: Shell) -> None:
        spec = launch_spec(rig, SAVES_ON_SIGTERM)
        identity = spawn(rig, shell, spec)
        until(lambda: shell.read(f"{rig.attempt_dir(spec)}/stdout.log"))
        assert shell.is_alive(identity)
        shell.write(f"{rig.attempt_dir(spec)}/stop.json", b'{"reason": "enough", "grace_s": 10}')
        assert exit_record(rig, shell, spec)["code"] == 75
        until(lambda: not shell.is_alive(identity))

    def test_nothing_starts_twice(self, rig: Rig, shell: Shell) -> None:
        spec = launch_spec(rig, IGNORES_SIGTERM)
        identity = spawn(rig, shell, spec)
        (again,) = shell.spawn([spec])
        assert (again.identity, again.existing) == (identity, True)

    def test_several_are_spawned_in_order(self, rig: Rig, shell: Shell) -> None:
        specs = [launch_spec(rig, "", number) for number in (1, 2, 3)]
        assert [spawned.attempt for spawned in shell.spawn(specs)] == [spec["attempt"] for spec in specs]
        assert {exit_record(rig, shell, spec)["code"] for spec in specs} == {0}

    def test_a_refusal_names_the_attempt_and_no_value(self, rig: Rig, shell: Shell) -> None:
        spec = launch_spec(rig, "", grace_s="long")
        with pytest.raises(SpawnRefused, match="grace_s") as refusal:
            shell.spawn([spec])
        assert refusal.value.attempt == spec["attempt"]
        assert "s3cret" not in str(refusal.value)
        assert shell.names(rig.attempt_dir(spec)) == ()

    def test_closing_leaves_the_processes_alone(self, rig: Rig, handle: Handle, shell: Shell) -> None:
        spec = launch_spec(rig, IGNORES_SIGTERM)
        identity = spawn(rig, shell, spec)
        shell.close()
        other = rig.provider.shell(handle)
        assert other.is_alive(identity)
        other.close()

    def test_only_the_very_same_process_is_alive(self, rig: Rig, shell: Shell) -> None:
        spec = launch_spec(rig, IGNORES_SIGTERM)
        identity = spawn(rig, shell, spec)
        known = {name: getattr(identity, name) for name in ("boot_id", "init_start_ticks", "pid", "start_ticks")}
        assert shell.is_alive(ProcessIdentity(**known))
        for change in OTHERS:
            assert not shell.is_alive(ProcessIdentity(**{**known, **change})), change
