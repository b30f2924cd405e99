"""Brings one piece of data to the host that it runs on: `python3 -I -S fetch.py REFERENCE TARGET`.

One file, standard library only, Python 3.10 or newer, because it is copied to hosts. REFERENCE is one of

    /path                           is there already, and TARGET names it too: only looked at
    http(s)://…[#sha256=HEX]        one file; goes on where it was cut off if the server says that it is the same file
    rsync://… , user@host:/path     a file or folder, by the program rsync; a / at the end means what is in the folder
    s3://bucket/key                 one object, or with a / at the end all below it, by the program aws
    hf://datasets/org/name[@rev]    a whole dataset, by the program hf; with /path behind it one file, by https

What arrives is TARGET only once it is whole: until then it stands beside it as .NAME.part. Of two that fetch the same
the second waits. Credentials come from the variables that the programs themselves know (HF_TOKEN, AWS_…), never from
the reference. The last line on standard error says what failed; exit codes: 0 it is there, 2 usage, 65 it is not what
the reference says, 66 there is no such thing, 69 a program is missing, 73 no room, 75 the network failed, 77 no access.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

USAGE, WRONG, ABSENT, NO_PROGRAM, NO_ROOM, NETWORK, FORBIDDEN = 2, 65, 66, 69, 73, 75, 77
FRUITLESS = 6
"""Tries in a row that bring nothing new before it is given up; a try that brings a byte begins the count again."""
PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
SILENCE_S = 60.0
"""A connection that brings nothing for so long counts as lost."""
KEPT_FREE = 64 * 2**20
"""Bytes of disk that are left to others: a full disk would end trainings."""
_READ = 2**20


class Failure(Exception):
    """It cannot be fetched; `code` is the exit code."""

    def __init__(self, code: int, problem: str) -> None:
        super().__init__(problem)
        self.code = code


def main(argv: Sequence[str], sleep: Callable[[float], None] = time.sleep) -> int:
    """The command line; returns the exit code."""
    if len(argv) != 2 or not os.path.isabs(argv[1]):
        sys.stderr.write("usage: python3 -I -S fetch.py REFERENCE TARGET    (TARGET is an absolute path)\n")
        return USAGE
    reference, target = argv
    try:
        if reference.startswith("/"):
            look(reference)
        else:
            with _alone(target):
                place(reference, target, sleep)
    except Failure as error:
        sys.stderr.write(f"fetch: {reference}: {error}\n")
        return error.code
    except OSError as error:
        sys.stderr.write(f"fetch: {reference}: {_disk_problem(error, _part(target))}\n")
        return NO_ROOM
    return 0


def look(path: str) -> None:
    """Whether a file or folder is there and can be read. Raises Failure."""
    if not os.path.exists(path):
        raise Failure(ABSENT, f"there is no {path} on this host")
    if not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
        raise Failure(FORBIDDEN, f"{path} cannot be read by this user")


def place(reference: str, target: str, sleep: Callable[[float], None]) -> None:
    """Fetch what is not there yet. Raises Failure, and OSError of this machine's disk."""
    if os.path.lexists(target):
        return
    if reference.startswith(("http://", "https://")):
        address, _, fragment = reference.partition("#")
        download(address, target, fragment.removeprefix("sha256=").lower(), sleep)
    elif reference.startswith("hf://datasets/"):
        _from_hub(reference, target, sleep)
    elif reference.startswith("s3://"):
        _from_bucket(reference, target)
    else:
        _by_rsync(reference, target)
    print(f"{target} is there")


class _Cut(Exception):
    """The network failed, and may not fail again; what has arrived is kept."""


class _Answer(NamedTuple):
    """What a server said: the place its bytes belong to, the size of the whole, and what names this version of it."""

    begin: int
    total: int | None
    version: str


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith("https://") and not (newurl.startswith("http://") and req.type == "http"):
            raise Failure(FORBIDDEN, "the server sends us on to an address that is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(address: str, target: str, digest: str, sleep: Callable[[float], None], token: str = "") -> None:
    """One file. `digest` is the SHA-256 (hex) that it must have, '' for any; `token` goes to this host only.

    Goes on where an earlier try was cut off if the server says that the file is the same; a server that says nothing of
    the kind (neither ETag nor Last-Modified) sends it again from the start. Raises Failure, and OSError of the disk.
    """
    part, pause_s, fruitless = _part(target), PAUSE_S, 0
    while True:
        before = _bytes_in(part)
        try:
            if _one_try(address, part, token):
                break
        except _Cut as error:
            have = _bytes_in(part)
            if have > before:
                fruitless, pause_s = 0, PAUSE_S
            fruitless += 1
            if fruitless >= FRUITLESS:
                raise Failure(
                    NETWORK, f"{error}; {FRUITLESS} tries brought nothing; {have:,} bytes are kept"
                ) from error
            print(f"{error}; again in {pause_s:g} s, {have:,} bytes are here", file=sys.stderr, flush=True)
            sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    _check_digest(part, digest)
    _put_in_place(part, target)
    _remove(f"{part}.json")


def _one_try(address: str, part: str, token: str) -> bool:
    """Ask for what is missing and append it; whether the file is whole then. Raises Failure for what no repetition
    helps, _Cut for the network, OSError for our disk."""
    have, version = _known(part)
    request = urllib.request.Request(address, headers={"Accept-Encoding": "identity", "User-Agent": "armature-fetch"})
    if token:
        # An unredirected header stays with this host: a redirect to a store elsewhere must not carry it.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)
    try:
        response = urllib.request.build_opener(_Redirects).open(request, timeout=SILENCE_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # the file there is no longer than what we have: it may be another one
            _remove(part, f"{part}.json")
            raise _Cut("the server has no more than what is here; it is fetched anew") from error
        if error.code in (408, 425, 429, 500, 502, 503, 504):
            raise _Cut(f"the server answered {error.code} {error.reason}") from error
        code = FORBIDDEN if error.code in (401, 403, 407) else ABSENT
        raise Failure(code, f"the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _cut(error) from error
    with response:
        return _take(response, part, have)


def _take(response: Any, part: str, have: int) -> bool:
    answer = _understood(response, have)
    if answer.begin == 0:
        _remove(part)
        with open(f"{part}.json", "w", encoding="utf-8") as file:
            json.dump({"version": answer.version}, file)
    _require_room(part, answer)
    arrived = answer.begin
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while data := memoryview(_read(response)):
            arrived += len(data)
            while data:
                data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if answer.total is not None and arrived < answer.total:
        raise _Cut(f"the connection was cut after {arrived:,} of {answer.total:,} bytes")
    return True


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read(_READ))
    except (OSError, http.client.HTTPException) as error:
        raise _cut(error) from error


def _understood(response: Any, have: int) -> _Answer:
    headers = response.headers
    version = headers.get("ETag", "")
    if not version or version.startswith("W/"):  # a weak tag does not promise the same bytes
        version = headers.get("Last-Modified", "")
    if response.status == 206:
        span, _, total = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        begin = span.partition("-")[0]
        if begin != str(have):
            raise Failure(WRONG, f"bytes from {have} on were asked for and those from {begin or 'nowhere'} came")
        return _Answer(have, int(total) if total.isdigit() else None, version)
    length = headers.get("Content-Length", "")
    return _Answer(0, int(length) if length.isdigit() else None, version)


def _require_room(part: str, answer: _Answer) -> None:
    missing, free = (answer.total or 0) - answer.begin, shutil.disk_usage(os.path.dirname(part)).free
    if missing + KEPT_FREE > free:
        raise Failure(NO_ROOM, f"{missing / 2**20:,.0f} MiB are to come and only {free / 2**20:,.0f} MiB are free")


def _check_digest(part: str, digest: str) -> None:
    if not digest:
        return
    whole = hashlib.sha256()
    with open(part, "rb") as file:
        while data := file.read(_READ):
            whole.update(data)
    if whole.hexdigest() != digest:
        _remove(part, f"{part}.json")
        raise Failure(WRONG, f"its SHA-256 is {whole.hexdigest()}, not {digest}; what came was removed")


def _known(part: str) -> tuple[int, str]:
    """How many bytes of which version are here; nothing of a version that has no name."""
    try:
        with open(f"{part}.json", encoding="utf-8") as file:
            version = str(json.load(file)["version"])
    except (OSError, ValueError, KeyError, TypeError):
        version = ""
    return (_bytes_in(part), version) if version else (0, "")


def _cut(error: OSError | http.client.HTTPException) -> _Cut:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return _Cut(f"the network failed: {reason or type(error).__name__}")


def _by_rsync(reference: str, target: str) -> None:
    """A file or folder; links that lead out of it are left behind. An ssh that would ask for a password fails."""
    part = _part(target)
    os.makedirs(part, exist_ok=True)
    remote = [] if reference.startswith("rsync://") else ["-e", "ssh -o BatchMode=yes -o ConnectTimeout=20"]
    argv = ["--recursive", "--links", "--safe-links", "--times", "--partial", f"--timeout={SILENCE_S:.0f}", *remote]
    argv += ["--", reference, f"{part}/"]
    code, said = _run("rsync", argv, "install rsync in the image or by environment.setup")
    if code:
        raise _ended("rsync", code, said, part, NETWORK if code in (10, 12, 30, 35, 255) else ABSENT)
    if reference.endswith("/"):
        _put_in_place(part, target)
        return
    found = os.listdir(part)
    if found != [os.path.basename(reference)]:
        raise Failure(WRONG, f"one name was expected and {len(found)} came")
    _put_in_place(os.path.join(part, found[0]), target)
    os.rmdir(part)


def _from_bucket(reference: str, target: str) -> None:
    """One object, or all below a prefix; once more without a signature where no credentials are found."""
    part = _part(target)
    argv = ["s3", "sync" if reference.endswith("/") else "cp", "--only-show-errors", reference, part]
    hint = "install awscli in the image or by environment.setup; a public object has an https address too"
    code, said = _run("aws", argv, hint)
    if code and "Unable to locate credentials" in said:
        code, said = _run("aws", [*argv, "--no-sign-request"], hint)
    if code:
        raise _ended("aws", code, said, part)
    if not os.path.lexists(part):
        raise Failure(ABSENT, "nothing has that name")
    _put_in_place(part, target)


def _from_hub(reference: str, target: str, sleep: Callable[[float], None]) -> None:
    """A dataset of the hub, or one file of it; HF_TOKEN and HF_ENDPOINT mean what they mean to the hub's programs."""
    organisation, name, *file = reference.removeprefix("hf://datasets/").split("/")
    name, _, revision = name.partition("@")
    if file:
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        path = urllib.parse.quote("/".join(file))
        address = f"{hub}/datasets/{organisation}/{name}/resolve/{revision or 'main'}/{path}"
        download(address, target, "", sleep, os.environ.get("HF_TOKEN", ""))
        return
    part, at = _part(target), ["--revision", revision or "main"]
    argv = ["download", f"{organisation}/{name}", "--repo-type", "dataset", "--local-dir", part, *at]
    code, said = _run("hf", argv, "install huggingface_hub by environment.setup, or name one file")
    if code:
        raise _ended("hf", code, said, part)
    _remove(os.path.join(part, ".cache"))
    _put_in_place(part, target)


def _run(program: str, argv: Sequence[str], hint: str) -> tuple[int, str]:
    """Exit code and last words of a program; what it says is passed on. Raises Failure when there is none."""
    if shutil.which(program) is None:
        raise Failure(NO_PROGRAM, f"there is no program {program} on this host; {hint}")
    last = b""
    environment = {**os.environ, "NO_COLOR": "1"}
    with subprocess.Popen(
        [program, *argv], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stderr is not None
        while data := os.read(process.stderr.fileno(), 65536):
            os.write(2, data)
            last = (last + data)[-4096:]
    return process.returncode, last.decode("utf-8", errors="replace").strip()


def _ended(program: str, code: int, said: str, part: str, otherwise: int = NETWORK) -> Failure:
    """What the last words of a program mean, as far as they say; `otherwise` where they do not."""
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith(("rsync error:", "Hint:"))]
    known = ((meaning, line) for meaning, words in _MEANINGS for line in lines if re.search(words, line))
    meaning, line = next(known, (otherwise, (lines or ["it said nothing"])[-1]))
    if meaning == NO_ROOM:
        _remove(part)
    return Failure(meaning, f"{program} ended with {code}: {line[:300]}")


_MEANINGS = (
    (NO_ROOM, "No space left|Disk quota|File too large"),
    (NETWORK, "Connection refused|timed out|Could not connect|Temporary failure|unreachable"),
    (FORBIDDEN, r"[Pp]ermission denied|Forbidden|AccessDenied|credentials|\b40[13]\b|auth failed|Host key"),
    (ABSENT, r"\b404\b|NoSuch|No such file|Unknown module|not found"),
)


@contextlib.contextmanager
def _alone(target: str) -> Iterator[None]:
    """While we are at it nobody else fetches the same; the kernel's lock ends with its process."""
    folder, name = os.path.split(target)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(os.path.join(folder, f".{name}.lock"), flags, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another process fetches the same; waiting for it", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _put_in_place(part: str, target: str) -> None:
    """The new name is given when everything is on the disk."""
    if os.path.isdir(part):
        os.sync()
    os.rename(part, target)
    descriptor = os.open(os.path.dirname(target), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_problem(error: OSError, part: str) -> str:
    """What to say of our disk. On a full one what came is removed: others must be able to write."""
    said = f"{error.filename or part}: {error.strerror or error}"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"this host cannot keep it: {said}"
    had = _bytes_in(part)
    _remove(part, f"{part}.json")
    return f"no room: {said}; the {had:,} bytes that had come were removed"


def _part(target: str) -> str:
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name}.part")


def _bytes_in(part: str) -> int:
    return os.path.getsize(part) if os.path.isfile(part) else 0


def _remove(*paths: str) -> None:
    for path in paths:
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        elif os.path.lexists(path):
            os.unlink(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
