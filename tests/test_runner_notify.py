"""Notices: what is told to whom, once, whatever the receiver does and whenever the controller dies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from runner.home import Home
from runner.lock import HomeLock
from runner.notify import RETRY_AFTER_S, Notifier
from runner.spec.notices import DEFAULT_NOTICES, address_problem, holds_secret, notice_problems
from runner.store import outbox, tables
from runner.store.opening import driver_of
from runner.store.session import Session
from runner.store.untold import Untold, given_up, untold
from tests.fakes.files_now import files_now
from tests.fakes.new_database import new_database

DEADLINE_S = 60.0
WRITE = "import json, sys; from pathlib import Path; Path(sys.argv[1]).open('a').write(sys.stdin.read())"
SECRET = "hooks-T0123456789abcdef"


@dataclass
class Receiver:
    """A server on loopback that keeps what it got and answers as it is told to."""

    status: int = 200
    hangs: bool = False
    drips: bool = False
    got: list[tuple[str, str | None, dict[str, Any]]] = field(default_factory=list)
    wakes: threading.Event = field(default_factory=threading.Event)
    address: str = ""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.got.append((self.path, self.headers["Idempotency-Key"], json.loads(body)))
            if found.hangs:
                found.wakes.wait(DEADLINE_S)
                return
            if found.drips:
                self._drip()
                return
            self.send_response(found.status)
            if found.status in (301, 302, 307, 308):
                self.send_header("Location", f"http://localhost:{self.server.server_port}/elsewhere")
            self.end_headers()

        def _drip(self) -> None:
            """Bytes of an answer that never ends, faster than any timeout between two of them."""
            try:
                while not found.wakes.wait(0.05):
                    self.wfile.write(b"H")
                    self.wfile.flush()
            except OSError:
                pass

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    found.address = f"http://127.0.0.1:{server.server_port}"
    yield found
    found.wakes.set()
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Desk:
    """A home with runs, whose events go to a notifier with a clock of ours."""

    home: Home
    session: Session
    environment: dict[str, str]
    seconds: float = 0.0
    notifiers: list[Notifier] = field(default_factory=list)

    def notifier(self) -> Notifier:
        found = Notifier(self.session, self.home, lambda: 1000.0, lambda: self.seconds, self.environment)
        self.notifiers.append(found)
        return found

    def run(self, arm: str, notify: dict[str, Any] | None, state: str = "running", launch: int = 1) -> str:
        name = f"s/{arm}"
        block = None
        if notify is not None:
            block = {"command": None, "webhook": None, "on": list(DEFAULT_NOTICES), "timeout_s": 5.0, **notify}
        with self.session.transaction() as connection:
            if connection.execute(select(tables.studies)).first() is None:
                values = {"study": "s", "document": {}, "source": "", "lint": [], "created": 0.0}
                connection.execute(insert(tables.studies).values(values))
            connection.execute(
                insert(tables.runs).values(
                    run=name, id=f"{arm:0>8}", study="s", arm=arm, seed=3, generation=1, arm_order=0, launch=launch,
                    identity="i", arm_document={"notify": block}, snapshot={}, provenance={}, steps_total=100,
                    state=state, overridden=[], created=0.0, changed=0.0,
                )
            )  # fmt: skip
        return name

    def event(
        self,
        what: str,
        reason: str = "because",
        run: str | None = None,
        study: str | None = "s",
        attempt: int | None = None,
    ) -> int:
        """An event as the controller writes it: the run's state first, all in one transaction."""
        with self.session.transaction() as connection:
            state = what.split("(")[0]
            if run is not None and state in ("finished", "failed", "aborted", "lost"):
                connection.execute(update(tables.runs).where(tables.runs.c.run == run).values(state=state))
            place = {"study": study, "run": run, "attempt": attempt, "step": None}
            done = connection.execute(insert(tables.events).values(time=5.0, what=what, reason=reason, **place))
            assert done.inserted_primary_key is not None
            number = int(done.inserted_primary_key[0])
            outbox.announce(connection, number, what, reason, 5.0)
        return number

    def rows(self) -> dict[int, tuple[str, int, str]]:
        """What stands in the outbox, by event."""
        with self.session.reading() as connection:
            rows = connection.execute(select(tables.notifications).order_by(tables.notifications.c.event)).all()
        return {row.event: (row.state, row.tries, row.said) for row in rows}

    def until(self, notifier: Notifier, condition: Callable[[], Any]) -> None:
        end = time.monotonic() + DEADLINE_S
        notifier.step()
        while not condition():
            assert time.monotonic() < end, self.rows()
            time.sleep(0.01)
            notifier.step()

    def settle(self, notifier: Notifier) -> None:
        """Rounds until nothing waits, in which the clock runs on by itself."""
        end = time.monotonic() + DEADLINE_S
        while notifier.step():
            assert time.monotonic() < end, self.rows()
            self.seconds += 20.0
            time.sleep(0.01)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    home = Home(tmp_path / "runs")
    new_database(home)
    lock = HomeLock(home.lock)
    assert lock.acquire()
    found = Desk(home, Session(home.database, pid=os.getpid(), now=0.0), dict(os.environ))
    yield found
    for notifier in found.notifiers:
        notifier.close()
    found.session.close()
    lock.release()


def writes(path: Path, **keys: Any) -> dict[str, Any]:
    """A `notify` block whose command appends what it is given to a file."""
    return {"command": [sys.executable, "-c", WRITE, str(path)], **keys}


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_command_gets_the_notice_as_json_on_its_stdin(desk: Desk, tmp_path: Path) -> None:
    run = desk.run("b", writes(tmp_path / "told"))
    event = desk.event("failed(killed)", "killed by SIGKILL at step 40", run)
    desk.settle(desk.notifier())
    (notice,) = told(tmp_path / "told")
    assert notice == {
        "key": f"{desk.session.home_id}/{event}", "home": desk.session.home_id, "event": event, "time": 5.0,
        "notice": "failed", "what": "failed(killed)", "reason": "killed by SIGKILL at step 40", "study": "s",
        "run": "0000000b", "arm": "b", "seed": 3, "attempt": None, "step": 0, "steps_total": 100, "run_dir": "s/b",
        "text": "s/b-s3: failed(killed): killed by SIGKILL at step 40",
    }  # fmt: skip
    assert desk.rows() == {event: ("sent", 1, "command: exit code 0")}


def test_a_webhook_gets_the_same_once_with_its_key(desk: Desk, receiver: Receiver) -> None:
    desk.environment["MY_HOOK"] = f"{receiver.address}/{SECRET}"
    run = desk.run("b", {"webhook": {"from": "MY_HOOK"}})
    event = desk.event("aborted(regress)", "it got worse", run)
    notifier = desk.notifier()
    desk.settle(notifier)
    desk.settle(notifier)
    ((path, key, body),) = receiver.got
    assert (path, key) == (f"/{SECRET}", f"{desk.session.home_id}/{event}")
    assert (body["notice"], body["arm"], body["key"]) == ("aborted", "b", key)
    assert desk.rows() == {event: ("sent", 1, "webhook: HTTP 200")}


def test_only_what_was_asked_for_is_told(desk: Desk, tmp_path: Path) -> None:
    loud = desk.run("loud", writes(tmp_path / "loud", on=["finished", "warned", "hung"]))
    quiet = desk.run("quiet", writes(tmp_path / "quiet"))
    desk.run("silent", None)
    for run in (loud, quiet, "s/silent"):
        desk.event("verdict:warn", "r = 1.2 %", run)
        desk.event("placed", "attempt 1 on cpu0", run)
        desk.event("verdict:shadow", "r", run)
        desk.event("hung", "no metric for 300 s", run)
        desk.event("finished", "all steps done", run)
    desk.settle(desk.notifier())
    assert [one["notice"] for one in told(tmp_path / "loud")] == ["warned", "hung", "finished"]
    assert [one["notice"] for one in told(tmp_path / "quiet")] == ["hung"]


def test_a_training_process_cannot_wake_anybody_by_the_names_of_its_events(desk: Desk, tmp_path: Path) -> None:
    run = desk.run("b", writes(tmp_path / "told"))
    desk.event("hung", outbox.BY_THE_TRAINER, run)
    assert desk.rows() == {}


def test_a_warning_is_told_once_whatever_its_numbers(desk: Desk, tmp_path: Path) -> None:
    run = desk.run("b", writes(tmp_path / "told", on=["warned", "hung"]))
    other = desk.run("c", writes(tmp_path / "told", on=["warned"]))
    for reason in ("val/x rose by 1.2 % at step 40", "val/x rose by 1.4 % at step 50", "another thing"):
        desk.event("verdict:warn", reason, run)
    desk.event("verdict:warn", "val/x rose by 1.2 % at step 40", other)
    for reason in ("nothing for 300 s", "nothing for 300 s", "nothing for 400 s"):
        desk.event("hung", reason, run)
    desk.settle(desk.notifier())
    assert sorted((one["arm"], one["reason"]) for one in told(tmp_path / "told")) == [
        ("b", "another thing"), ("b", "nothing for 300 s"), ("b", "nothing for 400 s"),
        ("b", "val/x rose by 1.2 % at step 40"), ("c", "val/x rose by 1.2 % at step 40"),
    ]  # fmt: skip


def test_a_failure_that_is_tried_again_at_once_wakes_nobody(desk: Desk, tmp_path: Path) -> None:
    run = desk.run("b", writes(tmp_path / "told"))
    desk.event("failed(killed)", "it may pass", run)
    with desk.session.transaction() as connection:
        connection.execute(update(tables.runs).values(state="queued"))
    notifier = desk.notifier()
    assert not notifier.step()
    assert desk.rows() == {}
    assert not told(tmp_path / "told")


def test_an_event_without_a_number_is_of_the_newest_attempt_at_that_time(desk: Desk, tmp_path: Path) -> None:
    run = desk.run("b", writes(tmp_path / "told", on=["hung", "failed"]))
    other = desk.run("c", None)
    desk.event("hung", "before any attempt", run)
    desk.event("placed", "attempt 1 on cpu0", run, attempt=1)
    desk.event("placed", "attempt 7 on cpu1", other, attempt=7)
    desk.event("running", "its process is alive", run)
    desk.event("hung", "in the first", run)
    desk.event("placed", "attempt 2 on cpu0", run, attempt=2)
    desk.event("hung", "it names the first itself", run, attempt=1)
    desk.event("placed", "attempt 3 on cpu0", run, attempt=3)
    desk.event("failed(exit 1)", "in the third", run)
    desk.settle(desk.notifier())
    assert {one["reason"]: one["attempt"] for one in told(tmp_path / "told")} == {
        "before any attempt": None, "in the first": 1, "it names the first itself": 1, "in the third": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("written to /runs/s/report/report.md", "report: /runs/s/report/report.md"),
        ("exit code 1; see /runs/controller.log", "report not written: exit code 1; see /runs/controller.log"),
        ("not written: it took longer than 900 s", "report not written: it took longer than 900 s"),
    ],
)
def test_the_end_of_a_study_is_a_sentence_with_counts(desk: Desk, tmp_path: Path, reason: str, says: str) -> None:
    states = ["failed", "finished", "cancelled", "finished", "aborted"]
    for number, state in enumerate(states):
        desk.run(f"a{number}", writes(tmp_path / "told"), state=state)
    desk.event("report", reason)
    desk.settle(desk.notifier())
    (notice,) = told(tmp_path / "told")
    assert notice["text"] == f"s ended: 2 finished, 1 aborted, 1 failed, 1 cancelled; {says}"


def test_the_end_of_a_study_goes_to_every_different_receiver_of_its_arms(desk: Desk, tmp_path: Path) -> None:
    for arm, path in (("a", "one"), ("b", "one"), ("c", "two")):
        desk.run(arm, writes(tmp_path / path), state="finished" if arm != "b" else "failed")
    desk.event("report", "written to report.md")
    desk.settle(desk.notifier())
    (notice,), (other,) = told(tmp_path / "one"), told(tmp_path / "two")
    assert notice == other
    assert (notice["notice"], notice["run"], notice["runs"]) == ("study_ended", None, {"failed": 1, "finished": 2})
    assert notice["text"] == "s ended: 2 finished, 1 failed; report: report.md"


def test_what_concerns_the_home_goes_to_those_whose_runs_are_open_or_newest(desk: Desk, tmp_path: Path) -> None:
    for arm, state, launch in (("old", "finished", 1), ("open", "running", 1), ("new", "finished", 2)):
        desk.run(arm, writes(tmp_path / arm, on=["quarantine"]), state=state, launch=launch)
    desk.event("quarantine", "gpu1: memory does not come back", study=None)
    desk.settle(desk.notifier())
    assert [path.name for path in sorted(tmp_path.iterdir()) if path.is_file()] == ["new", "open"]


def test_between_rounds_the_outbox_is_read_once_a_second_unless_asked(desk: Desk, tmp_path: Path) -> None:
    run = desk.run("b", writes(tmp_path / "told"))
    notifier = desk.notifier()
    assert not notifier.step(must_look=False)
    desk.event("failed(x)", "why", run)
    assert not notifier.step(must_look=False)
    desk.seconds += 1.0
    assert notifier.step(must_look=False)
    desk.settle(notifier)
    desk.event("failed(x)", "why", run)
    assert notifier.step()
    desk.settle(notifier)
    assert len(told(tmp_path / "told")) == 2


def test_a_server_that_fails_is_asked_again_later_and_then_less_often(desk: Desk, receiver: Receiver) -> None:
    receiver.status = 500
    event = desk.event("lost(silent)", "gone", desk.run("b", {"webhook": receiver.address}))
    notifier = desk.notifier()
    for tries, rest_s in enumerate(RETRY_AFTER_S, start=1):
        desk.until(notifier, lambda wanted=tries: desk.rows()[event][1] == wanted)
        assert desk.rows()[event] == ("waiting", tries, "webhook: HTTP 500")
        desk.seconds += rest_s - 0.5
        assert notifier.step()
        assert len(receiver.got) == tries, "not before its time"
        desk.seconds += 0.5
        if tries == 3:
            receiver.status = 200
            break
    desk.until(notifier, lambda: desk.rows()[event][0] == "sent")
    assert desk.rows()[event] == ("sent", 4, "webhook: HTTP 200")
    assert len({key for _, key, _ in receiver.got}) == 1


def test_a_receiver_that_never_answers_well_is_given_up_and_said_so(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = [sys.executable, "-c", "import sys; print('no such channel', file=sys.stderr); sys.exit(3)"]
    event = desk.event("failed(oom)", "out of\nmemory", desk.run("b", {"command": failing}))
    notifier = desk.notifier()
    desk.until(notifier, lambda: desk.rows()[event][1] == 1)
    assert capsys.readouterr().err == "", "nothing is lost yet"
    desk.settle(notifier)
    assert capsys.readouterr().err == (
        "runner.notify: given up after 6 tries: command: exit code 3: no such channel; "
        "not told to all: s/b-s3: failed(oom): out of\\x0amemory\n"
    )
    tries = len(RETRY_AFTER_S) + 1
    assert desk.rows() == {event: ("failed", tries, "command: exit code 3: no such channel")}
    with desk.session.reading() as connection:
        said = connection.execute(
            select(tables.events.c.reason).where(tables.events.c.what == "notify_failed")
        ).scalar()
    assert said == f"a notice of event {event} was given up after {tries} tries: command: exit code 3: no such channel"


@pytest.mark.parametrize(("status", "said"), [(404, "webhook: HTTP 404"), (302, "not followed"), (307, "not followed")])
def test_what_can_never_work_is_not_tried_again(desk: Desk, receiver: Receiver, status: int, said: str) -> None:
    receiver.status = status
    event = desk.event("failed(x)", "why", desk.run("b", {"webhook": receiver.address}))
    desk.settle(desk.notifier())
    state, tries, words = desk.rows()[event]
    assert (state, tries, len(receiver.got)) == ("failed", 1, 1)
    assert said in words


@pytest.mark.parametrize("manner", ["hangs", "drips"])
def test_a_server_that_hangs_keeps_neither_the_controller_nor_commands_waiting(
    desk: Desk, receiver: Receiver, tmp_path: Path, manner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setattr(receiver, manner, True)
    monkeypatch.setattr("runner.notify.WEBHOOK_START_S", 1.0)
    first = desk.event("failed(x)", "why", desk.run("a", {"webhook": receiver.address, "timeout_s": 1.0}))
    second = desk.event("failed(x)", "why", desk.run("b", writes(tmp_path / "told")))
    notifier = desk.notifier()
    longest_s = 0.0

    def both() -> bool:
        rows = desk.rows()
        return rows[first][1] == 1 and rows[second][0] == "sent"

    end = time.monotonic() + DEADLINE_S
    while not both():
        began = time.monotonic()
        notifier.step()
        longest_s = max(longest_s, time.monotonic() - began)
        assert time.monotonic() < end
        time.sleep(0.01)
    assert longest_s < 0.95, "no round waits for a send"
    assert desk.rows()[first][0] == "waiting"
    assert told(tmp_path / "told")


def test_many_notices_do_not_queue_up_behind_a_server_that_hangs(desk: Desk, receiver: Receiver) -> None:
    receiver.hangs = True
    run = desk.run("a", {"webhook": receiver.address, "timeout_s": 1.0})
    events = [desk.event("failed(x)", f"why {number}", run) for number in range(20)]
    notifier = desk.notifier()
    desk.until(notifier, lambda: all(desk.rows()[event][1] == 1 for event in events))
    assert len(receiver.got) == 1


def test_a_command_that_hangs_is_ended_with_all_that_it_started(desk: Desk, tmp_path: Path) -> None:
    script = f"sleep 300 & echo $! > {tmp_path}/pid; yes 1>&2 & wait"
    event = desk.event("failed(x)", "why", desk.run("b", {"command": ["sh", "-c", script], "timeout_s": 0.5}))
    notifier = desk.notifier()
    desk.until(notifier, lambda: desk.rows()[event][1] == 1)
    assert desk.rows()[event] == ("waiting", 1, "command: not done within 0.5 s, so it was ended")
    child = int((tmp_path / "pid").read_text())
    desk.until(notifier, lambda: not _is_alive(child))


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_command_need_not_read_and_may_leave_something_running(desk: Desk, tmp_path: Path) -> None:
    script = f"sleep 300 & echo $! > {tmp_path}/pid"
    event = desk.event("failed(x)", "why", desk.run("b", {"command": ["sh", "-c", script]}))
    desk.settle(desk.notifier())
    child = int((tmp_path / "pid").read_text())
    assert _is_alive(child)
    os.kill(child, 9)
    assert desk.rows()[event] == ("sent", 1, "command: exit code 0")


@pytest.mark.parametrize(
    ("notify", "said"),
    [
        ({"command": ["/nowhere/at/all"]}, "command: /nowhere/at/all could not be started: No such file or directory"),
        ({"webhook": {"from": "NOT_SET_ANYWHERE"}}, "NOT_SET_ANYWHERE is not set in the controller's environment"),
        ({"webhook": {"from": "PLAIN"}}, "the address in PLAIN would go over the network unencrypted"),
    ],
)
def test_a_receiver_that_is_not_there_is_given_up_at_once(desk: Desk, notify: dict[str, Any], said: str) -> None:
    desk.environment["PLAIN"] = "http://example.com/x"
    event = desk.event("failed(x)", "why", desk.run("b", notify))
    desk.settle(desk.notifier())
    state, tries, words = desk.rows()[event]
    assert (state, tries) == ("failed", 1)
    assert said in words


def test_of_two_receivers_only_the_one_that_failed_is_asked_again(
    desk: Desk, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.status = 503
    event = desk.event("failed(x)", "why", desk.run("b", writes(tmp_path / "told", webhook=receiver.address)))
    notifier = desk.notifier()
    desk.until(notifier, lambda: desk.rows()[event][1] == 1)
    receiver.status = 204
    desk.settle(notifier)
    assert desk.rows()[event] == ("sent", 2, "webhook: HTTP 204")
    assert (len(told(tmp_path / "told")), len(receiver.got)) == (1, 2)


def test_a_notice_whose_missing_receiver_was_taken_out_is_settled_and_told_to_nobody_twice(
    desk: Desk, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.status = 503
    block = writes(tmp_path / "told", webhook=receiver.address)
    event = desk.event("failed(x)", "why", desk.run("b", block))
    notifier = desk.notifier()
    desk.until(notifier, lambda: desk.rows()[event][1] == 1)
    with desk.session.transaction() as connection:  # as an arm that is launched again without its webhook
        document = {"notify": {**block, "webhook": None, "on": list(DEFAULT_NOTICES), "timeout_s": 5.0}}
        connection.execute(update(tables.runs).values(arm_document=document))
    assert notifier.step(), "not before its time"
    desk.seconds += RETRY_AFTER_S[0]
    assert not notifier.step(), "there is nobody left to wait for"
    assert desk.rows() == {event: ("sent", 2, "")}
    assert (len(told(tmp_path / "told")), len(receiver.got)) == (1, 1)


def test_a_notice_that_names_no_receiver_is_settled_and_does_not_come_up_again(desk: Desk) -> None:
    event = desk.event("failed(x)", "why", desk.run("b", {"command": None, "webhook": None}))
    assert desk.rows()[event][0] == "waiting"
    notifier = desk.notifier()
    for _ in range(3):
        assert not notifier.step()
        assert desk.rows() == {event: ("sent", 1, "")}


def test_what_a_dead_controller_left_is_taken_up_by_the_next(desk: Desk, receiver: Receiver) -> None:
    receiver.hangs = True
    run = desk.run("b", {"webhook": receiver.address})
    event = desk.event("failed(x)", "why", run)
    first = desk.notifier()
    desk.until(first, lambda: receiver.got)
    began = time.monotonic()
    first.close()
    assert time.monotonic() - began < 3.0, "a send under way does not hold up the end"
    assert desk.rows()[event][0] == "waiting"
    receiver.hangs = False
    second = desk.notifier()
    desk.settle(second)
    assert desk.rows()[event] == ("sent", 1, "webhook: HTTP 200")
    assert [key for _, key, _ in receiver.got] == [f"{desk.session.home_id}/{event}"] * 2
    desk.settle(desk.notifier())
    assert len(receiver.got) == 2, "what was sent is not sent again"


KILLED_WHILE_SENDING = """
import os, sys, time
from pathlib import Path
from runner.home import Home
from runner.notify import Notifier
from runner.store.session import Session
home = Home(Path(sys.argv[1]))
session = Session(home.database, pid=os.getpid(), now=0.0)
notifier = Notifier(session, home, time.time, time.monotonic, dict(os.environ))
while not Path(sys.argv[2]).exists():
    notifier.step()
    time.sleep(0.01)
os.kill(os.getpid(), 9)
"""


def test_a_controller_killed_while_sending_leaves_the_notice_to_the_next(desk: Desk, tmp_path: Path) -> None:
    script = f"cat >> {tmp_path}/told; touch {tmp_path}/sent; exec sleep 1"
    event = desk.event("failed(x)", "why", desk.run("b", {"command": ["sh", "-c", script]}))
    killed = [sys.executable, "-c", KILLED_WHILE_SENDING, str(desk.home.root), str(tmp_path / "sent")]
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run(killed, cwd=root, timeout=DEADLINE_S, check=False).returncode == -9
    assert desk.rows()[event] == ("waiting", 0, "")
    desk.session.close()
    desk.session = Session(desk.home.database, pid=os.getpid(), now=0.0)
    desk.settle(desk.notifier())
    assert desk.rows()[event] == ("sent", 1, "command: exit code 0")
    assert [one["key"] for one in told(tmp_path / "told")] == [f"{desk.session.home_id}/{event}"] * 2


def test_no_secret_is_written_down(desk: Desk, receiver: Receiver, capsys: pytest.CaptureFixture[str]) -> None:
    receiver.status = 404
    desk.environment["MY_HOOK"] = f"{receiver.address}/{SECRET}"
    desk.environment["API_TOKEN"] = "tok-0123456789"
    desk.environment["DEAD_HOOK"] = f"http://127.0.0.1:1/{SECRET}"
    leaks = [sys.executable, "-c", "import os, sys; sys.exit('token ' + os.environ['API_TOKEN'])"]
    desk.event("failed(x)", "1", desk.run("a", {"webhook": {"from": "MY_HOOK"}, "command": leaks}))
    desk.event("failed(x)", "2", desk.run("b", {"webhook": {"from": "DEAD_HOOK"}}))
    desk.settle(desk.notifier())
    first, second = desk.rows().values()
    printed = capsys.readouterr().err
    assert printed.count("given up after 6 tries") == 2
    assert SECRET not in printed
    assert "tok-0123456789" not in printed
    assert set(first[2].split("; ")) == {"webhook: HTTP 404", "command: exit code 1: token ***"}
    assert second[2] == "webhook: it cannot be reached"
    for data in files_now(desk.home.root).values():
        assert SECRET.encode() not in data
        assert b"tok-0123456789" not in data


def test_the_address_stands_in_no_argument_list(desk: Desk, receiver: Receiver) -> None:
    receiver.hangs = True
    desk.environment["MY_HOOK"] = f"{receiver.address}/{SECRET}"
    desk.event("failed(x)", "why", desk.run("b", {"webhook": {"from": "MY_HOOK"}}))
    notifier = desk.notifier()
    desk.until(notifier, lambda: receiver.got)
    commands = [_read(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    children = [command for command in commands if b"runner.webhook" in command]
    assert children
    assert not any(SECRET.encode() in child for child in children)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_the_controller_loads_no_http_library() -> None:
    code = "import sys, runner.controller, runner.notify; sys.exit({'requests', 'urllib3'} & set(sys.modules) != set())"
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize(
    ("address", "is_allowed"),
    [
        ("https://ntfy.example.com/lab", True), ("http://127.0.0.1:8000/x", True), ("http://localhost/x", True),
        ("http://[::1]:80/x", True), ("http://127.0.0.1.example.com/", False), ("http://example.com/", False),
        ("http://localhost.example.com/", False), ("http://10.0.0.1/", False), ("ftp://example.com/", False),
        ("https:///x", False), ("https://a b/", False), ("https://x\n/", False), ("https://[::1/", False),
        ("https://x:99999999/", False), ("file:///etc/passwd", False), ("", False),
    ],
)  # fmt: skip
def test_addresses_are_https_or_this_machine(address: str, is_allowed: bool) -> None:
    assert (address_problem(address) is None) == is_allowed


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://ntfy.example.com/my-lab-is-done", False),
        ("https://example.com/a?b=c", False),
        ("https://me:word@example.com/", True),
        ("https://hooks.example.com/services/T00000000/B00000000/0a1b2c3d4e5f6a7b8c9d", True),
        ("https://example.com/?token=0123456789abcdef0", True),
    ],
)
def test_an_address_that_is_a_secret_looks_like_one(address: str, expected: bool) -> None:
    assert holds_secret(address) == expected


def test_of_two_receivers_one_that_is_not_there_is_tried_once(desk: Desk, receiver: Receiver, tmp_path: Path) -> None:
    receiver.status = 503
    program = tmp_path / "tell"
    event = desk.event("failed(x)", "why", desk.run("b", {"command": [str(program)], "webhook": receiver.address}))
    notifier = desk.notifier()
    desk.until(notifier, lambda: desk.rows()[event][1] == 1)
    assert desk.rows()[event][0] == "waiting", "the other one may still be told"
    make_program(program, f"touch {tmp_path}/called")
    receiver.status = 200
    desk.settle(notifier)
    missing = f"command: {program} could not be started: No such file or directory"
    assert desk.rows()[event] == ("failed", 2, f"{missing}; webhook: HTTP 200")
    assert len(receiver.got) == 2
    assert not (tmp_path / "called").exists()


def test_a_program_that_cannot_start_for_now_is_tried_again(desk: Desk, tmp_path: Path) -> None:
    program = make_program(tmp_path / "tell", "exit 0")
    event = desk.event("failed(x)", "why", desk.run("b", {"command": [str(program)]}))
    notifier = desk.notifier()
    with program.open("a"):  # what is being written cannot be executed
        desk.until(notifier, lambda: desk.rows()[event][1] == 1)
        assert desk.rows()[event] == ("waiting", 1, f"command: {program} could not be started: Text file busy")
    desk.settle(notifier)
    assert desk.rows()[event] == ("sent", 2, "command: exit code 0")


def make_program(path: Path, script: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def is_program(path: str) -> bool:
    return shutil.which(path) is not None


@pytest.mark.parametrize(
    ("program", "path", "problem"),
    [
        ("{home}/../tools/tell", None, None),
        ("{home}/../tools/nothere", None, "{home}/../tools/nothere is no executable file"),
        ("{home}/../tools/words", None, "{home}/../tools/words is no executable file"),
        ("{home}/../tools", None, "{home}/../tools is no executable file"),
        ("../tools/tell", None, None),
        ("tools/tell", None, "{home}/tools/tell is no executable file"),
        ("tell", "/nowhere:{home}/../tools", None),
        ("tell", "../tools", None),
        ("tell", "tools", "there is no program tell on PATH"),
        ("words", "{home}/../tools", "there is no program words on PATH"),
        ("in_the_home", ":/nowhere", None),
        ("in_the_home", "/nowhere", "there is no program in_the_home on PATH"),
        ("true", None, None),
        ("true", "", "there is no program true on PATH"),
    ],
)
def test_a_command_that_cannot_be_started_is_known_beforehand(
    desk: Desk, tmp_path: Path, program: str, path: str | None, problem: str | None
) -> None:
    make_program(tmp_path / "tools" / "tell", "exit 0")
    make_program(desk.home.root / "in_the_home", "exit 0")
    (tmp_path / "tools" / "words").write_text("no program")
    home = str(desk.home.root)
    desk.environment.pop("PATH")
    if path is not None:
        desk.environment["PATH"] = path.format(home=home)
    command = [program.format(home=home), "--loud"]
    found = notice_problems({"command": command, "webhook": None}, home, desk.environment, is_program)
    event = desk.event("failed(x)", "why", desk.run("b", {"command": command}))
    desk.settle(desk.notifier())
    if problem is None:
        assert found == ()
        assert desk.rows()[event] == ("sent", 1, "command: exit code 0")
    else:
        assert found == (f"notify.command: {problem.format(home=home)}, so it can tell nobody",)
        assert desk.rows()[event][0] == "failed"
        assert f"command: {command[0]} could not be started: " in desk.rows()[event][2]


@pytest.mark.parametrize(
    ("webhook", "problem"),
    [
        (None, None),
        ("https://example.com/lab", None),
        ({"from": "GOOD"}, None),
        ({"from": "UNSET"}, "the variable UNSET is not set in this shell"),
        ({"from": "PLAIN"}, "the address in PLAIN would go over the network unencrypted"),
    ],
)
def test_a_webhook_without_an_address_is_known_beforehand(
    webhook: str | Mapping[str, str], problem: str | None
) -> None:
    environment = {"GOOD": f"https://example.com/{SECRET}", "PLAIN": f"http://example.com/{SECRET}"}
    notify = {"command": ["tell"], "webhook": webhook}
    expected = () if problem is None else (f"notify.webhook: {problem}, so it can tell nobody",)
    assert notice_problems(notify, "/home", environment, lambda _: True) == expected
    assert len(notice_problems(notify, "/home", environment, lambda _: False)) == len(expected) + 1


def test_who_asks_for_no_notices_has_no_problem_with_them() -> None:
    assert notice_problems(None, "/home", {}, lambda _: False) == ()


def test_what_nobody_heard_is_counted(desk: Desk) -> None:
    def counted(since: float = 0.0) -> tuple[int, int, Untold]:
        with desk.session.reading() as connection:
            driver = driver_of(connection)
            return given_up(driver, "s"), given_up(driver, "t"), untold(driver, since)

    run = desk.run("b", {"command": ["true"]})
    assert counted() == (0, 0, Untold())
    events = [desk.event("failed(x)", str(number), run, study=None) for number in range(5)]
    assert counted() == (0, 0, Untold()), "what was not tried yet is no trouble"
    told_of = [("failed", 1, "a", 10.0), ("failed", 6, "b", 30.0), ("waiting", 2, "c", 20.0), ("sent", 1, "d", 40.0)]
    with desk.session.transaction() as connection:
        for event, (state, tries, said, changed) in zip(events, told_of, strict=False):
            outbox.note(connection, event, state, tries, said, changed)
    assert counted() == (2, 0, Untold(2, 1, "b", 30.0))
    assert counted(30.0) == (2, 0, Untold(1, 1, "b", 30.0))
    assert counted(31.0) == (2, 0, Untold(0, 1, "c", 20.0))
