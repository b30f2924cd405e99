"""A real HTTP server on loopback for a folder: byte ranges, and whatever a server may do wrong.

`cut` are answers of a path to break off after so many bytes, one a request; `spoil` are paths whose last byte is wrong;
`answers` are statuses to give instead, and `moved` are redirects.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class FileServer:
    """What it serves, does wrong, and was asked: (path, headers) of every request."""

    root: Path
    base: str = ""
    has_ranges: bool = True
    cut: dict[str, list[int]] = field(default_factory=dict)
    spoil: set[str] = field(default_factory=set)
    answers: dict[str, int] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def paths(self) -> list[str]:
        """Paths of all requests."""
        with self.lock:
            return [path for path, _ in self.asked]

    def ranges(self, path: str) -> list[str]:
        """The Range header of every request of a path, '' for none."""
        with self.lock:
            return [headers.get("Range", "") for asked, headers in self.asked if asked == path]


@contextmanager
def serving(root: Path) -> Iterator[FileServer]:
    """Serve a folder until the block ends."""
    state = FileServer(root)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.lstrip("/")
            with state.lock:
                state.asked.append((path, dict(self.headers.items())))
                cuts = state.cut.get(path, [])
                cut = cuts.pop(0) if cuts else None
            if path in state.moved:
                self._empty(302, {"Location": state.moved[path]})
            elif path in state.answers:
                self._empty(state.answers[path], {})
            elif not (state.root / path).is_file():
                self._empty(404, {})
            else:
                self._send(path, cut)

        def _send(self, path: str, cut: int | None) -> None:
            content = (state.root / path).read_bytes()
            if path in state.spoil:
                content = content[:-1] + bytes([content[-1] ^ 1])
            wanted = self.headers.get("Range") if state.has_ranges else None
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            for name, value in state.extra.items():
                self.send_header(name, value)
            self.end_headers()
            body = content[start:]
            self.wfile.write(body if cut is None else body[:cut])
            self.close_connection = cut is not None

        def _empty(self, status: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may hang up
                super().handle_error(*_)

    with Server(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.base = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
