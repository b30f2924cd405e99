"""A machine that was rented at the fake, as a real container behind a real sshd: who it is, and what it has."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pydantic import SecretStr

from provisioning.agent_archive import agent_archive
from provisioning.base import Handle, HostLost, NoCapacity, Request, Slot
from provisioning.fitness import Fit, NotYet, Unfit
from provisioning.home_key import HomeKey, home_key
from provisioning.host_workers import HostWorkers
from provisioning.ssh_connection import Deadlines
from provisioning.vast.api import VastApi
from provisioning.vast.errors import TooEarly
from provisioning.vast.provider import VastProvider
from provisioning.vast.rented_hosts import RentedHosts
from provisioning.vast.switch import SwitchTimes
from tests.fakes.attempts import SUPERVISOR, until
from tests.fakes.vast import Boot, Fake, FollowingClock
from tests.fakes.vast.account import FULL_KEY
from tests.fakes.vast.instances import Instances
from tests.fakes.vast.machine import Endpoint
from tests.fakes.vast.server import Server, example_offers

FACTOR = 100.0
LABEL = "armature/home1/lease1"
FOUR = Request(2, 2, 1, wanted={"hours": 1.0})
GPUS = 4

Found = TypeVar("Found")


class Rig:
    """A fake with real machines, and a provider that rents there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = FollowingClock(FACTOR)
        self.fake = Fake(example_offers(), start_s=self.clock())
        self.server = Server(self.fake, self.clock).__enter__()
        self.instances = Instances(self.fake, folder / "instances")
        self.key = home_key(folder / "key")
        self.providers: list[VastProvider] = []
        self.provider = self.another()

    def another(self, key: HomeKey | None = None) -> VastProvider:
        """A provider as a new process would have it."""
        used = key or self.key
        api = VastApi(SecretStr(FULL_KEY), self.clock, random.Random(3).random, url=self.server.url)
        workers = HostWorkers(
            agent_archive(str(SUPERVISOR)), self.folder / "here", Deadlines(5, 10), answer_s=10.0, look_s=0.05
        )
        hosts = RentedHosts(api, workers, used.path, self.folder / "rented", self.clock)
        times = SwitchTimes(1000, 1000, 0.05, 0.1)
        made = VastProvider(api, hosts, used.public_line, self.clock, url=self.server.url, times=times)
        self.providers.append(made)
        return made

    def answered(self, verb: Callable[[], Found]) -> Found:
        """The answer of a verb, as soon as it may be asked."""
        while True:
            try:
                return verb()
            except TooEarly as error:
                time.sleep(error.wait_s / FACTOR + 0.001)

    def rented(self, trouble: str = "") -> Handle:
        while not self.answered(self.provider.prepare):
            pass
        self.fake.world.boots.append(Boot(0, 0, 0, trouble=trouble))
        offer = self.answered(lambda: self.provider.offers(FOUR))[0]
        made = self.answered(lambda: self.provider.create(offer, LABEL))
        assert isinstance(made, Handle)
        self.observe()
        return made

    def observe(self, provider: VastProvider | None = None) -> None:
        self.fake.advance_to(self.clock())
        self.answered(lambda: (provider or self.provider).observe([LABEL]))

    def inspected(self, handle: Handle, provider: VastProvider | None = None) -> Fit | Unfit:
        """What all the steps of an inspection lead to."""
        asked = provider or self.provider

        def known() -> Fit | Unfit | None:
            found = self.answered(lambda: asked.inspect(handle, GPUS))
            return None if isinstance(found, NotYet) else found

        return until(known) or Unfit("")

    def told(self, handle: Handle, words: str) -> NotYet:
        """The first NotYet that says so."""

        def said() -> NotYet | None:
            found = self.answered(lambda: self.provider.inspect(handle, GPUS))
            assert isinstance(found, NotYet), found
            return found if words in found.why else None

        return until(said) or NotYet("")

    def close(self) -> None:
        for provider in self.providers:
            provider.close()
        self.instances.close()
        self.server.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    found = Rig(tmp_path)
    yield found
    found.close()


def launch_spec(there: str, program: str) -> dict[str, Any]:
    return {
        "attempt": "ab12/1", "argv": ["/bin/sh", "-c", program], "cwd": "/", "env": {}, "run_dir": there,
        "attempt_dir": f"{there}/attempt-1", "cores": [], "deadline_s": None, "grace_s": 10, "term_s": 1,
        "heartbeat_s": 0.05,
    }  # fmt: skip


def test_a_machine_that_is_fit_is_used_like_any_other_host(rig: Rig) -> None:
    handle = rig.rented()
    fit = rig.inspected(handle)
    assert isinstance(fit, Fit)
    assert fit.gpus == GPUS
    slots = rig.provider.slots(handle, FOUR)
    assert [slot.host for slot in slots] == [handle.host] * 2
    assert [len(slot.gpu_uuids) for slot in slots] == [2, 2]
    assert rig.provider.probe(handle, slots[0]).problem == ""
    with pytest.raises(NoCapacity):
        rig.provider.slots(handle, Request(1, 5, 1))

    shell = rig.provider.shell(handle)
    run = rig.folder / "here" / "study" / "run"
    shell.follow({str(run): ()})
    there = shell.path_there(str(run))
    assert there == f"{rig.instances.home(int(handle.host))}/.armature/runs/home1/study/run"
    (spawned,) = shell.spawn([launch_spec(there, "echo $CONTAINER_ID > $RUNNER_RUN_DIR/said; sleep 60")])
    assert until(lambda: shell.read(f"{run}/said")) == f"{handle.host}\n".encode()
    assert shell.is_alive(spawned.identity)
    rig.answered(lambda: rig.provider.release(handle))
    assert rig.fake.never_destroyed() == []
    rig.fake.assert_clean()


def test_its_life_is_read_back_after_it_was_made_longer(rig: Rig) -> None:
    handle = rig.rented()
    rig.inspected(handle)
    file = rig.instances.home(int(handle.host)) / ".armature" / "switch" / "ttl_s"
    planned_s = float(file.read_text())
    rig.provider.extend(handle, planned_s + 3600)
    assert float(file.read_text()) == planned_s + 3600
    rig.provider.extend(handle, planned_s)
    assert float(file.read_text()) == planned_s + 3600
    age = file.with_name("age")
    until(lambda: json.loads(age.read_text())["ttl_s"] == planned_s + 3600)
    with pytest.raises(ValueError, match="ttl_s"):
        rig.provider.extend(handle, float("nan"))


def test_another_process_knows_the_machine_from_what_was_kept(rig: Rig) -> None:
    handle = rig.rented()
    rig.inspected(handle)
    asked = rig.fake.counts()["PUT /api/v0/instances/request_logs/{id}/"]
    assert asked >= 1
    again = rig.another()
    with pytest.raises(HostLost, match="no list"):
        again.slots(handle, FOUR)
    rig.observe(again)
    assert len(again.slots(handle, FOUR)) == 2
    assert isinstance(rig.inspected(handle, again), Fit)
    assert rig.fake.counts()["PUT /api/v0/instances/request_logs/{id}/"] == asked


def test_a_machine_that_nobody_met_is_told_nothing(rig: Rig) -> None:
    handle = rig.rented()
    with pytest.raises(HostLost, match="nobody has met"):
        rig.provider.slots(handle, FOUR)
    with pytest.raises(HostLost, match="nobody has met"):
        rig.provider.shell(handle)


def test_a_machine_that_shows_another_key_than_its_log_names_is_unfit_and_hears_nothing(rig: Rig) -> None:
    handle = rig.rented()
    number = int(handle.host)
    until(lambda: any("host key" in line for line in rig.instances.log(number)))
    right = next(line.split()[-1] for line in rig.instances.log(number) if "host key" in line)
    log = rig.instances.folder / str(number) / "log"
    wrong = "SHA256:" + "A" * 43
    log.write_text(log.read_text().replace(right, wrong))
    found = rig.inspected(handle)
    assert isinstance(found, Unfit)
    assert right in found.why
    assert wrong in found.why
    assert not (rig.instances.home(number) / ".armature" / "agent").exists()


@pytest.mark.parametrize(
    ("trouble", "said"), [("nvidia_smi_broken", f"0 of {GPUS} GPUs"), ("fewer_gpus", f"{GPUS - 1} of {GPUS} GPUs")]
)
def test_gpus_that_were_rented_and_are_not_there_make_it_unfit(rig: Rig, trouble: str, said: str) -> None:
    found = rig.inspected(rig.rented(trouble))
    assert isinstance(found, Unfit)
    assert said in found.why


def test_an_sshd_that_is_not_there_or_that_refuses_us_is_asked_again(rig: Rig) -> None:
    handle = rig.rented()
    keys = rig.instances.folder / handle.host / "authorized_keys"
    ours = keys.read_text()
    keys.write_text("")
    rig.told(handle, "refused us")
    keys.write_text(ours)
    assert isinstance(rig.inspected(handle), Fit)


def test_an_address_that_nobody_answers_at_gives_way_to_the_gateway(rig: Rig) -> None:
    reached = rig.fake.world.endpoint

    def half_blind(instance: Any) -> Endpoint | None:
        found = reached(instance)
        return found and replace(found, direct_port=9)

    rig.fake.world.endpoint = half_blind
    handle = rig.rented()
    found = rig.inspected(handle)
    assert isinstance(found, Fit)
    port = rig.fake.world.instances[int(handle.host)].endpoint
    assert port is not None
    assert found.place == f"root@127.0.0.1:{port.ssh_port}"
    assert len(rig.provider.slots(handle, FOUR)) == 2


def test_a_machine_without_a_living_switch_is_not_used(rig: Rig) -> None:
    handle = rig.rented()
    folder = rig.instances.home(int(handle.host)) / ".armature" / "switch"
    until((folder / "armed").exists)
    until(lambda: json.loads((folder / "armed").read_text())["missing"] == "")
    told = json.loads((folder / "armed").read_text())
    (folder / "armed").write_text(json.dumps({**told, "start_ticks": told["start_ticks"] + 1, "missing": ""}))
    rig.told(handle, "has ended")
    (folder / "armed").write_text(json.dumps({**told, "missing": "no answer: no certificates"}))
    rig.told(handle, "no certificates")
    (folder / "armed").write_text("armed")
    rig.told(handle, "something else")
    (folder / "armed").unlink()
    rig.told(handle, "not armed yet")
    (folder / "armed").write_text(json.dumps({**told, "missing": ""}))
    assert isinstance(rig.inspected(handle), Fit)


def test_what_has_not_come_so_far_or_never_will_is_told(rig: Rig) -> None:
    handle = rig.rented()
    number = int(handle.host)
    with pytest.raises(HostLost, match="no list"):
        rig.provider.probe(replace(handle, host="1"), Slot("gpu0", ()))
    for event, kind, said in (("offline", NotYet, "offline"), ("stop", NotYet, "offline"), ("back", NotYet, "halted")):
        befalls(rig, number, event)
        found = rig.provider.inspect(handle, GPUS)
        assert isinstance(found, kind)
        assert said in found.why
    with pytest.raises(HostLost):
        rig.provider.slots(handle, FOUR)
    befalls(rig, number, "start")
    until(lambda: [rig.observe(), rig.fake.world.instances[number].actual == "running"][1])
    assert isinstance(rig.inspected(handle), Fit)
    befalls(rig, number, "exit")
    found = rig.provider.inspect(handle, GPUS)
    assert isinstance(found, Unfit)
    assert "137" in found.why


def befalls(rig: Rig, number: int, event: str) -> None:
    with rig.fake.lock:
        rig.fake.world.happen(number, event)
    rig.answered(lambda: rig.provider.observe([LABEL]))


def test_a_machine_that_we_talk_to_is_kept_and_one_that_we_left_goes(rig: Rig) -> None:
    rig.provider._times = SwitchTimes(2.0, 2.0, 0.05, 0.1)
    handle = rig.rented()
    number = int(handle.host)
    assert isinstance(rig.inspected(handle), Fit)
    shell = rig.provider.shell(handle)
    run = rig.folder / "here" / "study" / "run"
    shell.follow({str(run): ()})
    shell.spawn([launch_spec(shell.path_there(str(run)), "true")])
    talked_until_s = time.monotonic() + 3.5
    while time.monotonic() < talked_until_s:
        assert rig.fake.world.instances[number].living
        time.sleep(0.02)
    rig.provider.close()
    until(lambda: not rig.fake.world.instances[number].living)
    assert time.monotonic() >= talked_until_s + 1.9
