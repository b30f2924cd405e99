"""The fake by hand: what the command serves, says and refuses, and the bill at its end."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.fakes.attempts import until
from tests.fakes.strays import running, strays
from tests.fakes.vast import Boot, Fake, FaultPlan, Offer
from tests.fakes.vast.bill import bill, status
from tests.fakes.vast.command import FAULTS, main, offers, parsed
from tests.fakes.vast.world import Wish

ROOT = Path(__file__).resolve().parent.parent


def test_the_command_serves_real_machines_until_it_is_told_to_end(tmp_path: Path) -> None:
    options = ["--port", "0", "--factor", "20", "--gpus", "2", "--state-folder", str(tmp_path / "state")]
    with subprocess.Popen(
        [sys.executable, "-m", "runner.fake_vast", *options], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as fake:
        assert fake.stdout is not None
        said = shlex.split(fake.stdout.readline())
        environment = dict(word.split("=", 1) for word in said[1:])
        url, headers = environment["VAST_URL"], {"Authorization": f"Bearer {environment['VAST_API_KEY']}"}
        assert url.startswith("http://127.0.0.1:")
        offers = requests.post(f"{url}/api/v0/bundles/", json={"num_gpus": {"eq": 2}}, headers=headers, timeout=60)
        ask_id = offers.json()["offers"][0]["id"]
        stray = tmp_path / "stray"
        wanted = {"image": "torch:2", "runtype": "ssh_direc ssh_proxy", "label": "demo", "onstart": strays(stray)}
        requests.put(f"{url}/api/v0/asks/{ask_id}/", json=wanted, headers=headers, timeout=60)
        until(lambda: len([pid for pid in running(stray) if pid != fake.pid]) >= 3)
        printed = ""
        while "running (demo); " not in printed:
            line = fake.stdout.readline()
            assert line, printed
            printed += line
        fake.terminate()
        printed += fake.stdout.read()
        assert fake.wait(60) == 0
    assert "together: 1 instances, " in printed
    assert "left behind: 1 instances" in printed
    assert running(stray) == []
    assert running(tmp_path / "state") == []


def test_the_command_needs_a_checkout(tmp_path: Path) -> None:
    (tmp_path / "runner").mkdir()
    (tmp_path / "runner" / "fake_vast.py").write_bytes((ROOT / "runner" / "fake_vast.py").read_bytes())
    command = [sys.executable, "-I", str(tmp_path / "runner" / "fake_vast.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("armature-fake-vast needs a checkout: ")
    assert done.stderr.count("\n") == 1


def test_the_bill_says_what_was_spent_and_what_is_left() -> None:
    fake = Fake([Offer(ask_id=place, machine_id=place, storage_usd_per_gb_month=0.0) for place in (1, 2)])
    for number, label in ((1, "kept"), (2, "given back")):
        fake.world.boots.append(Boot(contract_s=0.0, created_s=0.0, loading_s=0.0))
        fake.world.create(fake.market.offers[number], Wish(label), ())
    fake.advance_to(fake.world.now_s + 1800)
    fake.world.happen(fake.existing("given back")[0].id, "destroy")
    fake.advance_to(fake.world.now_s + 1800)
    lines = "\n".join(bill(fake))
    assert status(fake) == "20000001 running (kept)"
    assert "20000001      3,600      3,600     0.4000  kept (still exists)\n" in lines
    assert "20000002      1,800      1,800     0.2000  given back\n" in lines
    assert "together: 2 instances, 0.6000 USD" in lines
    assert "left behind: 1 instances that have existed 3,600 s and cost 0.4000 USD an hour" in lines


@pytest.mark.parametrize(("faults", "has_hosts"), [("off", False), ("mild", True), ("rough", True)])
def test_troubles_of_the_machines_themselves_are_among_the_faults(faults: str, has_hosts: bool) -> None:
    troubles = {FaultPlan(0, FAULTS[faults]).loading(number)[1] for number in range(400)}
    assert ({"ssh_hangs", "nvidia_smi_broken", "fewer_gpus"} <= troubles) == has_hosts
    assert (troubles == {""}) == (faults == "off")


def test_the_market_has_what_was_asked_for() -> None:
    found = offers(8, seed=3)
    assert len({offer.ask_id for offer in found}) == len(found)
    assert sorted({len(offer.gpu_ids) for offer in found}) == [1, 8]
    assert found == offers(8, seed=3)
    assert found != offers(8, seed=4)


def test_options_that_cannot_work_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old").touch()
    for wrong in (["--gpus", "0"], ["--factor", "0"], ["--faults", "some"], ["--state-folder", str(tmp_path)]):
        with pytest.raises(SystemExit, match="2"):
            parsed(wrong)
    capsys.readouterr()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 2
    assert capsys.readouterr().err == f"port {port} is taken; choose another one with --port (0 takes a free one)\n"
