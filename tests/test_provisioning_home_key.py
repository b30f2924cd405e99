"""The key pair of a home: made once, private, the same for everybody who asks, and never replaced."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import paramiko
import pytest

from provisioning.home_key import HomeKeyError, home_key

ROOT = Path(__file__).resolve().parent.parent


def test_it_is_made_once_private_and_as_ssh_knows_it(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "rented"
    made = home_key(path)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [one.name for one in path.parent.iterdir()] == ["rented"]
    kept = path.read_bytes()
    assert home_key(path) == made
    assert path.read_bytes() == kept
    told = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True).stdout
    assert told.split()[:2] == made.public_line.split()[:2]
    assert made.public_line.split()[2:] == ["armature"]
    assert paramiko.Ed25519Key.from_private_key_file(str(path)).get_base64() == made.public_line.split()[1]
    assert home_key(tmp_path / "other").public_line != made.public_line


def test_processes_that_make_it_at_once_get_the_same(tmp_path: Path) -> None:
    gate, path = tmp_path / "gate", tmp_path / "key"
    program = (
        "import sys; from pathlib import Path; from provisioning.home_key import home_key\n"
        "print('ready', flush=True)\n"
        "while not Path(sys.argv[1]).exists(): pass\n"  # so that all go on together
        "print(home_key(Path(sys.argv[2])).public_line)"
    )
    makers = [
        subprocess.Popen([sys.executable, "-c", program, gate, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    try:
        for maker in makers:
            assert maker.stdout is not None
            assert maker.stdout.readline() == "ready\n"
    finally:
        gate.touch()
        lines = {maker.communicate(timeout=60)[0] for maker in makers}
    assert lines == {home_key(path).public_line + "\n"}
    assert sorted(one.name for one in tmp_path.iterdir()) == ["gate", "key"]


@pytest.mark.parametrize(
    ("mode", "content", "said"),
    [
        (0o640, None, "chmod 600"),
        (0o600, b"", "no private key"),
        (0o600, b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "no private key"),
    ],
)
def test_a_file_that_is_no_such_key_is_told_and_kept(
    tmp_path: Path, mode: int, content: bytes | None, said: str
) -> None:
    path = tmp_path / "key"
    home_key(path)
    if content is not None:
        path.write_bytes(content)
    path.chmod(mode)
    kept = path.read_bytes()
    with pytest.raises(HomeKeyError, match=said):
        home_key(path)
    assert path.read_bytes() == kept


def test_another_kind_of_key_and_one_with_a_password_are_refused(tmp_path: Path) -> None:
    for name, options in (("rsa", ["-t", "rsa", "-N", ""]), ("locked", ["-t", "ed25519", "-N", "secret word"])):
        subprocess.run(["ssh-keygen", "-q", *options, "-f", tmp_path / name], check=True)
        with pytest.raises(HomeKeyError, match="kept as it is"):
            home_key(tmp_path / name)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeKeyError, match="cannot be made"):
        home_key(tmp_path / "file" / "key")
