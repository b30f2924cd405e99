"""The end of a watched process ends the waiting, once; everything else waits its time."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from provisioning.base import ProcessIdentity
from provisioning.local_shell import LocalShell
from provisioning.processes import identity_of
from runner.clock import SystemClock
from runner.detach import SUPERVISOR
from runner.wake import Wake

LONG_S = 60.0


@pytest.fixture
def shell() -> Iterator[LocalShell]:
    found = LocalShell(str(SUPERVISOR))
    yield found
    found.close()


@pytest.fixture
def wake() -> Iterator[Wake]:
    found = Wake()
    yield found
    found.close()


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"])


def known(process: subprocess.Popen[bytes]) -> ProcessIdentity:
    identity = identity_of(process.pid)
    assert identity is not None
    return identity


def waited_s(wake: Wake, seconds: float) -> float:
    started = time.monotonic()
    wake.wait(SystemClock(), seconds)
    return time.monotonic() - started


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_end_of_a_process_ends_the_waiting_and_is_heard_once(shell: LocalShell, wake: Wake) -> None:
    process = sleeper()
    identity = known(process)
    wake.watch([(shell, identity)])
    process.kill()
    assert waited_s(wake, LONG_S) < LONG_S / 2
    wake.watch([(shell, identity)])  # a controller that could not settle it yet must not spin
    assert waited_s(wake, 0.05) >= 0.05
    process.wait()


def test_a_living_process_lets_us_wait(shell: LocalShell, wake: Wake) -> None:
    process = sleeper()
    wake.watch([(shell, known(process))])
    assert waited_s(wake, 0.05) >= 0.05
    process.kill()
    process.wait()


def test_nothing_is_watched_that_is_gone_or_another_process(shell: LocalShell, wake: Wake) -> None:
    process = sleeper()
    identity = known(process)
    assert shell.end_descriptor(replace(identity, start_ticks=identity.start_ticks + 1)) is None
    process.kill()
    process.wait()
    assert shell.end_descriptor(identity) is None


def test_descriptors_are_given_back(shell: LocalShell) -> None:
    before = open_descriptors()
    processes = [sleeper() for _ in range(3)]
    wake = Wake()
    wake.watch([(shell, known(process)) for process in processes])
    assert open_descriptors() == before + 3
    wake.watch([(shell, known(processes[0]))])
    assert open_descriptors() == before + 1
    wake.close()
    assert open_descriptors() == before
    for process in processes:
        process.kill()
        process.wait()
