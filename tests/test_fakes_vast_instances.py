"""Instances of the fake are real machines: they are reached, they run what they are told, and they leave nothing."""

from __future__ import annotations

import base64
import getpass
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest
import requests
from pydantic import TypeAdapter

from provisioning.agent import Survey
from provisioning.base import HostLost, SlotProbe
from provisioning.host_keys import fingerprint
from provisioning.ssh_connection import Deadlines
from provisioning.ssh_host import SshHost
from tests.fakes.attempts import until
from tests.fakes.sshd import agent_of, make_key
from tests.fakes.strays import running, strays
from tests.fakes.vast import Boot, Fake, Offer, VirtualClock
from tests.fakes.vast.account import FULL_KEY
from tests.fakes.vast.answers import Shapes
from tests.fakes.vast.instances import Instances, namespaces
from tests.fakes.vast.server import Server

APART_S = 13.0  # longer than any published interval and penalty
BOOTED_S = 120.0  # longer than any start here takes
ROOT = Path(__file__).resolve().parent.parent
DEADLINES = Deadlines(connect_s=10.0, answer_s=20.0)


class Rig:
    """One fake account behind HTTP with real machines, and a client of it."""

    def __init__(self, folder: Path, is_isolated: bool | None = None) -> None:
        offers = [Offer(ask_id=100 + place, machine_id=place, gpu_ids=(0, 1), machine_gpus=2) for place in range(9)]
        self.folder, self.clock = folder, VirtualClock()
        self.fake = Fake(offers, start_s=self.clock(), shapes=Shapes())
        self.server = Server(self.fake, self.clock)
        self.instances = Instances(self.fake, folder / "machines", is_isolated)
        make_key(folder / "key")

    def ask(self, method: str, path: str, body: Any = None, key: str = FULL_KEY) -> Any:
        self.clock.advance(APART_S)
        headers = {"Authorization": f"Bearer {key}"}
        found = requests.request(method, self.server.url + path, json=body or {}, headers=headers, timeout=60)
        return found.json()

    def rent(self, ask_id: int = 100, trouble: str = "", **fields: Any) -> int:
        """A running instance that has our key."""
        self.ask("POST", "/api/v0/ssh/", {"ssh_key": (self.folder / "key.pub").read_text().strip()})
        self.fake.world.boots.append(Boot(trouble=trouble))
        wanted = {
            "image": "torch:2",
            "disk": 20,
            "label": "armature/home/1",
            "runtype": "ssh_direc ssh_proxy",
            **fields,
        }
        number = int(self.ask("PUT", f"/api/v0/asks/{ask_id}/", wanted)["new_contract"])
        self.clock.advance(BOOTED_S)
        assert self.show(number)["actual_status"] == "running"
        return number

    def show(self, number: int) -> Any:
        return self.ask("GET", f"/api/v0/instances/{number}/")["instances"]

    def state(self, number: int, state: str) -> None:
        assert self.ask("PUT", f"/api/v0/instances/{number}/", {"state": state})["success"]
        self.clock.advance(BOOTED_S)
        self.show(number)

    def logged(self, number: int) -> list[str]:
        """The log as a client reads it: asked for, then fetched without a key."""
        url = self.ask("PUT", f"/api/v0/instances/request_logs/{number}/", {"tail": "100"})["result_url"]
        self.clock.advance(APART_S)
        return requests.get(url, timeout=60).text.splitlines()

    def host(self, number: int) -> SshHost:
        record = self.show(number)
        port = int(record["ports"]["22/tcp"][0]["HostPort"])
        keys = (str(self.folder / "key"),)
        return SshHost(f"vast-{number}", record["public_ipaddr"].strip(), port, getpass.getuser(), keys)

    def run(self, number: int, command: str) -> tuple[int, str]:
        """(exit code, output) of a command over ssh."""
        host = self.host(number)
        with paramiko.SSHClient() as client:
            client.get_host_keys().add(f"[{host.address}]:{host.port}", *self.host_key(number))
            client.connect(host.address, host.port, host.user, key_filename=host.keys[0], timeout=60)
            _, output, _ = client.exec_command(command, timeout=60)
            said = output.read().decode()
            return output.channel.recv_exit_status(), said

    def host_key(self, number: int) -> tuple[str, paramiko.PKey]:
        kind, data = self.instances.host_key(number).split()[:2]
        return kind, paramiko.Ed25519Key(data=base64.b64decode(data))


@pytest.fixture(params=[False, True] if namespaces() else [False], ids=lambda own: "isolated" if own else "tree")
def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    found = Rig(tmp_path, request.param)
    with found.server, found.instances:
        yield found


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Rig]:
    found = Rig(tmp_path)
    with found.server, found.instances:
        yield found


def test_an_instance_is_reached_and_its_start_commands_have_run(rig: Rig) -> None:
    onstart = (
        'echo "hello from $CONTAINER_ID"; ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub; echo "$TOKEN" > kept'
    )
    number = rig.rent(onstart=onstart, env={"TOKEN": 'a "b" \\ $c #d', "-p 8000:8000": "1"})

    assert rig.run(number, 'pwd; echo "$TOKEN|$CONTAINER_ID"')[1].splitlines()[1] == f'a "b" \\ $c #d|{number}'
    until(lambda: (rig.instances.home(number) / "kept").is_file())
    until(lambda: len(rig.logged(number)) == 2)
    said = rig.logged(number)
    assert said[0] == f"hello from {number}"
    assert said[1].split()[1] == fingerprint(rig.host_key(number)[1]).split()[1]
    record = rig.show(number)
    assert (record["ssh_host"], record["ssh_port"]) != ("127.0.0.1", rig.host(number).port)
    with paramiko.SSHClient() as client:  # what is said to be the gateway leads to the same machine
        client.get_host_keys().add(f"[127.0.0.1]:{record['ssh_port']}", *rig.host_key(number))
        client.connect("127.0.0.1", record["ssh_port"], getpass.getuser(), key_filename=str(rig.folder / "key"))
    rig.fake.assert_clean()


def test_a_stop_ends_all_that_runs_there_and_a_start_begins_again_in_the_same_home(rig: Rig, tmp_path: Path) -> None:
    stray = tmp_path / "stray"
    number = rig.rent(onstart="echo started >> ~/starts; echo again")
    rig.run(number, f"echo data > ~/data; {strays(stray)} true")
    until(lambda: len(running(stray)) >= 3)
    port = rig.host(number).port

    rig.state(number, "stopped")
    assert running(stray) == []
    assert running(rig.instances.folder) == []
    with pytest.raises(OSError, match=r"refused|Unable to connect"):
        paramiko.SSHClient().connect("127.0.0.1", port, timeout=5)

    key = rig.instances.host_key(number)
    rig.state(number, "running")
    assert rig.run(number, "cat ~/data") == (0, "data\n")
    until(lambda: rig.logged(number) == ["again", "again"])
    assert (rig.instances.home(number) / "starts").read_text() == "started\nstarted\n"
    assert rig.instances.host_key(number) == key


@pytest.mark.parametrize("event", ["exit", "offline", "outbid", "expire", "restart"])
def test_what_befalls_a_host_ends_its_processes(one: Rig, tmp_path: Path, event: str) -> None:
    number = one.rent(onstart=strays(tmp_path / "stray"), price=0.3 if event == "outbid" else None)
    until(lambda: len(running(tmp_path / "stray")) >= 3)
    with one.fake.lock:
        one.fake.world.happen(number, event)
    assert running(tmp_path / "stray") == []
    assert running(one.instances.folder) == []
    assert one.instances.home(number).is_dir()


def test_a_destroyed_instance_leaves_no_process_and_no_folder(rig: Rig, tmp_path: Path) -> None:
    number, other = rig.rent(100, onstart=strays(tmp_path / "stray")), rig.rent(101, label="armature/home/2")
    rig.run(number, f"{strays(tmp_path / 'stray')} true")
    until(lambda: len(running(tmp_path / "stray")) >= 6)
    rig.ask("DELETE", f"/api/v0/instances/{number}/")
    assert running(tmp_path / "stray") == []
    assert [path.name for path in rig.instances.folder.iterdir()] == [str(other)]
    assert rig.run(other, "echo alive") == (0, "alive\n")


def test_an_instance_can_destroy_itself_and_nothing_else(rig: Rig) -> None:
    other = rig.rent(101, label="armature/home/2")
    program = f"""
import os, urllib.request, urllib.error
def delete(number):
    key = os.environ["CONTAINER_API_KEY"]
    url = os.environ["VAST_URL"] + f"/api/v0/instances/{{number}}/"
    headers = {{"Authorization": f"Bearer {{key}}", "Content-Type": "application/json"}}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, b"{{}}", headers, method="DELETE")).status
    except urllib.error.HTTPError as error:
        return error.code
print(delete({other}), flush=True)
open("tried", "w").close()
import time
while not os.path.exists("go"):
    time.sleep(0.01)
delete(os.environ["CONTAINER_ID"])
"""
    number = rig.rent(onstart=f"cd ~; cat > self.py <<'END'\n{program}\nEND\npython3 self.py")
    until(lambda: (rig.instances.home(number) / "tried").exists())
    until(lambda: rig.logged(number) == ["403"])
    rig.clock.advance(APART_S)
    (rig.instances.home(number) / "go").touch()
    until(lambda: number not in [each.id for each in rig.fake.existing()])
    until(lambda: not (rig.instances.folder / str(number)).exists())
    assert [each.id for each in rig.fake.existing()] == [other]
    assert running(rig.instances.folder / str(number)) == []


def test_our_agent_finds_the_gpus_that_the_offer_names(rig: Rig, tmp_path: Path) -> None:
    number = rig.rent()
    agent = agent_of(rig.host(number), tmp_path / "known_hosts", DEADLINES)
    try:
        survey = agent.ask(TypeAdapter(Survey), "survey")
        request = {"slots": 2, "gpus": 1, "cpus": 1, "min_vram_gib": 20.0, "wanted": {}}
        slots = agent.ask(TypeAdapter(list[Any]), "slots", request)
        probe = agent.ask(TypeAdapter(SlotProbe), "probe", "armature/home/1", slots[0], [])
        about = agent.ask(TypeAdapter(dict[str, Any]), "about")
    finally:
        agent.close()
    assert (survey.gpus, survey.notes) == (2, ())
    assert [slot["vram_mib"] for slot in slots] == [24564, 24564]
    assert len({slot["gpu_uuids"][0] for slot in slots}) == 2
    assert (probe.problem, probe.foreign) == ("", ())
    assert about["home"] == str(rig.instances.home(number))


def test_nvidia_smi_answers_only_what_it_knows(one: Rig) -> None:
    number = one.rent()
    known = "--query-gpu=index,name,memory.total --format=csv,noheader,nounits"
    assert one.run(number, f"nvidia-smi {known}") == (0, "0, RTX 4090, 24564\n1, RTX 4090, 24564\n")
    for asked in ("", "-q", "--query-gpu=index", known.replace("name", "fan.speed"), known.replace(",nounits", "")):
        assert one.run(number, f"nvidia-smi {asked}")[0] == 2, asked


@pytest.mark.parametrize(
    ("trouble", "gpus", "said"), [("nvidia_smi_broken", 0, "couldn't communicate"), ("fewer_gpus", 1, "")]
)
def test_a_machine_with_less_than_was_rented(one: Rig, tmp_path: Path, trouble: str, gpus: int, said: str) -> None:
    number = one.rent(trouble=trouble)
    agent = agent_of(one.host(number), tmp_path / "known_hosts", DEADLINES)
    try:
        survey = agent.ask(TypeAdapter(Survey), "survey")
    finally:
        agent.close()
    assert survey.gpus == gpus
    assert said in " ".join(survey.notes)


@pytest.mark.parametrize("trouble", ["ssh_refused", "ssh_hangs"])
def test_a_machine_that_cannot_be_reached(one: Rig, tmp_path: Path, trouble: str) -> None:
    number = one.rent(trouble=trouble, onstart="echo here")
    agent = agent_of(one.host(number), tmp_path / "known_hosts", Deadlines(connect_s=1.0, answer_s=1.0))
    with pytest.raises(HostLost) as told:
        agent.ask(TypeAdapter(Survey), "survey")
    assert ("refused" in str(told.value)) == (trouble == "ssh_refused")
    until(lambda: one.logged(number) == ["here"])  # the container is there all the same


def test_a_key_that_is_given_later_lets_in(one: Rig) -> None:
    number = one.rent()
    make_key(one.folder / "key")
    with pytest.raises(paramiko.AuthenticationException):
        one.run(number, "true")
    public = (one.folder / "key.pub").read_text().strip()
    assert one.ask("POST", f"/api/v0/instances/{number}/ssh/", {"ssh_key": public})["success"]
    assert one.run(number, "true") == (0, "")


def test_without_ssh_in_the_runtype_nothing_is_started(one: Rig) -> None:
    number = one.rent(runtype="args", onstart="echo here")
    assert one.show(number)["ssh_host"] is None
    assert not one.instances.home(number).exists()


PLAYS = """
import sys
from pathlib import Path
from tests.fakes.vast import Boot, Fake, Offer
from tests.fakes.vast.instances import Instances
from tests.fakes.vast.world import Wish
fake = Fake([])
instances = Instances(fake, Path(sys.argv[1]))
fake.world.create(Offer(1, 1), Wish("other", "image", sys.argv[2]), ())
fake.advance_to(fake.world.now_s + 100)
print("plays", flush=True)
sys.stdin.read()
"""


def test_a_fake_that_is_killed_leaves_nothing_running(tmp_path: Path) -> None:
    stray = tmp_path / "stray"
    with subprocess.Popen(
        [sys.executable, "-c", PLAYS, str(tmp_path / "machines"), strays(stray)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as fake:  # fmt: skip
        assert fake.stdout is not None
        assert fake.stdout.readline() == b"plays\n"
        until(lambda: len([pid for pid in running(stray) if pid != fake.pid]) >= 3)
        fake.kill()
    until(lambda: running(stray) == [])
    until(lambda: running(tmp_path / "machines") == [])
