"""The list of hosts: what it may say, and that whatever else it says is refused at its line."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.ssh_host import SshHost
from runner.errors import SpecError
from runner.spec.hosts import read_hosts

WHOLE = """\
hosts:
  bastion: {address: gate.example.org, runs: false}
  gpu1:
    address: 10.0.0.5
    port: 2222
    user: anna
    keys: [keys/id_ed25519, /abs/id_rsa]
    jump: bastion
    python: ~/venv/bin/python
    folder: /data/armature
  gpu2: {address: gpu2}
"""
ELSEWHERE = "hosts:\n  gpu1: {address: b, jump: gate}\n  gat: {address: c}"
ROUND = "hosts:\n  a: {address: x, jump: b}\n  b: {address: y, jump: c}\n  c: {address: z, jump: a}"


def written(folder: Path, text: str) -> str:
    path = folder / "hosts.yaml"
    path.write_text(text)
    return str(path)


def test_everything_that_may_be_said_of_a_host(tmp_path: Path) -> None:
    gpu1, gpu2 = read_hosts(written(tmp_path, WHOLE))
    keys = (f"{tmp_path}/keys/id_ed25519", "/abs/id_rsa")
    bastion = SshHost("bastion", "gate.example.org")
    assert gpu1 == SshHost("gpu1", "10.0.0.5", 2222, "anna", keys, bastion, "~/venv/bin/python", "/data/armature")
    assert gpu2 == SshHost("gpu2", "gpu2")


def test_a_key_in_the_home_folder_of_the_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    (host,) = read_hosts(written(tmp_path, "hosts: {a: {address: b, keys: [~/.ssh/id]}}"))
    assert host.keys == ("/home/anna/.ssh/id",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hosts: {}", "hosts.yaml:1: hosts: {} is not allowed; allowed: at least one entry"),
        ("host: {a: {address: b}}", "hosts.yaml:1: host: no such key; allowed: hosts; did you mean 'hosts'?"),
        ("hosts: [a, b]", "hosts.yaml:1: hosts: ['a', 'b'] is not allowed; allowed: a block of keys"),
        ("hosts:\n  a: b", "hosts.yaml:2: hosts.a: 'b' is not allowed; allowed: a block of keys"),
        ("hosts:\n  a:\n    port: 22", "hosts.yaml:2: hosts.a.address: is missing; allowed: the name or number"),
        ("hosts:\n  a:\n    address: b\n    prot: 22", "hosts.yaml:4: hosts.a.prot: no such key; allowed: address,"),
        ("hosts:\n  a:\n    address: b\n    prot: 22", "did you mean 'port'?"),
        ("hosts:\n  a: {address: b, port: 70000}", "hosts.a.port: 70000 is not allowed; allowed: a number up to 65535"),
        ("hosts:\n  a: {address: b, port: '22'}", "hosts.a.port: '22' is not allowed; allowed: a whole number"),
        ("hosts:\n  a b: {address: c}", "hosts.yaml:2: hosts.a b"),
        ("hosts:\n  a: {address: b}\n  A: {address: c}", "hosts.yaml:3: hosts.A: differs from a only in its case"),
        ("hosts:\n  a: {address: b}\n  a: {address: c}", "hosts.yaml:3"),
        (ELSEWHERE, "hosts.gpu1.jump: there is no host 'gate'; allowed: gpu1, gat; did you mean 'gat'?"),
        ("hosts:\n  a: {address: b, jump: a}", "hosts.a.jump: goes round in a circle: a -> a"),
        (ROUND, "hosts.c.jump: goes round in a circle: a -> b -> c -> a"),
        ("hosts:\n  a: {address: b, runs: false}", "hosts.yaml:1: hosts: every host has `runs: false`"),
        ("hosts:\n  a: {address: ''}", "hosts.a.address: '' is not allowed"),
        ("", "is empty"),
        ("- a", "is not a block of keys"),
        ("hosts: {a: {address: b}", "hosts.yaml:"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place_and_what_is_allowed(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(SpecError) as refusal:
        read_hosts(written(tmp_path, text))
    assert told in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"hosts\.yaml: does not exist"):
        read_hosts(str(tmp_path / "hosts.yaml"))


@given(st.binary(max_size=200))
def test_no_bytes_are_a_surprise(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(b"hosts:\n  a: {address: b}\n" + data)
    with suppress(SpecError):
        assert read_hosts(str(path))
