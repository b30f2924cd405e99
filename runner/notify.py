"""Tells people what happened while they sleep: sends what waits in the outbox, and never keeps the controller waiting.

The controller's thread reads and writes the outbox; threads of their own run the commands and webhooks, each send a
child process with a time limit. A notice arrives at least once: one that was sent when the controller died is sent
again, under the same key.
"""

from __future__ import annotations

import errno
import json
import math
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from runner.detach import own_environment
from runner.errors import Fenced, HomeError
from runner.home import Home
from runner.screen import printable
from runner.spec.notices import address_problem
from runner.store import changes, outbox
from runner.store.session import Session

RETRY_AFTER_S = (2.0, 10.0, 30.0, 120.0, 300.0)
"""How long a notice waits after each try that failed; after the last one it is given up."""

WEBHOOK_START_S = 10.0
"""What a webhook's process may take beside its own time limit: an interpreter starts slowly on a busy machine."""

TOLD, TRY_AGAIN = 0, 75
PASSING = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ETXTBSY, errno.EIO})
"""Why a program may not start now though it is there; one that is not there will not appear by itself."""
POLL_S = 0.02
LOOK_S = 1.0
KILL_S = 5.0
SLOW_S = 1.0
"""Who fails after this long or longer is spared what stood in line meanwhile: that is tried later, not one by one."""
KEPT_BYTES = 4096
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASS|KEY|WEBHOOK|CREDENTIAL")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One notice on its way to one receiver. `given` is its stdin; it may hold a secret address."""

    event: int
    receiver: str
    argv: tuple[str, ...]
    given: bytes = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)
    folder: str
    limit_s: float
    may_retry_always: bool
    asked_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a delivery, in words that hold no secret."""

    event: int
    receiver: str
    told: bool
    may_retry: bool
    said: str


@dataclass(slots=True)
class _UnderWay:
    """One notice: its sentence, the tries before this one, whose answer is missing, and what the others said."""

    text: str
    tries: int
    missing: set[str]
    outcomes: dict[str, Outcome] = field(default_factory=dict)


class Notifier:
    """The controller's side. `step` is called once a round from the controller's thread."""

    def __init__(
        self,
        session: Session,
        home: Home,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        environment: Mapping[str, str],
    ) -> None:
        self._session = session
        self._home = home
        self._now = now
        self._monotonic = monotonic
        self._environment = dict(environment)
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._workers: dict[str, _Worker] = {}
        self._under_way: dict[int, _UnderWay] = {}
        self._answered: dict[int, dict[str, Outcome]] = {}
        self._due: dict[int, float] = {}
        self._look_at_s = -math.inf

    def step(self, *, must_look: bool = True) -> bool:
        """Write down what came of earlier sends and start those that are due. True while anything waits.

        Unless it `must_look`, the outbox is read no more often than every LOOK_S. A controller that is about to end
        must: only then is False a promise that nothing waits.
        """
        self._collect()
        now_s = self._monotonic()
        resting = {event for event, due_s in self._due.items() if due_s > now_s}
        if not must_look and now_s < self._look_at_s:
            return bool(self._under_way or resting)
        self._look_at_s = now_s + LOOK_S
        with self._session.reading() as connection:
            waiting = outbox.take_up(connection, self._session.home_id, {*self._under_way, *resting})
        for notice in waiting:
            self._send(notice)
        return bool(self._under_way or resting)

    def close(self) -> None:
        """End what is being sent; it stays in the outbox for the next controller."""
        for worker in self._workers.values():
            worker.close()
        with suppress(HomeError, Fenced):
            self._collect()

    def _send(self, notice: outbox.Waiting) -> None:
        if not notice.targets:
            with self._session.transaction() as connection:
                outbox.drop(connection, notice.event)
            self._answered.pop(notice.event, None)
            self._due.pop(notice.event, None)
            return
        answered = self._answered.get(notice.event, {})
        orders = [order for order in self._orders(notice) if order.receiver not in answered]
        under_way = _UnderWay(notice.document["text"], notice.tries, {order.receiver for order in orders})
        if not orders:  # whoever could not be told is asked no more
            self._settle(notice.event, under_way)
            return
        self._under_way[notice.event] = under_way
        for order in orders:
            if isinstance(order, Outcome):
                self._outcomes.put(order)
            else:
                self._worker(order.receiver.split(":")[0]).send(order)

    def _worker(self, kind: str) -> _Worker:
        """One thread for commands and one for webhooks: a server that hangs keeps no command waiting."""
        if kind not in self._workers:
            self._workers[kind] = _Worker(kind, self._outcomes)
        return self._workers[kind]

    def _orders(self, notice: outbox.Waiting) -> list[Delivery | Outcome]:
        """A delivery for each receiver, or what stands in its way. Two arms with the same receiver are one."""
        found: dict[str, Delivery | Outcome] = {}
        for target in notice.targets:
            if target["command"] is not None:
                order = self._command(notice, target)
                found.setdefault(order.receiver, order)
            if target["webhook"] is not None:
                webhook = self._webhook(notice, target)
                found.setdefault(webhook.receiver, webhook)
        return list(found.values())

    def _command(self, notice: outbox.Waiting, target: Mapping[str, Any]) -> Delivery:
        argv = tuple(target["command"])
        given = (json.dumps(changes.json_ready(notice.document)) + "\n").encode()
        receiver = f"command:{json.dumps(argv)}"
        folder = str(self._home.root)
        return Delivery(notice.event, receiver, argv, given, self._environment, folder, target["timeout_s"], True)

    def _webhook(self, notice: outbox.Waiting, target: Mapping[str, Any]) -> Delivery | Outcome:
        address, receiver = target["webhook"], f"webhook:{json.dumps(target['webhook'])}"
        if not isinstance(address, str):
            variable = address["from"]
            address = self._environment.get(variable)
            if address is None:
                return _hopeless(notice, receiver, f"{variable} is not set in the controller's environment")
            if problem := address_problem(address):
                return _hopeless(notice, receiver, f"the address in {variable} {problem}")
        timeout_s = float(target["timeout_s"])
        document = changes.json_ready(notice.document)
        order = {"address": address, "timeout_s": timeout_s, "key": document["key"], "body": document}
        argv = (sys.executable, "-m", "runner.webhook")
        given, limit_s = json.dumps(order).encode(), timeout_s + WEBHOOK_START_S
        folder = str(self._home.root)
        return Delivery(notice.event, receiver, argv, given, own_environment(), folder, limit_s, False)

    def _collect(self) -> None:
        while not self._outcomes.empty():
            outcome = self._outcomes.get()
            notice = self._under_way[outcome.event]
            notice.missing.discard(outcome.receiver)
            notice.outcomes[outcome.receiver] = outcome
            if not notice.missing:
                del self._under_way[outcome.event]
                self._settle(outcome.event, notice)

    def _settle(self, event: int, notice: _UnderWay) -> None:
        """All receivers of one try have answered. Only those that may do better are asked again."""
        answered = self._answered.pop(event, {})
        outcomes = [*(one for one in answered.values() if not one.told), *notice.outcomes.values()]
        tries = notice.tries + 1
        said = _without_secrets("; ".join(outcome.said for outcome in outcomes), self._environment)
        failed = [outcome for outcome in outcomes if not outcome.told]
        self._due.pop(event, None)
        again = [outcome for outcome in failed if outcome.may_retry]
        if again and tries <= len(RETRY_AFTER_S):
            self._answered[event] = answered | {one.receiver: one for one in outcomes if one not in again}
            self._due[event] = self._monotonic() + RETRY_AFTER_S[tries - 1]
            state = "waiting"
        else:
            state = "failed" if failed else "sent"
        with self._session.transaction() as connection:
            outbox.note(connection, event, state, tries, said, self._now())
            if state == "failed":
                given_up = f"given up after {tries} {'try' if tries == 1 else 'tries'}: {said}"
                reason = f"a notice of event {event} was {given_up}"
                changes.add_event(connection, self._now(), "notify_failed", reason)
        if state == "failed":
            # In the controller's log too: whoever waits for a notice in vain may look there.
            text = _without_secrets(notice.text, self._environment)
            print(printable(f"runner.notify: {given_up}; not told to all: {text}"), file=sys.stderr, flush=True)


class _Worker:
    """A thread that sends one delivery after the other."""

    def __init__(self, kind: str, outcomes: queue.SimpleQueue[Outcome]) -> None:
        self._deliveries: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._outcomes = outcomes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._failed_slowly_s: dict[str, float] = {}
        self._thread = threading.Thread(target=self._work, name=f"notify-{kind}", daemon=True)
        self._thread.start()

    def send(self, delivery: Delivery) -> None:
        """Returns at once."""
        self._deliveries.put(delivery)

    def close(self) -> None:
        """End the present send and the thread."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                _kill_group(self._process)
        self._deliveries.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (delivery := self._deliveries.get()) is not None:
            if delivery.asked_s <= self._failed_slowly_s.get(delivery.receiver, -math.inf):
                said = f"{_kind(delivery)}: not tried, because the one before it failed slowly"
                outcome = Outcome(delivery.event, delivery.receiver, False, True, said)
            else:
                started_s = time.monotonic()
                outcome = self._deliver(delivery)
                ended_s = time.monotonic()
                if not outcome.told and ended_s - started_s >= SLOW_S:
                    self._failed_slowly_s[delivery.receiver] = ended_s
            if self._closed and not outcome.told:
                return  # ended by us: the next controller sends it
            self._outcomes.put(outcome)

    def _deliver(self, delivery: Delivery) -> Outcome:
        kind = _kind(delivery)
        try:
            with self._lock:
                if self._closed:
                    return Outcome(delivery.event, delivery.receiver, False, True, f"{kind}: not sent")
                self._process = process = _start(delivery)
        except (OSError, ValueError) as error:
            said = f"{kind}: {delivery.argv[0]} could not be started: {getattr(error, 'strerror', None) or error}"
            return Outcome(delivery.event, delivery.receiver, False, getattr(error, "errno", None) in PASSING, said)
        code, words = self._watch(process, delivery.limit_s)
        if code is None:
            said = f"{kind}: not done within {delivery.limit_s:g} s, so it was ended"
            return Outcome(delivery.event, delivery.receiver, False, True, said)
        shown = f"{kind}: {words}" if kind == "webhook" and words else f"{kind}: exit code {code}"
        if kind != "webhook" and code != TOLD and words:
            shown += f": {words}"
        may_retry = delivery.may_retry_always or code == TRY_AGAIN
        return Outcome(delivery.event, delivery.receiver, code == TOLD, may_retry, shown)

    def _watch(self, process: subprocess.Popen[bytes], limit_s: float) -> tuple[int | None, str]:
        """Wait for the end, at most so long: (exit code or None, the last line of its error stream)."""
        assert process.stderr is not None
        descriptor = process.stderr.fileno()
        os.set_blocking(descriptor, False)
        until = time.monotonic() + limit_s
        words = b""
        with process.stderr:
            while True:
                with self._lock:
                    code = process.poll()
                    if code is not None or time.monotonic() >= until:
                        break
                words = _read_on(descriptor, words)
                time.sleep(POLL_S)
            words = _read_on(descriptor, words)
            with self._lock:
                if code is None:
                    _kill_group(process)
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(KILL_S)
                self._process = None
        lines = [line.strip() for line in words.decode(errors="replace").splitlines() if line.strip()]
        return code, lines[-1][-200:] if lines else ""


def _kind(delivery: Delivery) -> str:
    """command or webhook."""
    return delivery.receiver.split(":")[0]


def _start(delivery: Delivery) -> subprocess.Popen[bytes]:
    """A child in a session of its own; what it is given lies in memory, never on a disk, and it need not read it."""
    given = os.memfd_create("notice")
    try:
        os.write(given, delivery.given)
        os.lseek(given, 0, os.SEEK_SET)
        return subprocess.Popen(
            list(delivery.argv),
            stdin=given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=delivery.folder,
            env=dict(delivery.environment),
            start_new_session=True,
        )
    finally:
        os.close(given)


def _read_on(descriptor: int, words: bytes) -> bytes:
    """What was printed since, after what is known; only the end of it is kept."""
    try:
        while piece := os.read(descriptor, 65536):
            words = (words + piece)[-KEPT_BYTES:]
            if len(piece) < 65536:
                break
    except BlockingIOError:
        pass
    return words


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a child that was not waited for yet, and all that it started in its session: its number is still its own."""
    if process.returncode is None:
        with suppress(PermissionError):  # it may have become somebody else
            os.killpg(process.pid, signal.SIGKILL)


def _hopeless(notice: outbox.Waiting, receiver: str, said: str) -> Outcome:
    return Outcome(notice.event, receiver, False, False, f"webhook: {said}")


def _without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """A text without the values of variables whose names say that they are secrets."""
    values = [value for name, value in environment.items() if _SECRET_NAME.search(name.upper()) and len(value) >= 6]
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return text
