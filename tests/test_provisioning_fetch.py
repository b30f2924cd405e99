"""Data fetched for real: an http server that cuts, lies and redirects, an rsync daemon, and a disk with a limit."""

from __future__ import annotations

import fcntl
import hashlib
import http.server
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from provisioning import fetch
from tests.fakes.others import as_nobody, open_to_others
from tests.fakes.sshd import free_port

PROGRAM = str(Path(fetch.__file__))
CONTENT = bytes(range(256)) * 4000
HASH = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """What the server does next: the bytes after which it cuts each answer, the tag of its file, what it was asked."""

    cuts: list[int] = field(default_factory=list)
    tag: str = '"one"'
    content: bytes = CONTENT
    status: int = 200
    location: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        site = self.site
        site.asked.append(dict(self.headers))
        site.paths.append(self.path)
        if site.location and not self.path.startswith("/elsewhere"):
            self.send_response(302)
            self.send_header("Location", site.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if site.status != 200:
            self.send_error(site.status)
            return
        self._send(site)

    def _send(self, site: Site) -> None:
        content, begin = site.content, 0
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range") == site.tag:
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            if begin >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        if site.tag:
            self.send_header("ETag", site.tag)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        length = site.cuts.pop(0) if site.cuts else len(content)
        self.wfile.write(content[begin : begin + length])
        self.wfile.flush()
        if begin + length < len(content):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def address(site: Site) -> Iterator[str]:
    handler = type("OneHandler", (Handler,), {"site": site})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/portraits.tar"
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data" / "0123" / "portraits.tar"


def run(reference: str, target: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The program as a host runs it: no packages, nothing of ours beside it."""
    argv = [sys.executable, "-I", "-S", PROGRAM, reference, str(target)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, **options)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


def left(target: Path) -> list[str]:
    return sorted(name for name in os.listdir(target.parent) if not name.endswith(".lock"))


def test_a_file_arrives_whole_and_is_not_asked_for_again(site: Site, address: str, target: Path) -> None:
    for _ in range(2):
        done = run(f"{address}#sha256={HASH}", target)
        assert done.returncode == 0, done.stderr
    assert target.read_bytes() == CONTENT
    assert left(target) == [target.name]
    assert len(site.asked) == 1
    assert target.stat().st_mode & 0o077 == 0


def test_a_cut_download_goes_on_where_it_was(site: Site, address: str, target: Path) -> None:
    site.cuts = [300_000, 100_000, 1]
    slept: list[float] = []
    assert fetch.main([f"{address}#sha256={HASH}", str(target)], slept.append) == 0
    assert target.read_bytes() == CONTENT
    assert [asked.get("Range") for asked in site.asked] == [None, "bytes=300000-", "bytes=400000-", "bytes=400001-"]
    assert slept == [1.0, 1.0, 1.0]


def test_another_process_goes_on_too(site: Site, address: str, target: Path) -> None:
    def give_up(seconds: float) -> None:
        raise KeyboardInterrupt

    site.cuts = [500_000]
    with pytest.raises(KeyboardInterrupt):
        fetch.main([address, str(target)], give_up)
    assert not target.exists()
    assert run(address, target).returncode == 0
    assert site.asked[-1]["Range"] == "bytes=500000-"
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("tag", ['"two"', "", 'W/"one"'], ids=["another file", "no name", "a weak name"])
def test_bytes_of_another_version_are_never_mixed(site: Site, address: str, target: Path, tag: str) -> None:
    site.cuts, site.content = [500_000], b"x" * len(CONTENT)
    site.tag = site.tag if tag == '"two"' else tag

    def replaced(seconds: float) -> None:
        site.tag, site.content = tag, CONTENT

    assert fetch.main([address, str(target)], replaced) == 0
    assert target.read_bytes() == CONTENT


def test_a_file_that_became_shorter_is_fetched_anew(site: Site, address: str, target: Path) -> None:
    site.cuts = [500_000]

    def shortened(seconds: float) -> None:
        site.content = CONTENT[:1000]

    assert fetch.main([address, str(target)], shortened) == 0
    assert target.read_bytes() == CONTENT[:1000]


def test_a_wrong_hash_keeps_nothing(address: str, target: Path) -> None:
    done = run(f"{address}#sha256={'0' * 64}", target)
    assert done.returncode == fetch.WRONG
    assert HASH in last_line(done)
    assert left(target) == []


@pytest.mark.parametrize(("status", "code"), [(404, fetch.ABSENT), (403, fetch.FORBIDDEN), (401, fetch.FORBIDDEN)])
def test_what_no_repetition_helps_fails_at_once(site: Site, address: str, target: Path, status: int, code: int) -> None:
    site.status = status
    done = run(address, target)
    assert done.returncode == code
    assert f"the server answered {status}" in last_line(done)
    assert address in last_line(done)
    assert len(site.asked) == 1


def test_a_server_that_stays_away_is_given_up(site: Site, address: str, target: Path) -> None:
    site.status, slept = 503, list[float]()
    assert fetch.main([address, str(target)], slept.append) == fetch.NETWORK
    assert slept == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert fetch.main(["http://127.0.0.1:1/none", str(target)], slept.append) == fetch.NETWORK


def test_the_disk_refuses(address: str, target: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = run(address, target, preexec_fn=limit)
    assert done.returncode == fetch.NO_ROOM
    assert "no room" in last_line(done)
    assert "removed" in last_line(done)
    assert left(target) == []


def test_what_is_too_large_is_not_begun(
    site: Site, address: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "KEPT_FREE", 2**60)
    assert fetch.main([address, str(target)]) == fetch.NO_ROOM
    assert not target.exists()


def test_a_folder_that_cannot_be_made_is_named(address: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    done = run(address, tmp_path / "data" / "0123" / "x")
    assert done.returncode == fetch.NO_ROOM
    assert str(tmp_path / "data") in last_line(done)


def test_the_second_waits_for_the_first(site: Site, address: str, target: Path) -> None:
    target.parent.mkdir(parents=True)
    lock = os.open(target.parent / f".{target.name}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    argv = [sys.executable, "-I", "-S", PROGRAM, address, str(target)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as second:
        assert second.stdout is not None
        assert "waiting" in second.stdout.readline()
        target.write_bytes(b"what the first has fetched")
        os.close(lock)
        assert second.wait(timeout=60) == 0
        second.stdout.read()
    assert target.read_bytes() == b"what the first has fetched"
    assert not site.asked


def test_a_file_of_the_hub_and_the_token_that_stays_there(
    site: Site, address: str, target: Path, tmp_path: Path
) -> None:
    hub = address.removesuffix("/portraits.tar")
    site.location = f"{hub}/elsewhere/blob"
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_TOKEN": "not-a-real-one"}
    done = run("hf://datasets/org/name@v1.0/train/a b.parquet", target, env=environment)
    assert done.returncode == 0, done.stderr
    assert site.paths == ["/datasets/org/name/resolve/v1.0/train/a%20b.parquet", "/elsewhere/blob"]
    assert [asked.get("Authorization") for asked in site.asked] == ["Bearer not-a-real-one", None]
    assert "not-a-real-one" not in done.stdout + done.stderr


def test_a_redirect_away_from_http_is_refused(site: Site, address: str, target: Path) -> None:
    site.location = "ftp://127.0.0.1/x"
    done = run(address, target)
    assert done.returncode == fetch.FORBIDDEN
    assert "not https" in last_line(done)


def test_a_path_is_only_looked_at(tmp_path: Path) -> None:
    assert run(str(tmp_path), tmp_path).returncode == 0
    missing = run(f"{tmp_path}/none", tmp_path / "none")
    assert (missing.returncode, f"{tmp_path}/none" in last_line(missing)) == (fetch.ABSENT, True)
    secret = tmp_path / "secret"
    secret.mkdir(mode=0o700)
    open_to_others(secret)
    assert as_nobody(lambda: fetch.main([str(secret), str(secret)]) == fetch.FORBIDDEN)


@pytest.mark.parametrize("argv", [[], ["x"], ["http://x/y", "relative"], ["a", "/b", "c"]])
def test_it_says_how_it_is_used(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch.main(argv) == fetch.USAGE
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reference", "program"),
    [("rsync://host/m/x", "rsync"), ("u@host:/x", "rsync"), ("s3://bucket/key", "aws"), ("hf://datasets/a/b", "hf")],
)
def test_a_missing_program_is_named(reference: str, program: str, target: Path, tmp_path: Path) -> None:
    done = run(reference, target, env={"PATH": str(tmp_path)})
    assert done.returncode == fetch.NO_PROGRAM
    assert f"no program {program} on this host" in last_line(done)


def program(folder: Path, name: str, script: str) -> dict[str, str]:
    """An environment whose PATH begins with a program of this name."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def test_an_object_comes_by_aws_and_unsigned_where_there_are_no_credentials(target: Path, tmp_path: Path) -> None:
    script = (
        f'echo "$@" >> {tmp_path}/asked\n'
        'case "$*" in *--no-sign-request*) echo object > "$5" ;;'
        " *) echo 'fatal error: Unable to locate credentials' >&2; exit 1 ;; esac"
    )
    done = run("s3://bucket/key.bin", target, env=program(tmp_path / "bin", "aws", script))
    assert done.returncode == 0, done.stderr
    assert target.read_text() == "object\n"
    part = target.parent / f".{target.name}.part"
    first = f"s3 cp --only-show-errors s3://bucket/key.bin {part}"
    assert (tmp_path / "asked").read_text().splitlines() == [first, f"{first} --no-sign-request"]


def test_a_dataset_comes_by_hf(target: Path, tmp_path: Path) -> None:
    script = (
        'test "$1 $2 $3 $4" = "download org/name --repo-type dataset" || exit 9\nmkdir -p "$6/.cache"; echo x > "$6/a"'
    )
    done = run("hf://datasets/org/name@v2", target, env=program(tmp_path / "bin", "hf", script))
    assert done.returncode == 0, done.stderr
    assert os.listdir(target) == ["a"]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("An error occurred (403) when calling the HeadObject operation: Forbidden", fetch.FORBIDDEN),
        ("An error occurred (404) when calling the HeadObject operation: Key not found", fetch.ABSENT),
        ("[Errno 28] No space left on device", fetch.NO_ROOM),
        ("Could not connect to the endpoint URL", fetch.NETWORK),
        ("Error: Local entry not found. [Errno 111] Connection refused", fetch.NETWORK),
        ("40404 bytes were read", fetch.NETWORK),
        ("", fetch.NETWORK),
    ],
)
def test_what_a_program_says_last_is_said(said: str, code: int, target: Path, tmp_path: Path) -> None:
    environment = program(tmp_path / "bin", "aws", f"echo '{said}' >&2; exit 1")
    done = run("s3://bucket/prefix/", target, env=environment)
    assert done.returncode == code
    assert (said or "it said nothing") in last_line(done)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """A real rsync daemon on loopback that serves tmp_path/served as the module `data`."""
    if shutil.which("rsync") is None:
        pytest.fail("rsync is not installed: apt-get install rsync")
    port = free_port()
    served = tmp_path / "served"
    (served / "faces" / "deep").mkdir(parents=True)
    (served / "faces" / "a.png").write_bytes(CONTENT)
    (served / "faces" / "deep" / "b.txt").write_text("b")
    (served / "faces" / "out").symlink_to("/etc/passwd")
    settings = tmp_path / "rsyncd.conf"
    settings.write_text(f"use chroot = no\nuid = root\ngid = root\n[data]\npath = {served}\nread only = yes\n")
    argv = ["rsync", "--daemon", "--no-detach", f"--port={port}", "--address=127.0.0.1", f"--config={settings}"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield lambda path: f"rsync://127.0.0.1:{port}/{path}"
        process.terminate()


@pytest.mark.parametrize("ending", ["", "/"])
def test_a_folder_comes_by_rsync(daemon: Callable[[str], str], target: Path, ending: str) -> None:
    place = target.with_name("faces")
    done = run(daemon("data/faces") + ending, place)
    assert done.returncode == 0, done.stderr
    assert (place / "a.png").read_bytes() == CONTENT
    assert sorted(path.name for path in place.rglob("*")) == ["a.png", "b.txt", "deep"]  # and no link that leads out
    assert left(place) == ["faces"]


def test_one_file_comes_by_rsync_and_what_is_not_there_is_said(daemon: Callable[[str], str], target: Path) -> None:
    place = target.with_name("a.png")
    assert run(daemon("data/faces/a.png"), place).returncode == 0
    assert place.read_bytes() == CONTENT
    for path in ("data/none", "none/x"):
        done = run(daemon(path), target)
        assert done.returncode == fetch.ABSENT, done.stderr
        assert "none" in last_line(done).partition("rsync ended with")[2]
    assert run("rsync://127.0.0.1:1/data/x", target).returncode == fetch.NETWORK
