"""The fake behind a real HTTP server on loopback, and behind a `requests` session without sockets.

For use by hand there is command.py.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import requests
from requests.adapters import BaseAdapter
from urllib3 import HTTPResponse

from tests.fakes.vast.answers import Answer
from tests.fakes.vast.clock import VirtualClock
from tests.fakes.vast.fake import Fake
from tests.fakes.vast.market import Offer


class Server:
    """Serves one fake on a free port of loopback until closed; use it as a context.

    A slow answer is held back `latency_scale` real seconds for each of its seconds.
    """

    def __init__(self, fake: Fake, clock: Callable[[], float], port: int = 0, latency_scale: float = 1.0) -> None:
        self.fake, self.clock, self.latency_scale = fake, clock, latency_scale
        self.closing = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), _handler_of(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        fake.base_url = self.url
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving; answers that are held back are let go."""
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def _handler_of(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            address = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            query = dict(parse_qsl(address.query, keep_blank_values=True))
            now_s = server.clock()
            answer = server.fake.handle(self.command, address.path, query, dict(self.headers.items()), body, now_s)
            if answer.latency_s:
                server.closing.wait(answer.latency_s * server.latency_scale)
            if answer.dropped:
                self.close_connection = True
                return
            try:
                self._write(answer)
            except ConnectionError:
                self.close_connection = True  # the client did not wait for it, which is its right

        def _write(self, answer: Answer) -> None:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = do_PUT = do_DELETE = _answer

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: what came is in `fake.requests`."""

    return Handler


class Wire(BaseAdapter):
    """A transport for `requests` that asks the fake directly; virtual time passes while an answer is under way.

    Mount it for the address that the client uses: `session.mount("https://console.vast.ai", Wire(fake, clock))`. Only
    the sockets are left out: an answer slower than the client's timeout is a ReadTimeout after the request took
    effect, a cut connection a ConnectionError.
    """

    def __init__(self, fake: Fake, clock: VirtualClock, round_trip_s: float = 0.05) -> None:
        super().__init__()
        self.fake, self.clock, self.round_trip_s = fake, clock, round_trip_s

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: float | tuple[float | None, float | None] | None = None,
        verify: bool | str = True,
        cert: bytes | str | tuple[bytes | str, bytes | str] | None = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """One request. Raises requests.ReadTimeout and requests.ConnectionError as a socket would."""
        address = urlsplit(str(request.url))
        query = dict(parse_qsl(address.query, keep_blank_values=True))
        body = request.body or b""
        sent = body.encode() if isinstance(body, str) else bytes(body)
        method, headers = str(request.method), {name: str(value) for name, value in request.headers.items()}
        answer = self.fake.handle(method, address.path, query, headers, sent, self.clock())
        limit_s = timeout[1] if isinstance(timeout, tuple) else timeout
        taken_s = self.round_trip_s + answer.latency_s
        if limit_s is not None and taken_s > limit_s:
            self.clock.advance(limit_s)
            raise requests.ReadTimeout(f"no answer within {limit_s} s", request=request)
        self.clock.advance(taken_s)
        if answer.dropped:
            raise requests.ConnectionError("connection reset by peer", request=request)
        response = _response(request, answer.status, answer.headers, answer.body)
        if not stream:
            _ = response.content  # read now, as the session does it for a socket
        return response

    def close(self) -> None:
        """Nothing is held open."""


def _response(
    request: requests.PreparedRequest, status: int, headers: Mapping[str, str], body: bytes
) -> requests.Response:
    response = requests.Response()
    response.status_code, response.url, response.request = status, str(request.url), request
    response.headers.update(headers)
    response.raw = HTTPResponse(body=io.BytesIO(body), headers=dict(headers), status=status, preload_content=False)
    response.encoding = requests.utils.get_encoding_from_headers(response.headers)
    return response


def example_offers() -> list[Offer]:
    """A small market: two machines with four GPUs, whole and in parts, and some with one."""
    whole = [
        Offer(ask_id=1000 + machine * 10, machine_id=machine, gpu_ids=(0, 1, 2, 3), machine_gpus=4, gpu_usd_per_h=1.6)
        for machine in (1, 2)
    ]
    parts = [Offer(ask_id=1011 + gpu, machine_id=1, gpu_ids=(gpu,), machine_gpus=4) for gpu in range(4)]
    return [*whole, *parts, *(Offer(ask_id=2000 + machine, machine_id=machine) for machine in range(3, 8))]
