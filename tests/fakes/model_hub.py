"""A model hub on loopback: what huggingface_hub asks of one to list and fetch the files of a model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(slots=True)
class ModelHub:
    """Models by id, each the folder of its files. Files of the ids in `gated` are listed and not given out."""

    models: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    address: str = ""
    fetched: list[str] = field(default_factory=list)


@contextmanager
def model_hub(models: dict[str, Path]) -> Iterator[ModelHub]:
    """Serve these models until the context ends."""
    hub = ModelHub(models)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            path = self.path.partition("?")[0].strip("/")
            if path.startswith("api/models/"):
                self._describe(path.removeprefix("api/models/"))
                return
            id, _, rest = path.partition("/resolve/")
            name = rest.partition("/")[2]
            if id in hub.gated:
                self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            elif id in hub.models and (hub.models[id] / name).is_file():
                content = (hub.models[id] / name).read_bytes()
                if with_body:
                    hub.fetched.append(name)
                self._send(200, content, {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": COMMIT}, with_body)
            else:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

        def _describe(self, asked: str) -> None:
            id, _, what = asked.partition("/tree/" if "/tree/" in asked else "/revision/")
            if id not in hub.models:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif "/tree/" in asked:
                files = sorted(hub.models[id].iterdir())
                listed = [
                    {
                        "type": "file",
                        "path": file.name,
                        "size": file.stat().st_size,
                        "oid": _etag(file.read_bytes()),
                    }
                    for file in files
                ]
                self._send(200, json.dumps(listed).encode())
            else:
                assert what == "main"
                self._send(200, json.dumps({"_id": "1", "id": id, "sha": COMMIT, "siblings": []}).encode())

        def _send(
            self, code: int, content: bytes, headers: dict[str, str] | None = None, with_body: bool = True
        ) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
