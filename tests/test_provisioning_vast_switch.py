"""The switch on a rented machine: in real containers of the fake, where it runs alone, and the text that is sent."""

from __future__ import annotations

import ast
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from provisioning.vast import dead_man
from provisioning.vast.switch import SwitchTimes, onstart
from tests.fakes.attempts import until
from tests.fakes.vast import Boot, Fake, Fault, FollowingClock, Offer
from tests.fakes.vast.instances import Instances
from tests.fakes.vast.server import Server
from tests.fakes.vast.world import Wish

DESTROY = ("DELETE", "/api/v0/instances/{id}/")
FACTOR = 100.0
"""The fake's time runs so much faster, so that its spacing of 3 s is kept by pauses of 0.04 s."""

LONG_S = 1000.0
ATTEMPT = "RUNNER_ATTEMPT=ab12/1 sh -c 'while [ ! -e ~/end ]; do sleep 0.02; done' &\n"
NEVER = SwitchTimes(LONG_S, LONG_S, 0.05, 0.06)


class Rented:
    """One machine at the fake, running for real since `began_s` (monotonic), with a switch of these durations."""

    def __init__(self, folder: Path) -> None:
        self.clock = FollowingClock(FACTOR)
        self.fake = Fake(start_s=self.clock())
        self.server = Server(self.fake, self.clock).__enter__()
        self.instances = Instances(self.fake, folder / "instances")
        self.number, self.began_s = 0, 0.0

    def start(self, ttl_s: float, times: SwitchTimes, more: str = "") -> None:
        self.began_s = time.monotonic()
        self.fake.world.boots.append(Boot(0, 0, 0))
        wish = Wish("armature/home1/x", "image", onstart(ttl_s, times) + more)
        with self.fake.lock:
            self.number = self.fake.world.create(Offer(1, 1), wish, ()).id
            self.fake.world.give_key(self.number, self.fake.account.key_of_instance(self.number, 0).secret)
        self.pass_time()

    def pass_time(self) -> None:
        self.fake.advance_to(self.clock())

    def happen(self, event: str) -> None:
        with self.fake.lock:
            self.fake.world.happen(self.number, event)

    @property
    def folder(self) -> Path:
        return self.instances.home(self.number) / ".armature" / "switch"

    def touch(self, name: str) -> None:
        until(self.folder.is_dir)
        (self.folder / name).touch()

    def armed(self) -> dict[str, Any]:
        """What the switch says once it has reached the service."""

        def told() -> dict[str, Any] | None:
            try:
                found: dict[str, Any] = json.loads((self.folder / "armed").read_text())
            except FileNotFoundError:
                return None
            return found

        return until(lambda: told() if (told() or {}).get("missing") == "" else None) or {}

    def age(self) -> dict[str, Any]:
        until((self.folder / "age").exists)
        found: dict[str, Any] = json.loads((self.folder / "age").read_text())
        return found

    def is_alive(self) -> bool:
        return self.fake.world.instances[self.number].living

    def gone_after_s(self) -> float:
        """Wait for the end of the machine; real seconds since it was rented."""
        until(lambda: not self.is_alive())
        return time.monotonic() - self.began_s

    def processes(self) -> list[psutil.Process]:
        """All that runs there with the variables of the container."""
        found, home = [], str(self.instances.home(self.number))
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOME") == home:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found


@pytest.fixture
def rented(tmp_path: Path) -> Iterator[Rented]:
    found = Rented(tmp_path)
    yield found
    found.instances.close()
    found.server.close()


def is_switch(process: psutil.Process) -> bool:
    return runs(process, "b85decode")


def runs(process: psutil.Process, program: str) -> bool:
    try:
        return any(program in word for word in process.cmdline())
    except psutil.Error:
        return False


def watched(rented: Rented, seconds: float, touched: str = "", lives_s: float = LONG_S) -> None:
    """The machine lives all the time, or at least so long, while a file there is touched again and again."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        assert rented.is_alive() or time.monotonic() >= rented.began_s + lives_s
        if touched:
            rented.touch(touched)
        time.sleep(0.02)


# ---- on a machine ----------------------------------------------------------------------------------------------------


def test_the_end_of_its_life_comes_whatever_lives_on_it(rented: Rented) -> None:
    rented.start(1.2, NEVER, ATTEMPT)
    rented.touch("staged")
    watched(rented, 0.7, touched="contact", lives_s=1.2)
    assert rented.gone_after_s() >= 1.2
    rented.fake.assert_clean()


def test_a_word_from_us_keeps_it_and_silence_ends_it(rented: Rented) -> None:
    rented.start(LONG_S, SwitchTimes(1.2, LONG_S, 0.05, 0.06))
    rented.touch("staged")
    watched(rented, 1.8, touched="contact")
    last_s = time.monotonic()
    rented.gone_after_s()
    # A look may come up to one pause after the last touch, and sees it as new then.
    assert time.monotonic() - last_s >= 1.2 - 0.05


def test_nothing_staged_in_time_ends_it_though_we_talk_to_it(rented: Rented) -> None:
    rented.start(LONG_S, SwitchTimes(LONG_S, 1.0, 0.05, 0.06))
    watched(rented, 0.5, touched="contact", lives_s=1.0)
    assert rented.gone_after_s() >= 1.0


def test_a_staged_machine_that_is_talked_to_is_left_alone(rented: Rented) -> None:
    rented.start(LONG_S, SwitchTimes(1.2, 1.2, 0.05, 0.06))
    rented.touch("staged")
    watched(rented, 1.8, touched="contact")


def test_a_living_attempt_protects_it_and_its_end_leaves_time_to_come_back(rented: Rented) -> None:
    rented.start(LONG_S, SwitchTimes(1.2, 1.2, 0.05, 0.06), ATTEMPT)
    watched(rented, 1.8)
    (rented.instances.home(rented.number) / "end").touch()
    ended_s = time.monotonic()
    rented.gone_after_s()
    assert time.monotonic() - ended_s >= 1.2 - 0.1


def test_a_destroy_that_fails_is_repeated_until_it_is_true(rented: Rented) -> None:
    faults = (Fault("drop"), Fault("server_error"), Fault("refused"), Fault("too_many_text"))
    rented.fake.plan.script(*DESTROY, *faults)
    rented.start(0.5, NEVER)
    rented.gone_after_s()
    # The fake notes a request when it has answered it.
    until(lambda: rented.fake.counts()["DELETE /api/v0/instances/{id}/"] == len(faults) + 1)
    key = {seen.key for seen in rented.fake.requests}
    assert key == {f"instance-{rented.number}"}, "only the key of the machine itself is used there"


def test_whatever_else_is_killed_there_the_switch_fires(rented: Rented) -> None:
    rented.start(3.0, NEVER, "sleep 1000 &\n")
    switch = rented.armed()
    until(lambda: any(runs(one, "sleep") for one in rented.processes()))
    killed = 0
    for process in rented.processes():
        with suppress(psutil.Error):  # it has just ended by itself
            if is_switch(process):
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    process.send_signal(number)
            else:
                process.kill()
                killed += 1
    assert killed >= 1
    assert switch["pid"] > 1
    assert rented.gone_after_s() >= 3.0


def test_a_container_that_is_started_again_goes_on_counting(rented: Rented) -> None:
    rented.start(3.0, NEVER)
    first = rented.armed()
    rented.happen("stop")
    assert rented.processes() == []
    lived_s = rented.age()["lived_s"]
    stopped_s = time.monotonic()
    until(lambda: time.monotonic() > stopped_s + 0.4)
    rented.happen("start")
    until(lambda: [rented.pass_time(), rented.folder.joinpath("armed").read_text() != json.dumps(first)][1])
    rented.armed()
    assert until(lambda: rented.age()["lived_s"] if rented.age()["lived_s"] > lived_s else None) >= lived_s + 0.4
    assert rented.gone_after_s() >= 3.0


def test_its_life_can_be_made_longer_and_never_shorter(rented: Rented) -> None:
    rented.start(1.5, NEVER)
    until(lambda: (rented.folder / "ttl_s").exists())
    for said in ("2.5\n", "0.1\n", "nonsense", "nan", "inf"):
        (rented.folder / "ttl_s").write_text(said)
        seen = rented.age()["at_s"]
        until(lambda seen=seen: rented.age()["at_s"] > seen + 0.06)
    assert rented.age()["ttl_s"] == 2.5
    assert rented.gone_after_s() >= 2.5


def test_the_log_names_the_keys_of_its_sshd_and_one_switch_is_enough(rented: Rented) -> None:
    again = onstart(LONG_S, NEVER).replace("\n", " >/dev/null 2>&1\n")
    rented.start(LONG_S, NEVER, again)
    told = rented.armed()
    line = until(lambda: [one for one in rented.instances.log(rented.number) if "armature host key" in one])[0]
    public = rented.instances.host_key(rented.number)
    listed = subprocess.run(["ssh-keygen", "-lf", "-"], input=public, capture_output=True, text=True, check=True).stdout
    assert line == f"armature host key: {public.split()[0]} {listed.split()[1]}"
    assert (rented.instances.home(rented.number) / ".no_auto_tmux").exists()
    until(lambda: len([one for one in rented.processes() if is_switch(one)]) == 1)
    assert rented.armed() == told
    assert {"boot_id", "init_start_ticks", "pid", "start_ticks"} <= told.keys()


# ---- its text --------------------------------------------------------------------------------------------------------


def test_it_fits_and_runs_on_old_pythons_and_holds_no_secret() -> None:
    text = onstart(12.5 * 3600, SwitchTimes())
    assert len(text) < 4096
    assert text.endswith("' 45000.000 7200.000 2700.000 10.000 4.000\n")
    assert text.count("'") == 2
    assert text.isascii()
    ast.parse(Path(dead_man.__file__).read_text(), feature_version=(3, 7))


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_life_that_is_no_positive_number_is_refused(ttl_s: float) -> None:
    with pytest.raises(ValueError, match="ttl_s"):
        onstart(ttl_s, SwitchTimes())
    with pytest.raises(ValueError, match="contact_s"):
        SwitchTimes(contact_s=ttl_s)
