"""The part of the hub that publishing a data set asks for, over real sockets, and strict about all of it.

Two servers, as the hub has them: one with the API, which wants the token, and one that stores large files under signed
addresses, which must never see it. What is asked otherwise than the library of the hub asks is answered with 400 and
kept in `complaints`. Large files go by the LFS protocol, in one part or several; the hub's other protocol (xet) speaks
through a compiled library and is not here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_fake-7f3a9c51d2e8"
LFS_TYPE = "application/vnd.git-lfs+json"
PART_BYTES = 300_000
"""Larger files go in parts of this size."""


@dataclass
class Repository:
    """Files by path at the newest commit: (content, is in large storage)."""

    is_private: bool
    files: dict[str, tuple[bytes, bool]] = field(default_factory=dict)
    commits: list[str] = field(default_factory=lambda: ["0" * 40])


@dataclass
class FakeHub:
    """State, what happened, and what shall go wrong: `failures` maps (method, beginning of the path) to statuses, one
    a request."""

    base: str = ""
    storage: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    announced: dict[str, int] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    failures: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.RLock)

    def uploads(self) -> list[str]:
        """Objects that were sent, by SHA-256."""
        return sorted({path.split("/")[2].split("?")[0] for method, path in self.calls if method == "PUT"})

    def failing(self, method: str, path: str) -> int | None:
        for (wanted, start), statuses in self.failures.items():
            if method == wanted and path.startswith(start) and statuses:
                return statuses.pop(0)
        return None


class Refused(Exception):
    """A status and words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


def expect(is_so: object, words: str) -> None:
    """What the protocol demands."""
    if not is_so:
        raise Refused(400, words)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Both servers until the block ends."""
    hub = FakeHub()
    with _server(hub, _api) as base, _server(hub, _storage) as storage:
        hub.base, hub.storage = base, storage
        yield hub


Answer = tuple[int, dict[str, str], bytes]
Ask = Callable[[FakeHub, str, str, dict[str, str], bytes], Answer]


@contextmanager
def _server(hub: FakeHub, answer: Ask) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self._body()
            headers = {name.lower(): value for name, value in self.headers.items()}
            with hub.lock:
                hub.calls.append((self.command, self.path))
                failing = hub.failing(self.command, self.path)
                try:
                    if failing is not None:
                        raise Refused(failing, f"planted failure for {TOKEN}")
                    status, more, content = answer(hub, self.command, self.path, headers, body)
                except Refused as refused:
                    if failing is None and refused.status == 400:
                        hub.complaints.append(f"{self.command} {self.path}: {refused}")
                    status, more = refused.status, {"X-Error-Message": str(refused), **_json_type()}
                    if status == 404:
                        more["X-Error-Code"] = "RepoNotFound"
                    content = json.dumps({"error": str(refused)}).encode()
            self.send_response(status)
            for name, value in {**more, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else content)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                pieces = []
                while size := int(self.rfile.readline(), 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(pieces)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        do_GET = do_POST = do_PUT = do_HEAD = _serve

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may hang up
                super().handle_error(*_)

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _json_type() -> dict[str, str]:
    return {"Content-Type": "application/json"}


def _json(content: Any, status: int = 200) -> Answer:
    return status, _json_type(), json.dumps(content).encode()


# ---- the API ---------------------------------------------------------------------------------------------------------


def _api(hub: FakeHub, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
    if headers.get("authorization") != f"Bearer {TOKEN}":
        raise Refused(401, "Invalid credentials in Authorization header")
    path = unquote(urlsplit(target).path)
    if (method, path) == ("POST", "/api/repos/create"):
        return _create(hub, json.loads(body))
    if (method, path) == ("POST", "/api/validate-yaml"):
        return _validate(json.loads(body))
    if found := re.fullmatch(r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
        expect(method == "POST" and headers.get("accept") == LFS_TYPE, "LFS is asked for with its own type")
        expect(headers.get("content-type") == LFS_TYPE, "LFS is told with its own type")
        return _batch(hub, _known(hub, found[1]), json.loads(body))
    if (method, path) == ("POST", "/lfs/verify"):
        given = json.loads(body)
        expect(len(hub.objects.get(given["oid"], b"")) == given["size"], "an object that is not there is verified")
        return _json({})
    if found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
        return _resolve(hub, _known(hub, found[1]), found[2], found[3], method)
    found = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/(preupload|commit|tree|revision)/([^/]+))?", path)
    expect(found, "there is no such address")
    assert found is not None
    repository = _known(hub, found[1])
    verb, revision = found[2], found[3]
    if verb in (None, "revision") and method == "GET":
        return _json({"id": found[1], "sha": repository.commits[-1], "private": repository.is_private, "siblings": []})
    if verb == "tree" and method == "GET":
        expect(revision in repository.commits, "the tree of a commit that is not there")
        expect(parse_qs(urlsplit(target).query).get("recursive") == ["true"], "all folders are wanted")
        return _json([_entry(name, *each) for name, each in sorted(repository.files.items())])
    if verb == "preupload" and method == "POST":
        expect(revision == "main", "the branch is main")
        return _preupload(repository, json.loads(body))
    expect(verb == "commit" and method == "POST" and revision == "main", "there is no such verb")
    expect(headers.get("content-type") == "application/x-ndjson", "a commit is lines of JSON")
    return _commit(hub, found[1], [json.loads(line) for line in body.splitlines()])


def _known(hub: FakeHub, name: str) -> Repository:
    if name not in hub.repositories:
        raise Refused(404, "Repository not found")
    return hub.repositories[name]


def _create(hub: FakeHub, given: dict[str, Any]) -> Answer:
    name = f"{given['organization']}/{given['name']}"
    expect(given.get("type") == "dataset", "a repository of data")
    expect(given.get("visibility") in ("private", "public"), "visibility is said")
    is_new = name not in hub.repositories
    if is_new:
        hub.repositories[name] = Repository(given["visibility"] == "private")
    return _json({"url": f"{hub.base}/datasets/{name}", "name": name}, 200 if is_new else 409)


def _validate(given: dict[str, Any]) -> Answer:
    expect(given["repoType"] == "dataset", "a card of data")
    expect(re.match(r"---\n.*?\n---\n", given["content"], re.DOTALL), "a header of YAML")
    return _json({"errors": [], "warnings": []})


def _entry(path: str, content: bytes, is_large: bool) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
    if is_large:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _preupload(repository: Repository, given: dict[str, Any]) -> Answer:
    answers = []
    for file in given["files"]:
        sample = base64.b64decode(file["sample"], validate=True)
        expect(len(sample) == min(512, file["size"]), "a sample is 512 bytes")
        content, is_large = repository.files.get(file["path"], (None, False))
        oid = None if content is None else hashlib.sha256(content).hexdigest() if is_large else _blob(content)
        mode = "lfs" if file["path"].endswith((".tar", ".png")) else "regular"
        answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return _json({"files": answers})


def _batch(hub: FakeHub, _: Repository, given: dict[str, Any]) -> Answer:
    expect(given["operation"] == "upload" and given["hash_algo"] == "sha256", "an upload by SHA-256")
    expect(set(given["transfers"]) <= {"basic", "multipart"}, "known transfers")
    found = []
    for wanted in given["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        expect(re.fullmatch("[0-9a-f]{64}", oid), "an object is a SHA-256")
        hub.announced[oid] = size
        answer: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in hub.objects:
            answer["actions"] = {"upload": _upload(hub, oid, size), "verify": {"href": f"{hub.base}/lfs/verify"}}
        found.append(answer)
    return 200, {"Content-Type": LFS_TYPE}, json.dumps({"transfer": "basic", "objects": found}).encode()


def _upload(hub: FakeHub, oid: str, size: int) -> dict[str, Any]:
    if size <= PART_BYTES:
        return {"href": f"{hub.storage}/object/{oid}?signature=s"}
    count = -(-size // PART_BYTES)
    parts = {str(number): f"{hub.storage}/part/{oid}?number={number}" for number in range(1, count + 1)}
    return {"href": f"{hub.storage}/complete/{oid}", "header": {"chunk_size": str(PART_BYTES), **parts}}


def _commit(hub: FakeHub, name: str, lines: list[dict[str, Any]]) -> Answer:
    repository = hub.repositories[name]
    expect(lines[0]["key"] == "header" and lines[0]["value"]["summary"], "a commit has a title")
    if lines[0]["value"].get("parentCommit") != repository.commits[-1]:
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    files = dict(repository.files)
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            expect(
                value["encoding"] == "base64" and not value["path"].endswith(".tar"), "small files are in the commit"
            )
            files[value["path"]] = (base64.b64decode(value["content"], validate=True), False)
        elif line["key"] == "lfsFile":
            expect(len(hub.objects.get(value["oid"], b"")) == value["size"], "a file is named that is not there")
            files[value["path"]] = (hub.objects[value["oid"]], True)
        else:
            expect(line["key"] == "deletedFile" and files.pop(value["path"], None), "what is deleted is there")
    repository.files = files
    repository.commits.append(hashlib.sha1(repr(lines).encode()).hexdigest())
    oid = repository.commits[-1]
    return _json({"commitUrl": f"{hub.base}/datasets/{name}/commit/{oid}", "commitOid": oid, "success": True})


def _resolve(hub: FakeHub, repository: Repository, revision: str, path: str, method: str) -> Answer:
    expect(method == "GET" and revision in ("main", repository.commits[-1]), "a file at a known revision")
    if path not in repository.files:
        raise Refused(404, "Entry not found")
    content, is_large = repository.files[path]
    headers = {"X-Repo-Commit": repository.commits[-1]}
    if is_large:
        where = f"{hub.storage}/object/{hashlib.sha256(content).hexdigest()}?signature=s"
        return 302, {**headers, "Location": where}, b""
    return 200, headers, content


# ---- the storage -----------------------------------------------------------------------------------------------------


def _storage(hub: FakeHub, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
    expect("authorization" not in headers, "the token is for the hub, not for its storage")
    _, kind, oid = urlsplit(target).path.split("/")
    if method == "GET" and kind == "object":
        return 200, {}, hub.objects[oid]
    expect(oid in hub.announced, "an upload that nobody announced")
    if method == "PUT" and kind == "object":
        return _stored(hub, oid, body)
    if method == "PUT" and kind == "part":
        expect(len(body) <= PART_BYTES, "a part is not too large")
        number = int(parse_qs(urlsplit(target).query)["number"][0])
        hub.parts[oid, number] = body
        return 200, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, b""
    expect(method == "POST" and kind == "complete", "there is no such verb")
    given = json.loads(body)
    expect(given["oid"] == oid, "the parts of this object")
    pieces = []
    for part in given["parts"]:
        piece = hub.parts[oid, part["partNumber"]]
        expect(part["etag"] == f'"{hashlib.md5(piece).hexdigest()}"', "the tag of every part")
        pieces.append(piece)
    return _stored(hub, oid, b"".join(pieces))


def _stored(hub: FakeHub, oid: str, content: bytes) -> Answer:
    expect(len(content) == hub.announced[oid], "as many bytes as were announced")
    expect(hashlib.sha256(content).hexdigest() == oid, "the bytes that the name says")
    hub.objects[oid] = content
    return 200, {"ETag": f'"{oid}"'}, b""
