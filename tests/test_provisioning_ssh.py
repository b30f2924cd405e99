"""What is particular to a host behind ssh: who it is, who we are, and what comes of one that hangs or is hostile."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from provisioning.agent_archive import agent_archive
from provisioning.agent_channel import AgentChannel
from provisioning.base import AuthenticationFailed, HostLost, Offer, Refused, Request
from provisioning.host_keys import ChangedHostKey, HostKeys
from provisioning.ssh import SshProvider
from provisioning.ssh_connection import Connection, Deadlines
from provisioning.ssh_host import SshHost, UnknownHostKey
from provisioning.ssh_shell import SshShell
from tests.fakes.attempts import SUPERVISOR, until
from tests.fakes.sshd import Sshd

SMALL = Request(None, 0, 1)


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def sshd(tmp_path: Path, cleanup: ExitStack) -> Sshd:
    found = Sshd(tmp_path / "sshd")
    cleanup.callback(found.stop)
    found.start()
    return found


def keys_of(folder: Path, *, accept: bool = True) -> HostKeys:
    return HostKeys(folder / "known_hosts", lambda *_: accept, also=None)


def provider_of(cleanup: ExitStack, folder: Path, *hosts: SshHost, keys: HostKeys | None = None) -> SshProvider:
    found = SshProvider(str(SUPERVISOR), hosts, keys or keys_of(folder), folder / "runs", Deadlines(10, 20))
    cleanup.callback(found.close)
    return found


def shell_of(cleanup: ExitStack, folder: Path, host: SshHost, *, accept: bool = True, **seconds: float) -> SshShell:
    deadlines = Deadlines(**{"connect_s": 10.0, "answer_s": 20.0, **seconds})
    connect = partial(Connection.open, host, keys_of(folder, accept=accept), deadlines)
    agent = AgentChannel(host, connect, agent_archive(str(SUPERVISOR)), deadlines)
    cleanup.callback(agent.close)
    return SshShell(agent)


@contextmanager
def takes_at_most(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


# ---- who the host is -------------------------------------------------------------------------------------------------


def test_an_unknown_host_is_only_met_with_a_yes(tmp_path: Path, cleanup: ExitStack, sshd: Sshd) -> None:
    with pytest.raises(UnknownHostKey, match="--accept-new") as refusal:
        shell_of(cleanup, tmp_path, sshd.host, accept=False).memory_mib()
    listed = subprocess.run(
        ["ssh-keygen", "-l", "-f", sshd.folder / "hostkey.pub"], capture_output=True, text=True, check=True
    )
    assert refusal.value.fingerprint == f"ssh-ed25519 {listed.stdout.split()[1]}"
    assert not (tmp_path / "known_hosts").exists()
    asked = []

    def accepts(place: str, fingerprint: str) -> bool:
        asked.append((place, fingerprint))
        return True

    keys = HostKeys(tmp_path / "known_hosts", accepts, also=None)
    for _ in range(2):
        assert provider_of(cleanup, tmp_path, sshd.host, keys=keys).offers(SMALL)
    assert asked == [(f"[127.0.0.1]:{sshd.port}", refusal.value.fingerprint)]
    assert (tmp_path / "known_hosts").stat().st_mode & 0o777 == 0o600


def test_a_host_that_the_persons_own_ssh_knows_is_not_asked_about(
    tmp_path: Path, cleanup: ExitStack, sshd: Sshd
) -> None:
    key = (sshd.folder / "hostkey.pub").read_text()
    (tmp_path / "theirs").write_text(f"[127.0.0.1]:{sshd.port} {key}")
    keys = HostKeys(tmp_path / "known_hosts", lambda *_: False, also=tmp_path / "theirs")
    assert provider_of(cleanup, tmp_path, sshd.host, keys=keys).offers(SMALL)


def test_a_changed_key_stops_with_both_fingerprints(tmp_path: Path, cleanup: ExitStack, sshd: Sshd) -> None:
    assert provider_of(cleanup, tmp_path, sshd.host).offers(SMALL)
    pinned = (tmp_path / "known_hosts").read_text()
    sshd.stop()
    sshd.make_key("hostkey")
    sshd.start()
    with pytest.raises(ChangedHostKey) as refusal:
        shell_of(cleanup, tmp_path, sshd.host).memory_mib()
    assert str(refusal.value).count("SHA256:") == 2
    assert (tmp_path / "known_hosts").read_text() == pinned


# ---- who we are ------------------------------------------------------------------------------------------------------


def test_a_key_that_the_host_does_not_know_is_refused_and_named(tmp_path: Path, cleanup: ExitStack, sshd: Sshd) -> None:
    sshd.make_key("other")
    stranger = replace(sshd.host, keys=(str(sshd.folder / "other"),))
    with pytest.raises(AuthenticationFailed, match=f"keys tried: {stranger.keys[0]}"):
        shell_of(cleanup, tmp_path, stranger).memory_mib()


def test_a_key_file_must_be_there_and_be_private(tmp_path: Path, cleanup: ExitStack, sshd: Sshd) -> None:
    (key,) = sshd.host.keys
    Path(key).chmod(0o644)
    with pytest.raises(AuthenticationFailed, match=f"chmod 600 {key}"):
        shell_of(cleanup, tmp_path, sshd.host).memory_mib()
    missing = replace(sshd.host, keys=(f"{key}-not-there",))
    with pytest.raises(AuthenticationFailed, match="not-there: No such file"):
        shell_of(cleanup, tmp_path, missing).memory_mib()


def test_nothing_secret_stands_in_a_command_line(tmp_path: Path, cleanup: ExitStack, sshd: Sshd) -> None:
    shell = shell_of(cleanup, tmp_path, sshd.host)
    program = "import time; print('up', flush=True); time.sleep(60)"
    spec = launch_spec(sshd, tmp_path, program)
    shell.spawn([spec])
    until(lambda: shell.read(f"{spec['attempt_dir']}/stdout.log"))
    seen = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "s3cret" not in seen
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    shell.write(f"{spec['attempt_dir']}/stop.json", b'{"reason": "enough", "grace_s": 0, "term_s": 0}')
    until(lambda: shell.read(f"{spec['attempt_dir']}/exit.json"))


def launch_spec(sshd: Sshd, folder: Path, program: str) -> dict[str, Any]:
    return {
        "attempt": "ab12/1", "argv": [sshd.host.python, "-I", "-S", "-c", program], "cwd": "/",
        "env": {"TOKEN": "s3cret"}, "run_dir": str(folder / "run"), "attempt_dir": str(folder / "run" / "attempt-1"),
        "cores": [], "deadline_s": None, "grace_s": 10, "term_s": 1, "heartbeat_s": 0.05,
    }  # fmt: skip


# ---- silence ---------------------------------------------------------------------------------------------------------


def test_a_host_that_is_not_there_is_lost_at_once_and_left_out_of_the_offers(
    tmp_path: Path, cleanup: ExitStack, sshd: Sshd
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        gone = replace(sshd.host, name="gone", port=closed.getsockname()[1])
    provider = provider_of(cleanup, tmp_path, gone, sshd.host)
    with takes_at_most(8):
        assert [offer.offer_id for offer in provider.offers(SMALL)] == ["loop"]
    assert f"127.0.0.1:{gone.port}" in str(provider.silent["gone"])
    with pytest.raises(HostLost, match="Connection refused"):
        shell_of(cleanup, tmp_path, gone).memory_mib()
    assert isinstance(provider.create(Offer("ssh", "elsewhere", 0, 1), "armature/test/1"), Refused)


def test_a_port_that_accepts_and_says_nothing_is_lost_within_the_deadline(
    tmp_path: Path, cleanup: ExitStack, sshd: Sshd
) -> None:
    silent = cleanup.enter_context(socket.create_server(("127.0.0.1", 0)))
    mute = replace(sshd.host, port=silent.getsockname()[1])
    with takes_at_most(6), pytest.raises(HostLost):
        shell_of(cleanup, tmp_path, mute, connect_s=1.0).memory_mib()


def test_a_host_that_hangs_is_lost_within_the_deadline_and_found_again(
    tmp_path: Path, cleanup: ExitStack, sshd: Sshd
) -> None:
    shell = shell_of(cleanup, tmp_path, sshd.host, answer_s=1.0, connect_s=1.0)
    shell.write(f"{tmp_path}/file", b"before")
    sshd.signal_all(signal.SIGSTOP)
    for _ in range(2):  # first the connection that stood, then a new one
        with takes_at_most(8), pytest.raises(HostLost):
            shell.read(f"{tmp_path}/file")
    sshd.signal_all(signal.SIGCONT)

    def again() -> bytes | None:
        try:
            return shell.read(f"{tmp_path}/file")
        except HostLost:
            return None

    assert until(again) == b"before"


def test_a_cut_connection_is_lost_once_and_made_anew(tmp_path: Path, cleanup: ExitStack, sshd: Sshd) -> None:
    shell = shell_of(cleanup, tmp_path, sshd.host)
    spec = launch_spec(sshd, tmp_path, "import time; time.sleep(60)")
    (spawned,) = shell.spawn([spec])
    sshd.stop()
    with pytest.raises(HostLost):
        shell.is_alive(spawned.identity)
    sshd.start()
    assert shell.is_alive(spawned.identity), "what runs there outlives the connection"
    assert shell.spawn([spec])[0].existing
    shell.write(f"{spec['attempt_dir']}/stop.json", b'{"reason": "enough", "grace_s": 0, "term_s": 0}')
    until(lambda: shell.read(f"{spec['attempt_dir']}/exit.json"))


# ---- the agent -------------------------------------------------------------------------------------------------------


def agent_files(sshd: Sshd) -> list[Path]:
    return sorted((sshd.home / ".armature" / "agent").glob("*.pyz"))


def test_the_agent_is_sent_once_and_again_when_it_is_torn(tmp_path: Path, cleanup: ExitStack, sshd: Sshd) -> None:
    for _ in range(2):
        shell_of(cleanup, tmp_path, sshd.host).memory_mib()
    (path,) = agent_files(sshd)
    assert path.stem == agent_archive(str(SUPERVISOR)).hash
    sent = path.stat().st_mtime_ns
    shell_of(cleanup, tmp_path, sshd.host).memory_mib()
    assert path.stat().st_mtime_ns == sent
    path.write_bytes(path.read_bytes()[:1000])
    shell_of(cleanup, tmp_path, sshd.host).memory_mib()
    assert path.read_bytes() == agent_archive(str(SUPERVISOR)).data


def test_what_a_login_shell_says_is_no_answer(tmp_path: Path, cleanup: ExitStack, sshd: Sshd) -> None:
    said = "echo 'Welcome!'; echo 'Have fun!' >&2; echo armature agent; echo '{\"value\": 1}'"
    (sshd.folder / "loud.sh").write_text(f'#!/bin/sh\n{said}\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    (sshd.folder / "loud.sh").chmod(0o755)
    sshd.stop()
    sshd.start(f"ForceCommand {sshd.folder}/loud.sh")
    assert shell_of(cleanup, tmp_path, sshd.host).memory_mib() > 64


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("#!/bin/sh\nexit 0\n", "the agent ended"),
        ("#!/bin/sh\necho no python here >&2; exit 127\n", "no python here"),
        ("#!/bin/sh\nhead -c 3000000 /dev/zero | tr '\\0' 'x'\n", "more than"),
        ("#!/bin/sh\nyes hello\n", "more than"),
        ("#!/bin/sh\necho armature boot $7 python 3.6\n", "is Python 3.6; 3.10 or newer is needed"),
        ("#!/bin/sh\necho armature boot $7 error No space left on device\n", "No space left on device"),
    ],
)
def test_a_python_that_is_none_or_too_old_is_told(
    tmp_path: Path, cleanup: ExitStack, sshd: Sshd, program: str, told: str
) -> None:
    path = tmp_path / "python"
    path.write_text(program)
    path.chmod(0o755)
    odd = replace(sshd.host, python=str(path))
    with takes_at_most(20), pytest.raises(HostLost, match=told):
        shell_of(cleanup, tmp_path, odd).memory_mib()


HOSTILE = """#!{python}
import json, sys
nonce = sys.argv[-1]
print("armature boot", nonce, "have")
print("armature agent " + nonce, flush=True)
for line in sys.stdin:
    print({answer!r}, flush=True)
"""


@pytest.mark.parametrize(
    "answer",
    [
        '{"value": "eleven"}', '{"value": [1, 2]}', '{"value": {"a": 1}}', "[]", "null", "17", "not json",
        '{"error": 5}', '{"error": ["HostLost"]}', '{"error": ["KeyboardInterrupt", "no"]}',
        '{"error": ["SpawnRefused", "only one"]}', '{"value": NaN}', "",
        pytest.param('{"value": ' + "[" * 200_000, id="deep"),
        pytest.param('{"value": ' + "[" * 200_000 + "]" * 200_000 + "}", id="deep and whole"),
    ],
)  # fmt: skip
def test_a_host_that_answers_something_else_is_lost_and_nothing_worse(
    tmp_path: Path, cleanup: ExitStack, sshd: Sshd, answer: str
) -> None:
    path = tmp_path / "python"
    path.write_text(HOSTILE.format(python=sshd.host.python, answer=answer))
    path.chmod(0o755)
    shell = shell_of(cleanup, tmp_path, replace(sshd.host, python=str(path)))
    for ask in (
        lambda: shell.read("/etc/hostname", 0, 10), lambda: shell.stamp("/etc/hostname"), shell.memory_mib,
        lambda: shell.spawn([launch_spec(sshd, tmp_path, "")]),
    ):  # fmt: skip
        with pytest.raises(HostLost):
            ask()


def test_names_that_are_paths_are_no_names(tmp_path: Path, cleanup: ExitStack, sshd: Sshd) -> None:
    path = tmp_path / "python"
    answer = json.dumps({"value": ["b", "../../etc/passwd", "a", "/etc/shadow", "..", ".", ""]})
    path.write_text(HOSTILE.format(python=sshd.host.python, answer=answer))
    path.chmod(0o755)
    shell = shell_of(cleanup, tmp_path, replace(sshd.host, python=str(path)))
    assert shell.names("/anywhere") == ("a", "b")


# ---- through another host --------------------------------------------------------------------------------------------


def test_a_host_behind_another_is_reached_through_it(tmp_path: Path, cleanup: ExitStack, sshd: Sshd) -> None:
    inner = Sshd(tmp_path / "inner", "inner")
    cleanup.callback(inner.stop)
    inner.start()
    behind = replace(inner.host, jump=sshd.host)
    shell = shell_of(cleanup, tmp_path, behind)
    assert shell.memory_mib() > 64
    assert len((tmp_path / "known_hosts").read_text().splitlines()) == 2
    sshd.stop()
    with pytest.raises(HostLost):
        shell.names("/")


def test_many_threads_of_one_process_do_not_mix_their_hosts(tmp_path: Path, cleanup: ExitStack, sshd: Sshd) -> None:
    found: dict[int, bytes | None] = {}

    def work(number: int) -> None:
        shell = shell_of(cleanup, tmp_path, sshd.host)
        shell.write(f"{tmp_path}/{number}", str(number).encode())
        found[number] = shell.read(f"{tmp_path}/{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: str(number).encode() for number in range(6)}
