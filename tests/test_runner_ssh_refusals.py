"""Hosts that cannot be used, or that mean us harm: what is said, and what stays as it was."""

from __future__ import annotations

import io
import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

import runner.cli
from runner.home import Home
from runner.live import render
from runner.store.status import home_status
from tests.fakes.files_now import names_now
from tests.fakes.ssh_lab import Rounds, SshLab, rounds, ssh_lab
from tests.fakes.sshd import Sshd


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[SshLab]:
    with ssh_lab(tmp_path) as found:
        yield found


@pytest.fixture
def here(lab: SshLab) -> Iterator[Rounds]:
    with rounds(lab) as found:
        yield found


# ---- what cannot be done is said -------------------------------------------------------------------------------------

TO_SSH = ("--provider", "ssh", "--hosts", "hosts.yaml")


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture
def command(lab: SshLab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a command line in this process, as from the folder of the lab by somebody without a terminal."""
    monkeypatch.setenv("HOME", lab.extra_environment["HOME"])
    monkeypatch.setenv("RUNNER_HOME", str(lab.home))
    monkeypatch.chdir(lab.folder)

    def run(*words: str | Path) -> Said:
        capsys.readouterr()
        code = runner.cli.run([str(word) for word in words])
        return Said(code, *capsys.readouterr())

    return run


def test_a_list_of_hosts_and_its_provider_need_each_other(lab: SshLab, command: Callable[..., Said]) -> None:
    arm = lab.arm("A")
    (lab.folder / "hosts.yaml").write_text("hosts:\n  ada:\n    adress: 10.0.0.1\n")
    said = command("launch", arm, "--provider", "ssh")
    assert (said.code, "--hosts FILE" in said.err) == (2, True)
    said = command("launch", arm, "--hosts", "hosts.yaml")
    assert said.code == 2
    assert said.err.startswith("runner: --hosts FILE needs --provider ssh, and this is --provider local; ")
    said = command("launch", arm, *TO_SSH)
    assert said.code == 2
    assert "hosts.yaml:3: hosts.ada.adress: no such key" in said.err
    assert "did you mean 'address'?" in said.err
    said = command("launch", arm, "--provider", "ssh", "--hosts", "none.yaml")
    assert (said.code, "none.yaml" in said.err) == (2, True)
    assert not lab.home.exists()


def test_a_host_that_nobody_knows_is_not_trusted_and_nothing_is_written(
    lab: SshLab, command: Callable[..., Said]
) -> None:
    ada = lab.add_host("ada")
    arm = lab.arm("A")
    for words in (("launch",), ("launch", "--dry-run", "--accept-new"), ("check",)):
        said = command(*words, arm, *TO_SSH)
        assert said.code == 2
        assert fingerprint_of(ada) in said.err
        assert f"[127.0.0.1]:{ada.port}" in said.err
        assert "--accept-new" in said.err
        plans = words != ("launch",)
        assert ("A plan stores no key" in said.err) == plans, said.err
        assert ("`ssh -p PORT USER@ADDRESS true`" in said.err) == plans
        assert not lab.home.exists()
        assert not (lab.folder.parent / "person" / ".ssh").exists()


def fingerprint_of(sshd: Sshd) -> str:
    key = sshd.folder / "hostkey.pub"
    listed = subprocess.run(["ssh-keygen", "-l", "-f", key], capture_output=True, text=True, check=True)
    return listed.stdout.split()[1]


def test_a_host_with_another_key_than_before_is_refused_with_both(lab: SshLab, command: Callable[..., Said]) -> None:
    ada = lab.add_host("ada")
    before = fingerprint_of(ada)
    lab.home.mkdir()
    host = (ada.folder / "hostkey.pub").read_text().split()[:2]
    (lab.home / "known_hosts").write_text(f"[127.0.0.1]:{ada.port} {' '.join(host)}\n")
    pinned = (lab.home / "known_hosts").read_bytes()
    ada.stop()
    ada.make_key("hostkey")
    ada.start()
    said = command("launch", lab.arm("A"), *TO_SSH, "--accept-new")
    assert said.code == 3
    assert before in said.err
    assert fingerprint_of(ada) in said.err
    assert "ada" in said.err
    assert (lab.home / "known_hosts").read_bytes() == pinned
    assert not (ada.home / ".armature").exists(), "nothing was sent to it"


def test_hosts_that_cannot_be_used_are_named_and_the_others_are(
    lab: SshLab, here: Rounds, command: Callable[..., Said]
) -> None:
    lab.add_host("ada")
    bob = lab.add_host("bob")
    bob.stop()
    Path(lab.hosts["ada"].host.keys[0]).chmod(0o644)
    arm = lab.arm("A", steps=3)
    said = command("launch", arm, *TO_SSH, "--accept-new", "--detach")
    assert said.code == 3
    assert f"chmod 600 {lab.hosts['ada'].host.keys[0]}" in said.err
    assert f"bob: root@127.0.0.1:{bob.port}: " in said.err
    assert "nothing was started" in said.err
    assert not lab.home.exists()
    Path(lab.hosts["ada"].host.keys[0]).chmod(0o600)
    lab.list_hosts(bob={"python": "/no/such/python"})
    bob.start()
    said = command("launch", arm, *TO_SSH, "--accept-new", "--dry-run", "--json")
    assert said.code == 2, "a dry run trusts nobody"
    here.launch(arm)
    here.until_ended()
    assert lab.host_of("A-s0") == "ada"
    planned = command("launch", arm, *TO_SSH, "--fresh", "--dry-run", "--json")
    ((name, why),) = json.loads(planned.out)["silent"].items()
    assert name == "bob"
    assert "/no/such/python" in why
    assert "warning: bob is left out: " in command("check", arm, *TO_SSH).out


def test_a_port_that_talks_something_else_is_told_in_one_line(lab: SshLab) -> None:
    def chatter() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"\x1b[31mHTTP/1.1 400 Bad Request\r\n" * 3)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=chatter)
        thread.start()
        port = server.getsockname()[1]
        lab.hosts_file.write_text(json.dumps({"hosts": {"ada": {"address": "127.0.0.1", "port": port}}}))
        said = lab.run("launch", lab.arm("A"), *TO_SSH, "--accept-new", code=3)
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
    (line,) = said.stderr.splitlines()
    assert line.startswith("runner: no host answers: ada: ")
    assert line.isprintable()
    assert not lab.home.exists()


def test_a_python_that_is_not_there_is_told_once_with_where_it_is_named(
    lab: SshLab, command: Callable[..., Said]
) -> None:
    lab.add_host("ada")
    lab.list_hosts(ada={"python": "/no/such/python"})
    said = command("launch", lab.arm("A"), *TO_SSH, "--accept-new")
    assert said.code == 3
    assert said.err.startswith("runner: no host can be used: ada: the agent ended; it said: "), said.err
    assert said.err.count("ada: ") == 1
    assert "`python:` of ada in the list of hosts" in said.err


def test_a_python_that_is_too_old_is_told(lab: SshLab, command: Callable[..., Said]) -> None:
    ada = lab.add_host("ada")
    old = ada.folder / "old-python"
    old.write_text("#!/bin/sh\necho armature boot $7 python 3.6\n")
    old.chmod(0o755)
    lab.list_hosts(ada={"python": str(old)})
    said = command("launch", lab.arm("A"), *TO_SSH, "--accept-new")
    assert said.code == 3
    assert "Python 3.6; 3.10 or newer is needed" in said.err
    assert str(old) in said.err


def test_a_full_disk_there_fails_the_run_and_says_so(lab: SshLab, here: Rounds) -> None:
    ada = lab.add_host("ada")
    small = ada.folder / "small-python"
    small.write_text(f'#!/bin/sh\nulimit -f 1024\nexec {sys.executable} "$@"\n')  # blocks of 512 bytes
    small.chmod(0o755)
    lab.list_hosts(ada={"python": str(small)})
    arm = lab.arm("A")
    (arm.parent / "table.dat").write_bytes(random.Random(1).randbytes(2**20))
    here.launch(arm)
    here.until(lambda: lab.status()["A-s0"]["state"] == "failed(staging)", "the failure")
    reason = lab.status()["A-s0"]["reason"]
    assert "the host cannot keep the code" in reason
    assert "File too large" in reason
    here.until_ended()


def test_frozen_code_that_was_changed_there_is_never_run(lab: SshLab, here: Rounds) -> None:
    lab.add_host("ada")
    arm = lab.arm("A", steps=3)
    here.launch(arm)
    here.until_ended()
    here.end()
    (frozen,) = lab.runs_there("ada").glob(".snapshots/*/**/train.py")
    frozen.write_text("print('step 1/3 loss=0.0')\n")
    here.launch(arm, fresh=True)
    here.until(lambda: lab.status()["A-s0"]["state"] == "failed(staging)", "the failure")
    run = lab.status()["A-s0"]
    assert run["generation"] == 2
    assert "train.py" in run["reason"]
    assert "changed there" in run["reason"]
    assert run["points"] == 0


# ---- a hostile host --------------------------------------------------------------------------------------------------

LYING = """#!{python}
import base64, json, os, subprocess, sys
if "-c" not in sys.argv:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])  # a training
# A true agent, whose answers get more files than there are.
agent = subprocess.Popen([{python!r}, *sys.argv[1:]], stdout=subprocess.PIPE)
for line in agent.stdout:
    if line.startswith(b'{{"value": {{"f'):
        answer = json.loads(line)
        value = answer["value"]
        for folder in value.get("folders", ()):
            for name in {names!r}:
                folder["files"][name] = [7, 3, 1, 0, base64.b64encode(b"bad").decode()]
        if "odd" in value:
            value["files"] = sorted([*value["files"], *([name, 3] for name in {names!r})])
        line = json.dumps(answer).encode() + b"\\n"
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
"""

LIES = ("../x", "/tmp/armature-was-here", "attempt-1/../../../x", "a/" * 12 + "deep")

EVIL = "\x1b[31m[red]evil[/red] <script>alert(1)</script>\u202e"

SHOUTING = f"""
import os, sys, time
from pathlib import Path
print({EVIL!r}, "step 1/2 loss=0.5", flush=True)
while Path(sys.argv[1]).exists():
    time.sleep(0.01)
sys.exit({EVIL!r})
"""


def plant(there: Path) -> None:
    """What somebody with a shell on the host may put into a run folder."""
    (there.parent / "beside").write_text("beside the run folder")
    (there / "up").symlink_to("..")
    (there / "passwd").symlink_to("/etc/passwd")
    (there / "attempt-1" / "etc").symlink_to("/etc")
    for name in ("\x1b[31mred.txt", "[red]note.txt", "<script>alert(1)<", "\u202etxt.exe", ".hidden"):
        (there / name).write_text("planted")
    os.mkfifo(there / "pipe")
    (there / "huge.npy").touch()
    os.truncate(there / "huge.npy", 100 * 2**30)  # sparse, and more than a run may hold


def test_a_hostile_host_changes_nothing_but_its_run_folder(
    lab: SshLab, here: Rounds, command: Callable[..., Said]
) -> None:
    ada = lab.add_host("ada")
    liar = ada.folder / "lying-python"
    liar.write_text(LYING.format(python=sys.executable, names=LIES))
    liar.chmod(0o755)
    lab.list_hosts(ada={"python": str(liar)})
    gate = lab.folder / "gate"
    gate.touch()
    here.launch(lab.arm("A", SHOUTING, str(gate), retries=0))
    here.until(lambda: lab.status()["A-s0"]["step"] == 1, "its first step")
    there, copy = lab.there("ada", "A-s0"), lab.home / lab.status()["A-s0"]["run_dir"]
    plant(there)
    here.until((copy / "[red]note.txt").exists, "a file with an allowed name")
    gate.unlink()
    here.until_ended()
    run = lab.status()["A-s0"]
    assert (run["state"], run["sync"], run["attempts"]) == ("failed(exit 1)", "done", 1)
    check_home(lab, copy)
    (told,) = lab.event_data("synced")
    refused = {
        "../x", "/tmp/armature-was-here", "attempt-1/../../../x", "a/" * 12 + "deep", "up", "passwd", "attempt-1/etc",
        "pipe", "huge.npy", ".hidden", repr("\x1b[31mred.txt"), repr("\u202etxt.exe"),
    }  # fmt: skip
    assert set(told["refused"]) == refused
    assert told["bytes_brought"] < 2**20
    (said,) = lab.events("synced")
    assert all(name in said for name in refused)
    assert said.isprintable()
    check_screens(lab, command)


def check_home(lab: SshLab, copy: Path) -> None:
    """Nothing here but what the run folder may hold."""
    assert not Path("/tmp/armature-was-here").exists()
    names = names_now(lab.folder.parent, but=lab.hosts["ada"].folder)
    assert not names & {"x", "deep", "passwd", "etc", "up", "pipe", "huge.npy", ".hidden", "beside"}
    assert not [name for name in names if not name.isprintable()]
    assert not [path for path in lab.home.rglob("*") if path.is_symlink()]
    assert {path.name for path in copy.iterdir() if not path.name.startswith(".")} >= {
        "[red]note.txt", "<script>alert(1)<", "attempt-1", "config.yaml"
    }  # fmt: skip
    assert sum(path.stat().st_size for path in copy.rglob("*")) < 2**20


def check_screens(lab: SshLab, command: Callable[..., Said]) -> None:
    """What people read holds neither control characters nor markup that works."""
    assert command("report", "lab").code == 0
    document = home_status(Home(lab.home))
    table = Console(file=io.StringIO(), width=120, color_system=None)
    table.print(render(document, 120))
    screens = {
        "status": command("status").out,
        "table": table.file.getvalue(),  # type: ignore[attr-defined]
        "logs": command("logs", "lab/A-s0").out,
        "report.md": (lab.home / "lab" / "report" / "report.md").read_text(),
    }
    for name, text in screens.items():
        odd = {character for character in text if not character.isprintable() and character != "\n"}
        assert not odd, f"{name}: {odd}"
    assert "evil" in screens["logs"]
    assert "evil" in screens["status"], "the words of the host are shown, without their power"
    assert "evil" in screens["report.md"]
    assert "<script>" not in screens["report.md"]


NEEDY = """
import pathlib, sys
assert pathlib.Path(sys.argv[2]).exists(), "it is not there"
for step in range(1, int(sys.argv[1]) + 1):
    print(f"step {step}/20 loss={1.0 / step:.9f}", flush=True)
"""


def test_what_could_not_be_made_ready_is_tried_anew_when_somebody_asks_again(lab: SshLab, here: Rounds) -> None:
    lab.add_host("ada")
    wanted = lab.folder / "wanted"
    arms = [lab.arm(name, NEEDY, "{steps}", str(wanted), steps=20) for name in ("A", "B")]
    here.launch(arms[0])
    here.until_ended()
    assert lab.status()["A-s0"]["state"] == "failed(staging)"
    assert "it is not there" in lab.status()["A-s0"]["reason"]
    here.launch(arms[0])
    here.until_ended()
    assert lab.status()["A-s0"]["state"] == "failed(staging)", "it is still missing"
    wanted.touch()
    here.launch(*arms)
    here.until_ended()
    assert {run["state"] for run in lab.status().values()} == {"finished"}
    tries = lab.home / lab.status()["A-s0"]["run_dir"] / "preflight"
    assert sorted(path.name for path in tries.glob("attempt-*")) == ["attempt-1", "attempt-2", "attempt-3"]
