"""One thread for one host: it alone talks to the host's agent, so a host that hangs makes nobody else wait.

Commands go into a queue and are waited for with a deadline; between them the thread looks, again and again, at what is
new there. After a failure it tries again, later and later; until then every question is answered at once: lost.
"""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as NotInTime
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from provisioning.agent_channel import AgentChannel, Value
from provisioning.base import AuthenticationFailed, HostLost, ProcessIdentity, ProvisioningError
from provisioning.mirror import Changes, Mirror
from provisioning.questions import Result, Steps

ROUND_BYTES = 4 * 2**20
"""What one look may bring."""

PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0

AGAIN_S = 1.0
"""How soon what was answered with an error is asked again."""

SILENT_S = 10.0
"""A connection that breaks is no news while the next one stands soon."""

CATCH_UP_S = 0.05
"""So soon it is looked again while there is more than one look may bring; questions go in between."""

LOOK_S = 2.0
ANSWER_S = 2.0
"""A round of the controller may wait so long for one host, once: after that the host counts as lost at once."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one look at a host gave."""

    folders: tuple[Changes, ...]
    alive: tuple[bool, ...]


_ANSWER = TypeAdapter(Answer)


@dataclass(frozen=True, slots=True)
class Watched:
    """A run folder there that is copied here; `skipped` are endings of paths whose content is not wanted."""

    folder: str
    mirror: Mirror
    skipped: tuple[str, ...] = ()
    identities: tuple[ProcessIdentity, ...] = ()


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of a host: when it last answered (seconds of our monotonic clock; None = never), why it does not
    ('' = it does), which processes ran then, and whether the copies were complete then. A process that ended counts as
    running until all that it left is here."""

    answered_s: float | None = None
    lost: str = ""
    alive: Mapping[ProcessIdentity, bool] = field(default_factory=dict)
    is_whole: bool = False


@dataclass(slots=True)
class _Latest:
    """A question that is asked again and again: the newest answer or error, when it came, and the question that is
    under way."""

    value: Any = None
    error: ProvisioningError | None = None
    told_s: float = -math.inf
    asked: Future[Any] | None = None

    def lasts_s(self, max_age_s: float) -> float:
        """How long it holds: an error is looked into sooner."""
        return max_age_s if self.error is None else min(max_age_s, AGAIN_S)


@dataclass(frozen=True, slots=True)
class _Command:
    """A step of some work, and who waits for its end: `act` says whether more steps of it follow."""

    act: Callable[[], bool]
    future: Future[Any]

    def carry_out(self) -> None:
        """Do it. Whatever ends it, nobody waits for ever."""
        goes_on = False
        try:
            goes_on = self.act()
        finally:
            if not goes_on:
                self.give_up()

    def give_up(self) -> None:
        """Nothing more comes of it; an answer that was given stays."""
        with suppress(InvalidStateError):
            self.future.set_exception(HostLost("it was given up over a mistake of our own"))


class HostWorker:
    """The thread of one host. A question waits for `answer_s` at most; `look_s` is the time between two looks,
    `pause_s` the first pause after a failure, and `silent_s` how long a host may give no answer before that is said."""

    def __init__(
        self,
        agent: AgentChannel,
        *,
        answer_s: float = ANSWER_S,
        look_s: float = LOOK_S,
        pause_s: float = PAUSE_S,
        silent_s: float = SILENT_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agent = agent
        self._answer_s = answer_s
        self._look_s = look_s
        self._pause_s = pause_s
        self._silent_s = silent_s
        self._monotonic = monotonic
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._has_ended = False
        self._watched: tuple[Watched, ...] = ()
        self._lock = threading.Lock()
        self._sight = Sight()
        self._failures = 0
        self._again_s = 0.0
        self._latest: dict[tuple[str, str], _Latest] = {}
        self._busy_since_s: float | None = None
        self._caught_up = True
        self._was_heard = False
        self._silent_since_s = 0.0
        self._thread = threading.Thread(target=self._run, name="host", daemon=True)
        self._thread.start()

    def ask(self, kind: TypeAdapter[Value], verb: str, *arguments: Any) -> Value:
        """The answer to one question. Raises what the agent raises; HostLost when the host is known to be silent, or
        has not answered in time: then nobody knows whether it was done, unless it had not begun. While an answer is
        late nobody waits for another one."""
        busy_since_s = self._busy_since_s
        if busy_since_s is not None and self._monotonic() - busy_since_s > self._answer_s:
            raise HostLost(f"no answer within {self._answer_s:g} s")
        return self.wait(self.begin(kind, verb, *arguments), self._answer_s)

    def latest(self, kind: TypeAdapter[Value], verb: str, *arguments: Any, max_age_s: float) -> Value:
        """What the host answered at most `max_age_s` ago. It is put again in good time, so that nobody waits but for
        the first answer, and not even for that while the host is silent. For one thread. Raises as `ask` does."""
        known = self._latest.setdefault((verb, json.dumps(arguments, sort_keys=True)), _Latest())
        if known.asked is None and self._monotonic() - known.told_s >= known.lasts_s(max_age_s) / 2:
            known.asked = self.begin(kind, verb, *arguments)
        is_old = self._monotonic() - known.told_s >= known.lasts_s(max_age_s)
        if known.asked is not None and is_old and not self._is_silent():
            futures.wait([known.asked], self._answer_s)
        if known.asked is not None and known.asked.done():
            error = known.asked.exception()
            known.value, known.error = (known.asked.result(), None) if error is None else (None, _ours(error))
            known.told_s, known.asked = self._monotonic(), None
        elif is_old:
            raise HostLost(self.sight().lost or f"no answer within {self._answer_s:g} s")
        if known.error is not None:
            raise known.error
        value: Value = known.value
        return value

    def _is_silent(self) -> bool:
        """Whether waiting for an answer would be in vain, as far as we know."""
        since_s = self._busy_since_s
        return bool(self.sight().lost) or (since_s is not None and self._monotonic() - since_s > self._answer_s)

    def begin(self, kind: TypeAdapter[Value], verb: str, *arguments: Any) -> Future[Value]:
        """Put a question, to wait for it later: several hosts are asked at once."""
        future: Future[Value] = Future()

        def work() -> bool:
            if future.set_running_or_notify_cancel():
                try:
                    self._refuse_while_lost()
                    future.set_result(self._try(lambda: self._agent.ask(kind, verb, *arguments)))
                except ProvisioningError as error:
                    future.set_exception(error)
            return False

        self._put(_Command(work, future))
        return future

    def carry_out(self, steps: Steps[Result]) -> Future[Result]:
        """Work of many questions, one after the other; what others ask, and looks, go in between. It ends with its
        result, or with the first error, of the host or of this machine's disk: whether to begin again is for the caller
        to say."""
        future: Future[Result] = Future()

        def go_on(answer: Any) -> bool:
            try:
                if future.cancelled():
                    _close(steps)
                    return False
                question = steps.send(answer)
                self._refuse_while_lost()
                told = self._try(lambda: self._agent.ask(question.kind, question.verb, *question.arguments))
            except StopIteration as end:
                with suppress(InvalidStateError):  # nobody wants it any more
                    future.set_result(end.value)
            except (ProvisioningError, OSError) as error:
                with suppress(InvalidStateError):
                    future.set_exception(error)
                _close(steps)
            else:
                self._commands.put(_Command(lambda: go_on(told), future))
                return True
            return False

        self._put(_Command(lambda: go_on(None), future))
        return future

    def _put(self, command: _Command) -> None:
        with self._lock:
            if not self._has_ended:
                self._commands.put(command)
                return
        raise HostLost(self.sight().lost)

    @staticmethod
    def wait(future: Future[Value], within_s: float) -> Value:
        """The answer to a question that was begun. Raises as `ask` does."""
        try:
            return future.result(within_s)
        except NotInTime:
            future.cancel()
            raise HostLost(f"no answer within {within_s:g} s") from None

    def watch(self, watched: Sequence[Watched]) -> None:
        """Copy these folders from the next look on, and no others."""
        with self._lock:
            self._watched = tuple(watched)

    def sight(self) -> Sight:
        """What the last look gave."""
        with self._lock:
            return self._sight

    def silence(self) -> str:
        """Why the host does not answer, once it has not for `silent_s` or never has; '' before and while it does. Not
        to have been asked anything for a while is no silence."""
        is_long = not self._was_heard or self._monotonic() - self._silent_since_s > self._silent_s
        return self.sight().lost if is_long else ""

    def close(self, patience_s: float = 5.0) -> None:
        """End the thread and the connection; a thread that hangs is left to its deadline."""
        self._commands.put(None)
        self._thread.join(patience_s)

    def _run(self) -> None:
        why = "its thread was ended by a mistake of our own"
        try:
            self._serve()
            why = "nobody asks it any more"
        finally:
            self._end(why)

    def _end(self, why: str) -> None:
        """Whoever waits hears that it is lost, and nobody begins to wait any more."""
        self._again_s = math.inf
        self._remember(lost=why)
        self._busy_since_s = None
        with self._lock:
            self._has_ended = True
        left = []
        while not self._commands.empty():
            if (command := self._commands.get()) is not None:
                left.append(command)
        try:
            for command in left:
                command.carry_out()
        finally:
            for command in left:
                command.give_up()

    def _serve(self) -> None:
        next_look_s = self._monotonic()
        while True:
            left_s = next_look_s - self._monotonic()
            try:
                command = self._commands.get(timeout=left_s) if left_s > 0.0 else None
            except queue.Empty:
                continue
            self._busy_since_s = self._monotonic()
            if left_s <= 0.0:  # its turn comes however long the queue is
                self._look()
                next_look_s = self._monotonic() + (self._look_s if self._caught_up else min(self._look_s, CATCH_UP_S))
            elif command is None:
                self._agent.close()
                return
            else:
                command.carry_out()
            self._busy_since_s = None

    def _refuse_while_lost(self) -> None:
        if self._monotonic() < self._again_s:
            raise HostLost(self._sight.lost)

    def _try(self, question: Callable[[], Value]) -> Value:
        """Ask, and remember whether the host answers."""
        try:
            value = question()
        except (HostLost, AuthenticationFailed) as error:
            self._failures += 1
            pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2 ** min(self._failures - 1, 10))
            # Whoever is refused and knocks again and again is shut out for good.
            pause_s = LONGEST_PAUSE_S if isinstance(error, AuthenticationFailed) else pause_s
            self._again_s = self._monotonic() + pause_s
            self._remember(lost=str(error))
            raise
        if self._failures:
            self._remember(lost="")
        self._was_heard, self._failures, self._again_s = True, 0, 0.0
        return value

    def _look(self) -> None:
        self._caught_up = True
        with self._lock:
            watched = self._watched
        identities = list(dict.fromkeys(one for each in watched for one in each.identities))
        if not watched or self._monotonic() < self._again_s:
            return
        try:
            folders = [[one.folder, one.mirror.known(), [*one.skipped, *one.mirror.unwanted]] for one in watched]
            question = ("look", folders, [asdict(one) for one in identities], ROUND_BYTES)
            answer = self._try(lambda: self._agent.ask(_ANSWER, *question))
            if len(answer.folders) != len(watched) or len(answer.alive) != len(identities):
                raise HostLost("it answered something else to look")
            for one, new in zip(watched, answer.folders, strict=True):
                one.mirror.take(new)
        except ProvisioningError as error:
            self._remember(lost=str(error))
            return
        except OSError as error:
            self._remember(lost=f"this machine cannot keep its copy: {error}")
            return
        if short := next((one.mirror.short for one in watched if one.mirror.short), ""):
            self._remember(lost=short)  # what did not fit must not be taken for what a run never said
            return
        self._caught_up = is_whole = all(new.is_whole for new in answer.folders)
        told = dict(zip(identities, answer.alive, strict=True))
        with self._lock:
            before = self._sight.alive
            alive = {one: runs or (not is_whole and before.get(one, True)) for one, runs in told.items()}
            self._sight = Sight(self._monotonic(), "", alive, is_whole)

    def _remember(self, *, lost: str) -> None:
        with self._lock:
            if lost and not self._sight.lost:
                self._silent_since_s = self._busy_since_s or self._monotonic()
            self._sight = Sight(self._sight.answered_s, lost, self._sight.alive, self._sight.is_whole)


def _close(steps: Steps[Any]) -> None:
    with suppress(OSError):  # what it tidies up may lie on the disk that failed
        steps.close()


def _ours(error: BaseException) -> ProvisioningError:
    """What a question can end with."""
    return error if isinstance(error, ProvisioningError) else HostLost("nobody asks it any more")
