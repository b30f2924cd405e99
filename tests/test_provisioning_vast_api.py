"""The client against a real HTTP server on loopback that plays every variant of an answer."""

from __future__ import annotations

import gzip
import json
import logging
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from provisioning.base import Ambiguous, AuthenticationFailed, NotYetReleased, ProvisioningError, Refused, SkipOffer
from provisioning.vast import api, wire
from provisioning.vast.api import Created, Destroyed, RefusedButCreated, VastApi
from provisioning.vast.asking import CreateRequest, OfferQuery
from provisioning.vast.errors import CallRefused, NeverSent, NoAnswer, TooEarly
from provisioning.vast.wire import Timeouts

KEY = "0123456789abcdef-planted-key"
REQUEST = CreateRequest("image:tag", 20, "armature/home/lease", "touch ~/.no_auto_tmux", {"HF_TOKEN": "hf_planted"})
JSON = "application/json"


@dataclass
class Reply:
    """One answer. `act`: drop = end the connection without one, hang = say nothing, short = end it in the middle,
    drip = a byte at a time, chunked = in pieces, torn = in pieces without the last."""

    status: int = 200
    body: bytes = b'{"success": true}'
    kind: str = JSON
    location: str = ""
    act: str = ""
    encoding: str = ""


def said(body: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(body).encode())


@dataclass
class Asked:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


@dataclass
class Server:
    """Answers in order; the last one is repeated. `asked` is all that came."""

    replies: deque[Reply] = field(default_factory=deque)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    over: threading.Event = field(default_factory=threading.Event)

    def plays(self, *replies: Reply) -> None:
        self.replies = deque(replies)


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            data = self.rfile.read(length)
            body = json.loads(data) if data else None
            server.asked.append(
                Asked(self.command, parts.path, parse_qs(parts.query), dict(self.headers.items()), body)
            )
            reply = server.replies.popleft() if len(server.replies) > 1 else server.replies[0]
            if reply.act == "hang":
                server.over.wait(10)
            if reply.act in ("drop", "hang"):
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.kind)
            if reply.act in ("chunked", "torn"):
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(len(reply.body) + (9 if reply.act == "short" else 0)))
            if reply.encoding:
                self.send_header("Content-Encoding", reply.encoding)
            if reply.location:
                self.send_header("Location", reply.location)
            self.send_header("Connection", "close")
            self.end_headers()
            if reply.act == "drip":
                for byte in reply.body:
                    if server.over.wait(0.01):
                        return
                    self.wfile.write(bytes([byte]))
                return
            if reply.act in ("chunked", "torn"):
                for start in range(0, len(reply.body), 7):
                    piece = reply.body[start : start + 7]
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.write(b"0\r\n\r\n" if reply.act == "chunked" else b"5\r\nab")
                return
            self.wfile.write(reply.body)

        do_GET = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    played = Server()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler(played))
    httpd.daemon_threads = True
    played.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield played
    played.over.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()


class Clock:
    """Moves on by a minute at each look: nothing is ever too early, unless a test holds it still."""

    def __init__(self, step_s: float = 100.0) -> None:
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def client(server: Server, clock: Clock | None = None) -> VastApi:
    # Patient where an answer comes, so that a busy machine fails no test; short where none ever does.
    is_in_vain = bool(server.replies) and server.replies[0].act == "hang"
    timeouts = Timeouts(connect_s=10.0, read_s=0.2 if is_in_vain else 10.0, body_s=1e9)
    return VastApi(SecretStr(KEY), clock or Clock(), lambda: 0.0, url=server.url, timeouts=timeouts)


VERBS = {
    "search": (lambda vast: vast.search(OfferQuery()), "POST", "/api/v0/bundles/"),
    "create": (lambda vast: vast.create(5, REQUEST), "PUT", "/api/v0/asks/5/"),
    "list": (lambda vast: vast.instances(), "GET", "/api/v1/instances/"),
    "show": (lambda vast: vast.instance(7), "GET", "/api/v0/instances/7/"),
    "destroy": (lambda vast: vast.destroy(7), "DELETE", "/api/v0/instances/7/"),
    "start": (lambda vast: vast.start(7), "PUT", "/api/v0/instances/7/"),
    "stop": (lambda vast: vast.stop(7), "PUT", "/api/v0/instances/7/"),
    "account": (lambda vast: vast.account(), "GET", "/api/v0/users/current/"),
    "keys": (lambda vast: vast.ssh_keys(), "GET", "/api/v0/ssh/"),
    "add key": (lambda vast: vast.add_ssh_key("ssh-ed25519 AAAA"), "POST", "/api/v0/ssh/"),
    "charges": (lambda vast: vast.charges(0, 86400), "GET", "/api/v0/charges/"),
    "log": (lambda vast: vast.request_log(7), "PUT", "/api/v0/instances/request_logs/7/"),
}
EVERYTHING = {
    "success": True, "offers": [], "instances": [], "results": [], "ssh_keys": [], "id": 7, "new_contract": 8,
    "result_url": "https://logs.example/x",
}  # fmt: skip
SHOWN = {**EVERYTHING, "instances": {"id": 7}}


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_is_one_request_to_its_route_with_the_key_in_the_header_alone(server: Server, name: str) -> None:
    verb, method, path = VERBS[name]
    server.plays(said(SHOWN if name == "show" else EVERYTHING))
    verb(client(server))
    (asked,) = server.asked
    assert (asked.method, asked.path) == (method, path)
    assert asked.headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in json.dumps([asked.path, asked.query, asked.body])
    assert (asked.body is None) == (method == "GET")


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize(
    "reply",
    [
        Reply(429, b"API requests too frequent", "text/plain"),
        Reply(429, b"API requests too frequent: endpoint threshold=9.0", "text/html"),
        said({"detail": "API requests too frequent: endpoint threshold=9.0"}, 429),
        said({"success": False, "error": "too_many", "msg": "slow down"}, 429),
        Reply(429, b"", "text/plain"),
    ],
)
def test_too_often_says_how_long_to_wait_and_is_not_sent_again_before(server: Server, name: str, reply: Reply) -> None:
    server.plays(reply)
    clock = Clock(0.001)
    vast, verb = client(server, clock), VERBS[name][0]
    with pytest.raises(TooEarly) as refused:
        verb(vast)
    assert refused.value.was_sent
    assert refused.value.wait_s >= (9.9 if b"9.0" in reply.body else 1.0)
    with pytest.raises(TooEarly) as held:
        verb(vast)
    assert not held.value.was_sent
    assert held.value.wait_s == pytest.approx(refused.value.wait_s, abs=0.1)
    assert len(server.asked) == 1
    clock.now_s += held.value.wait_s
    with pytest.raises(TooEarly) as again:
        verb(vast)
    assert again.value.was_sent
    assert len(server.asked) == 2


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize(
    "reply",
    [
        Reply(401, b"", "text/html"),
        said({"success": False, "error": "auth_error", "msg": f"Invalid user key {KEY}"}, 401),
        said({"success": False, "msg": "Session expired. Please log in again."}, 404),
        said({"success": False, "error": "not_authorized", "msg": "missing scope"}, 403),
    ],
)
def test_a_wrong_key_is_told_as_such_and_not_repeated(server: Server, name: str, reply: Reply) -> None:
    server.plays(reply)
    with pytest.raises(AuthenticationFailed) as failed:
        VERBS[name][0](client(server))
    assert KEY not in str(failed.value)


NO_ANSWERS = {
    "500": Reply(500, b"oops", "text/html"),
    "502 in JSON": said({"success": True, "offers": [], "instances": []}, 502),
    "html": Reply(200, b"<html>hello</html>", "text/html"),
    "half of JSON": Reply(200, b'{"success": tr'),
    "empty": Reply(200, b""),
    "a number": Reply(200, b"5"),
    "nothing in it": Reply(200, b"{}"),
    "dropped": Reply(act="drop"),
    "silent": Reply(act="hang"),
    "cut off": Reply(act="short"),
    "torn": Reply(act="torn"),
    "no gzip": Reply(encoding="gzip"),
    "404 of a proxy": Reply(404, b"<h1>404 not found</h1>", "text/html"),
    "403 of a proxy": Reply(403, b"forbidden", "text/plain"),
    "deep": Reply(200, b"[" * 200_000),
}


@pytest.mark.parametrize(
    ("name", "how"),
    # A silence takes its time: one verb is enough for it.
    [
        (name, how)
        for name in VERBS
        for how in NO_ANSWERS
        if name not in ("create", "destroy") and (how != "silent" or name == "list")
    ],
)
def test_what_is_no_answer_is_told_as_such(server: Server, name: str, how: str) -> None:
    server.plays(NO_ANSWERS[how])
    with pytest.raises(NoAnswer) as failed:
        VERBS[name][0](client(server))
    assert type(failed.value) is NoAnswer
    assert len(server.asked) == 1, "never tried again"


@pytest.mark.parametrize("how", NO_ANSWERS)
def test_a_create_without_an_answer_may_have_happened(server: Server, how: str) -> None:
    server.plays(NO_ANSWERS[how])
    assert isinstance(client(server).create(5, REQUEST), Ambiguous)
    assert len(server.asked) == 1


@pytest.mark.parametrize("how", NO_ANSWERS)
def test_no_answer_is_no_proof_of_a_release(server: Server, how: str) -> None:
    server.plays(NO_ANSWERS[how])
    with pytest.raises(NotYetReleased):
        client(server).destroy(7)


def test_without_a_connection_nothing_was_sent() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = Server(url=f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(NeverSent):
            client(nobody).create(5, REQUEST)
        with pytest.raises(NeverSent):
            client(nobody).search(OfferQuery())
        with pytest.raises(NotYetReleased):
            client(nobody).destroy(7)


def test_what_a_create_sends(server: Server) -> None:
    server.plays(said({"success": True, "new_contract": "1234", "instance_api_key": "secret"}))
    assert client(server).create(5, REQUEST) == Created(1234)
    body = server.asked[0].body
    assert body["env"] == {"HF_TOKEN": "hf_planted"}
    assert (body["label"], body["disk"], body["client_id"]) == ("armature/home/lease", 20, "me")
    assert body["runtype"] == "ssh_direc ssh_proxy"
    assert "price" not in body


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (said({"new_contract": 9}), Created(9)),
        (said({"success": False, "error": "bid", "new_contract": 9}, 400), RefusedButCreated(9, "400: bid")),
        (said({"success": False, "msg": "no", "new_contract": "9"}, 500), RefusedButCreated(9, "500: no")),
        (said({"success": False, "msg": "no", "new_contract": 9}), RefusedButCreated(9, "200: no")),
        (said({"msg": "too frequent", "new_contract": 9}, 429), RefusedButCreated(9, "429: too frequent")),
        (said({"msg": "no", "new_contract": 9}, 403), RefusedButCreated(9, "403: no")),
        (said({"success": False, "error": "invalid", "msg": "image"}, 400), Refused("400: invalid: image")),
        (said({"success": False, "msg": "insufficient credit"}), Refused("200: insufficient credit")),
    ],
)  # fmt: skip
def test_what_a_create_can_end_in(server: Server, reply: Reply, outcome: Any) -> None:
    server.plays(reply)
    assert client(server).create(5, REQUEST) == outcome


@pytest.mark.parametrize(
    "reply",
    [
        said({"success": False, "error": "invalid_args", "msg": "error 404/3603: no_such_ask Instance type …"}, 404),
        said({"success": False, "error": "no_such_ask", "msg": "error 410/3907: no longer available."}, 410),
        said({"success": False, "error": "no_such_ask"}),
    ],
)
def test_an_offer_that_is_gone_is_skipped(server: Server, reply: Reply) -> None:
    server.plays(reply)
    with pytest.raises(SkipOffer, match="offer 5 is gone"):
        client(server).create(5, REQUEST)


@pytest.mark.parametrize("contract", [True, None, "x", -1, 0, [9]])
def test_a_yes_that_names_no_instance_is_ambiguous(server: Server, contract: Any) -> None:
    server.plays(said({"success": True, "new_contract": contract}))
    assert isinstance(client(server).create(5, REQUEST), Ambiguous)


@pytest.mark.parametrize(
    "reply",
    [
        said({"success": True, "msg": "destroyed"}),
        said({"success": False, "error": "no_such_instance", "msg": "Instance 7 not found."}, 404),
        said({"success": False, "error": "not_found"}, 404),
        said({"msg": "no_such_instance"}, 404),
    ],
)
def test_a_destroy_is_believed_on_the_services_own_word(server: Server, reply: Reply) -> None:
    server.plays(reply)
    destroyed = client(server).destroy(7)
    assert isinstance(destroyed, Destroyed)
    assert destroyed.was_there == (reply.status == 200)


@pytest.mark.parametrize(
    "reply",
    [
        said({"success": False, "msg": "try later"}),
        said({"success": False, "error": "internal"}, 500),
        said({"success": True}, 503),
        said({"success": "yes"}),
        said({"detail": "Not Found"}, 404),
        said({"success": False, "error": "invalid_args", "msg": "not your own"}, 403),
        said([]),
    ],
)
def test_everything_else_is_not_yet_released(server: Server, reply: Reply) -> None:
    server.plays(reply)
    with pytest.raises(NotYetReleased):
        client(server).destroy(7)


def test_the_list_comes_by_pages_and_labels(server: Server) -> None:
    server.plays(
        said({"success": True, "instances": [{"id": 1, "label": "a"}], "next_token": "t1", "instances_found": 2}),
        said({"success": True, "instances": [{"id": 2, "label": None}], "next_token": None}),
    )
    vast = client(server)
    first = vast.instances(labels=["a", None])
    last = vast.instances(first.next_token, ["a", None])
    assert [page.instances[0].instance_id for page in (first, last)] == [1, 2]
    assert (first.next_token, last.next_token) == ("t1", None)
    one, two = server.asked
    assert json.loads(one.query["select_filters"][0]) == {"label": {"in": ["a", None]}}
    assert (one.query["limit"], "after_token" in one.query, two.query["after_token"]) == (["25"], False, ["t1"])


def test_no_instances_may_be_null(server: Server) -> None:
    server.plays(said({"success": True, "instances": None, "instances_found": 0}))
    assert client(server).instances().instances == ()


@pytest.mark.parametrize(
    "body",
    [
        {"success": True},
        {"success": True, "instances": {}},
        {"success": True, "instances": None, "instances_found": 3},
        {"success": True, "instances": [{"id": 1}, {"label": "no id"}]},
        {"success": True, "instances": [], "next_token": 5},
    ],
)
def test_a_list_that_may_hide_an_instance_is_no_list(server: Server, body: Any) -> None:
    server.plays(said(body))
    with pytest.raises(NoAnswer):
        client(server).instances()


def test_one_instance_is_shown_or_not(server: Server) -> None:
    vast = client(server)
    server.plays(said({"instances": {"id": 7, "actual_status": "running"}}))
    shown = vast.instance(7)
    assert shown is not None
    assert shown.actual_status == "running"
    assert server.asked[0].query == {"owner": ["me"]}
    for nothing in (said({"instances": None}), said({"instances": []}), said({"error": "no_such_instance"}, 404)):
        server.plays(nothing)
        assert vast.instance(7) is None
    for wrong in (said({"instances": {"id": 8}}), said({"instances": "x"}), said({})):
        server.plays(wrong)
        with pytest.raises(NoAnswer):
            vast.instance(7)


def test_a_no_with_status_200_is_a_no(server: Server) -> None:
    server.plays(said({"success": False, "error": "busy", "msg": "cannot start"}))
    vast = client(server)
    for verb in (vast.start, vast.stop, vast.instance):
        with pytest.raises(CallRefused, match=r"200.*busy: cannot start"):
            verb(7)


def test_what_changes_an_instance_says_what(server: Server) -> None:
    server.plays(Reply())
    vast = client(server)
    vast.start(7)
    vast.stop(7)
    assert [asked.body for asked in server.asked] == [
        {"state": "running"}, {"state": "stopped"},
    ]  # fmt: skip


def test_account_keys_and_charges(server: Server) -> None:
    vast = client(server)
    server.plays(said({"id": 3, "balance": "-0.5", "credit": 12, "api_key": KEY}))
    account = vast.account()
    assert (account.user_id, account.balance_usd, account.credit_usd) == (3, -0.5, 12.0)
    assert KEY not in repr(account)
    for shape in ([{"id": 1, "public_key": "ssh-ed25519 A"}], {"ssh_keys": [{"id": 1, "ssh_key": "ssh-ed25519 A"}]}):
        server.plays(said(shape))
        assert [key.public_key for key in vast.ssh_keys()] == ["ssh-ed25519 A"]
    with pytest.raises(ValueError, match="public key"):
        vast.add_ssh_key("-----BEGIN OPENSSH PRIVATE KEY-----")
    server.plays(said({"success": True, "results": [{"source": "instance-7", "amount": 0.5}], "next_token": "t"}))
    page = vast.charges(86400.0, 172800.0, "before")
    assert (page.charges[0].instance_id, page.charges[0].amount_usd, page.next_token) == (7, 0.5, "t")
    assert json.loads(server.asked[-1].query["select_filters"][0]) == {"day": {"gte": 86400, "lte": 172800}}
    assert server.asked[-1].query["after_token"] == ["before"]


def test_a_log_is_fetched_without_the_key_when_it_is_there(server: Server) -> None:
    vast = client(server)
    server.plays(said({"success": True, "result_url": f"{server.url}/logs/7?signature=x"}))
    url = vast.request_log(7, lines=50)
    assert server.asked[-1].body == {"tail": "50"}
    for status in (403, 404):
        server.plays(Reply(status, b"<Error/>", "text/xml"))
        assert vast.log(url) is None
    server.plays(Reply(200, b"line\n\xff\n", "text/plain"))
    assert vast.log(url) == "line\n�\n"
    assert "Authorization" not in server.asked[-1].headers
    for elsewhere in ("http://203.0.113.9/x", "file:///etc/passwd", "https://a:b@logs.example/", "https://[bad", ""):
        with pytest.raises(NoAnswer, match="https"):
            vast.log(elsewhere)


def test_a_redirect_to_the_same_path_is_followed_with_method_and_body(server: Server) -> None:
    server.plays(
        Reply(301, b"", location=server.url.replace("127.0.0.1", "localhost") + "/api/v0/asks/5/"),
        said({"success": True, "new_contract": 4}),
    )
    assert client(server).create(5, REQUEST) == Created(4)
    first, second = server.asked
    assert (first.method, first.path, first.body) == (second.method, second.path, second.body)
    assert second.headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "location",
    ["http://console.vast.ai{path}", "https://evil.example{path}", "https://vast.ai.evil.example{path}", "{url}/login",
     "https://console.vast.ai@evil.example{path}", "//evil.example{path}", "", "javascript:x", "https://[bad{path}"],
)  # fmt: skip
def test_no_redirect_takes_the_key_elsewhere(server: Server, location: str) -> None:
    target = location.format(path="/api/v1/instances/", url=server.url)
    server.plays(Reply(302, b"", location=target))
    with pytest.raises(NoAnswer, match="redirected"):
        client(server).instances()
    assert len(server.asked) == 1


def test_redirects_in_a_circle_end(server: Server) -> None:
    server.plays(Reply(307, b"", location=f"{server.url}/api/v1/instances/"))
    with pytest.raises(NoAnswer, match="redirects"):
        client(server).instances()
    assert len(server.asked) == 4


@pytest.mark.parametrize("url", ["https://console.vast.ai", "https://console.vast.ai/", "http://localhost:8080",
                                 "https://vast.ai", "http://127.0.0.1:1", "http://[::1]:9"])  # fmt: skip
def test_where_the_key_may_go(url: str) -> None:
    assert wire.checked_origin(url) == url.removesuffix("/")


@pytest.mark.parametrize("url", ["http://console.vast.ai", "https://notvast.ai", "https://vast.ai.evil.example", "",
                                 "https://console.vast.ai@evil.example", "https://evil.example/#.vast.ai", "vast.ai",
                                 "https://console.vast.ai/api", "http://10.0.0.1", "https://console.vast.ai:99999",
                                 "https://evil.example\\@console.vast.ai", "ftp://127.0.0.1"])  # fmt: skip
def test_where_the_key_may_not_go(url: str) -> None:
    with pytest.raises(ValueError, match=r"VAST_URL|[Pp]ort"):
        VastApi(SecretStr(KEY), Clock(), lambda: 0.0, url=url)


@pytest.mark.parametrize("key", ["", " ", f"{KEY}\n", f"{KEY} x", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ValueError, match="VAST_API_KEY") as refused:
        VastApi(SecretStr(key), Clock(), lambda: 0.0)
    assert not key.strip() or key not in str(refused.value)


@pytest.mark.parametrize("how", [*NO_ANSWERS, "echo", "401", "429"])
def test_the_key_is_nowhere_but_in_the_header(
    server: Server, how: str, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password netrc-secret\n")
    echo = json.dumps({"success": False, "msg": f"you sent {KEY} and hf_planted\x1b[31m\nred"}).encode()
    replies = {**NO_ANSWERS, "echo": Reply(400, echo), "401": Reply(401, echo), "429": Reply(429, echo)}
    server.plays(replies[how])
    vast, told = client(server), [repr(vars(client(server))), str(vars(client(server)))]
    with caplog.at_level(logging.DEBUG):
        for name in ("create", "destroy", "search"):
            try:
                told.append(repr(VERBS[name][0](vast)))
            except ProvisioningError as error:
                # With the values of all names in all frames below this one, as some tracebacks show them.
                below = error.__traceback__.tb_next if error.__traceback__ else None
                story = traceback.TracebackException(type(error), error, below, capture_locals=True)
                told += [str(error), repr(error.__cause__), repr(error.__context__), "".join(story.format())]
    told.append(caplog.text)
    assert not [text for text in told if KEY in text]
    assert not [text for text in told if "you sent" in text and "\x1b" in text]
    assert all(asked.headers["Authorization"] == f"Bearer {KEY}" for asked in server.asked)


def test_values_of_the_environment_that_the_service_repeats_are_not_repeated(server: Server) -> None:
    server.plays(said({"success": False, "msg": "bad env HF_TOKEN=hf_planted"}, 400))
    assert client(server).create(5, REQUEST) == Refused("400: bad env HF_TOKEN=[hidden]")


def test_proxies_of_the_environment_never_see_a_call_to_this_machine(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server.plays(said({"offers": []}))
    assert client(server).search(OfferQuery()).offers == ()


def test_an_endless_answer_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MOST_ANSWER_BYTES", 1000)
    server.plays(Reply(200, b" " * 1_000_000))
    with pytest.raises(NoAnswer, match="more than 1,000 bytes"):
        client(server).instances()


def test_an_answer_that_drips_is_cut_off(server: Server) -> None:
    server.plays(Reply(200, b" " * 2000, act="drip"))
    timeouts = Timeouts(connect_s=10.0, read_s=10.0, body_s=0.1)
    vast = VastApi(SecretStr(KEY), time.monotonic, lambda: 0.0, url=server.url, timeouts=timeouts)
    started = time.monotonic()
    with pytest.raises(NoAnswer, match="no answer in time"):
        vast.search(OfferQuery())
    assert time.monotonic() - started < 15.0, "the whole of it would take twenty seconds"


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_may_come_in_pieces_and_packed(server: Server, packed: bool) -> None:
    reply = said({"offers": [{"id": one} for one in range(50)]})
    if packed:
        reply = Reply(body=gzip.compress(reply.body), encoding="gzip", act="chunked")
    else:
        reply.act = "chunked"
    server.plays(reply)
    assert len(client(server).search(OfferQuery()).offers) == 50


def test_offers_without_an_id_are_counted(server: Server) -> None:
    server.plays(said({"offers": [{"id": 1, "dph_total": 0.5}, {"dph_total": 0.1}, None]}))
    found = client(server).search(OfferQuery(gpu_names=("RTX_4090",)))
    assert [offer.offer_id for offer in found.offers] == [1]
    assert found.unreadable == 2
    assert server.asked[0].body["gpu_name"] == {"eq": "RTX 4090"}


def test_many_threads_keep_one_spacing(server: Server) -> None:
    server.plays(said({"success": True, "instances": []}))
    vast = client(server, Clock(0.0))
    ends: deque[str] = deque()

    def ask() -> None:
        try:
            vast.instances()
            ends.append("sent")
        except TooEarly as error:
            ends.append("sent" if error.was_sent else "held")

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["held"] * 15 + ["sent"]
    assert len(server.asked) == 1


def test_a_destroy_goes_while_a_create_hangs(server: Server) -> None:
    vast = client(server, Clock(0.0))
    server.plays(Reply(act="hang"), Reply())
    thread = threading.Thread(target=vast.create, args=(5, REQUEST))
    thread.start()
    until = time.monotonic() + 60.0
    while not server.asked and time.monotonic() < until:
        time.sleep(0.005)
    assert isinstance(vast.destroy(7), Destroyed)
    assert thread.is_alive()
    server.over.set()
    thread.join()


def test_after_a_restart_the_first_call_waits_too(server: Server) -> None:
    vast = VastApi(SecretStr(KEY), Clock(0.0), lambda: 0.0, url=server.url, was_asked_before=True)
    with pytest.raises(TooEarly) as held:
        vast.create(5, REQUEST)
    assert held.value.wait_s == pytest.approx(4.95) == vast.wait_s(api.CREATE)
    assert server.asked == []


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.sampled_from([200, 201, 400, 401, 403, 404, 410, 418, 429, 500, 503]),
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["success", "instances", "offers", "new_contract", "msg", "error", "id", "next_token"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
    st.sampled_from([JSON, "text/html", ""]),
    st.sampled_from(list(VERBS)),
)
def test_rubbish_raises_nothing_but_errors_of_the_contract(
    server: Server, status: int, body: bytes, kind: str, name: str
) -> None:
    server.plays(Reply(status, body, kind))
    try:
        outcome = VERBS[name][0](client(server))
    except ProvisioningError:
        return
    if name == "destroy":
        assert isinstance(outcome, Destroyed)
        assert (status, json.loads(body).get("success")) == (200, True) or status in (201, 404)
    elif name == "create":
        assert isinstance(outcome, Created | RefusedButCreated | Refused | Ambiguous)
    else:
        assert status in (200, 201, 404)
