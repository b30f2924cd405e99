"""What the end of a process means: a class, whether it may pass by itself, and what to do about it. Pure.

The evidence is the exit record (cause, signal, exit code), what memory was there and used, and the end of the error
stream. Where it allows two readings, the one that claims less is taken and `says` names the other.
"""

from __future__ import annotations

import re
import signal as signals
from collections.abc import Mapping
from dataclasses import dataclass

from runner.failure.last_words import Verdict, decide, read_lines
from runner.failure.memory import Memory, gib, read_memory
from runner.failure.rules import KERNEL_KILLED


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended, as its supervisor recorded it."""

    code: int | None
    signal: int | None
    cause: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed. `name` stands in `failed(name)`; a transient one may be tried again; `says` is for a
    person."""

    name: str
    is_transient: bool
    says: str


CLASSES: Mapping[str, tuple[bool, str]] = {
    "does_not_fit": (False, "the same arm on the same slot asks for the same memory"),
    "cuda_oom": (True, "it had fitted: fragments, a neighbour or an unusual batch; a new process starts unfragmented"),
    "host_oom": (True, "it had fitted: a leak or a neighbour; a new process starts without the leak"),
    "nccl": (True, "a peer or the network was lost; only a wrong setup (invalid usage) comes again for sure"),
    "cuda": (True, "a GPU, a driver or a race is at fault; asserts and mismatched builds come again for sure"),
    "killed": (True, "somebody or the kernel ended it; the arm itself did nothing wrong"),
    "crashed": (False, "native code broke; transient only after steps, because then the same code had worked before"),
    "network": (True, "a download failed; the other side may be back"),
    "data": (False, "the same files are as bad again; only a storage that failed for a moment may be back"),
    "disk_full": (False, "a full disk does not empty itself, and a retry only writes more"),
    "config": (False, "the same words are refused again"),
    "import": (False, "what is not installed stays so"),
    "internal": (False, "a bug of the trainer meets the same input again"),
    "spawn_failed": (
        False,
        "the command is not there; transient only where the host had nothing left to start it with",
    ),
    "deadline": (False, "the same work takes as long again"),
    "unknown": (False, "nobody knows what it was, so nobody can say that it passes"),
}
"""Every class with its usual answer to "may it pass by itself?" and the reason.

An exit code that nothing explains is the class `exit N`: it is `unknown` with the number that the script chose."""

CONFIG_CODES = (78, 2)
DATA_CODE, INTERNAL_CODE, STOPPED_CODE = 65, 70, 75
"""Exit codes that our trainer gives a meaning to; a foreign script's codes stand for themselves."""

FIRST_STEPS = 3
"""Fewer steps than these are the first ones: the second step is the first that holds weights, gradients, the state of
the optimizer and activations at once, so what has done three steps has shown that it fits."""

NEARLY_ALL = 0.9
"""The share of the host's memory from which on a SIGKILL is read as the kernel's."""

_CRASHES = frozenset(
    {signals.SIGSEGV, signals.SIGABRT, signals.SIGBUS, signals.SIGFPE, signals.SIGILL, signals.SIGSYS, signals.SIGTRAP}
)
_ENDINGS = frozenset({signals.SIGHUP, signals.SIGINT, signals.SIGKILL, signals.SIGTERM})
_SPAWN_MAY_PASS = re.compile(r"\[Errno (?:11|12|23|24|26)\]")


def classify(
    ended: Exit,
    *,
    is_trainer: bool,
    tail: str,
    steps_done: int,
    steps_before: int = 0,
    max_rss_mib: float | None = None,
    host_memory_mib: float | None = None,
    gpu_memory_mib: float | None = None,
) -> Failure:
    """The class of a failed attempt, from how it ended and the last lines it wrote.

    `tail` is the end of its error stream (its output where that is empty); `steps_done` counts the optimizer steps of
    this attempt alone, `steps_before` those of the attempts that it resumed from. `max_rss_mib` is the most host memory
    that its processes held at once, `host_memory_mib` what the host (or its container) has, `gpu_memory_mib` what the
    smallest GPU of its slot has. Never raises, whatever the text.
    """
    fits = max(steps_done, steps_before) >= FIRST_STEPS
    host = Memory(here=host_memory_mib, own=max_rss_mib)
    if ended.cause == "spawn_failed":
        return _failure("spawn_failed", ended.error, bool(_SPAWN_MAY_PASS.search(ended.error)))
    if ended.cause == "deadline":
        return _failure("deadline", last_line(tail))
    number = _signal_of(ended, is_trainer)
    if number is not None and number not in _CRASHES:
        return _killed(number, decide(tail), last_line(tail), host, fits)
    if is_trainer and ended.code in CONFIG_CODES:
        return _failure("config", _words(decide(tail), tail))
    if (number is None and ended.cause in ("stopped", "killed")) or (is_trainer and ended.code == STOPPED_CODE):
        return _failure("killed", _joined(last_line(tail), ended.error or "somebody else asked it to stop"))
    verdict = decide(tail)
    if verdict is not None and verdict.rule is not None:
        known = Memory(here=gpu_memory_mib) if verdict.rule.name == "cuda_oom" else host
        return _known(verdict, read_memory(verdict.below, known), fits, is_trainer)
    return _unexplained(ended, number, is_trainer, _words(verdict, tail), fits)


def last_line(tail: str) -> str:
    """The last line that says anything, cut to what fits a table."""
    return next((line.strip()[:300] for line in reversed(read_lines(tail)) if line.strip()), "")


def describe_exit(ended: Exit) -> str:
    """How a process ended, for a person."""
    if ended.cause == "spawn_failed":
        return f"it could not be started ({ended.error})" if ended.error else "it could not be started"
    if ended.signal is not None:
        return f"killed by {_signal_name(ended.signal)}"
    if ended.code is None:
        return "it ended and left no exit code"
    return f"exit code {ended.code}"


def _failure(name: str, says: str, is_transient: bool | None = None) -> Failure:
    return Failure(name, CLASSES[name][0] if is_transient is None else is_transient, says)


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _words(verdict: Verdict | None, tail: str) -> str:
    return last_line(tail) if verdict is None else verdict.text[:300]


def _signal_of(ended: Exit, is_trainer: bool) -> int | None:
    """The signal that ended it; a shell tells its child's as 128 + number. Our trainer's codes mean other things."""
    if ended.signal is not None:
        return ended.signal
    number = (ended.code or 0) - 128
    return number if not is_trainer and number in _CRASHES | _ENDINGS else None


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _killed(number: int, verdict: Verdict | None, words: str, host: Memory, fits: bool) -> Failure:
    """Ended by a signal that a program does not send itself."""
    if number != signals.SIGKILL:
        return _failure("killed", _joined(words, f"{_signal_name(number)} from outside"))
    if verdict is not None and verdict.rule is KERNEL_KILLED:
        return _known(verdict, host, fits, is_trainer=False)
    if host.here and host.own and host.own >= NEARLY_ALL * host.here:
        says = "likely, but not proven: the kernel ended it for want of host memory"
        return _failure("host_oom", _joined(says, _host_advice(host)))
    used = f" (it had held {gib(host.own)} of host memory)" if host.own else ""
    # It had no time for last words: whatever it printed last is not the reason.
    return _failure("killed", f"from outside{used}; where the host ran short of memory, the kernel did it")


def _known(verdict: Verdict, memory: Memory, fits: bool, is_trainer: bool) -> Failure:
    """A failure that a line of the error stream explains."""
    rule = verdict.rule
    assert rule is not None
    if rule.name == "host_oom" and rule.hint:
        advice = _host_advice(memory) if rule is KERNEL_KILLED else ""
        return _failure("host_oom" if fits else "does_not_fit", _joined(verdict.text[:300], rule.hint, advice))
    if rule.name in ("cuda_oom", "host_oom"):
        return _out_of_memory(rule.name, verdict.text, memory, fits, is_trainer)
    is_transient = fits if rule.name == "crashed" else rule.is_transient
    return _failure(rule.name, _joined(verdict.text[:300], rule.hint), is_transient)


def _out_of_memory(name: str, words: str, memory: Memory, fits: bool, is_trainer: bool) -> Failure:
    place = "GPU" if name == "cuda_oom" else "host"
    words = words.partition(". ")[0][:120]
    told = memory.tell(place) or f"{words} (the log tells no amounts of memory)"
    lower = _lower(place, is_trainer)
    if memory.asked and memory.here and memory.asked > memory.here:
        return _failure("does_not_fit", f"{told}: that never fits; {lower}")
    if memory.would_fit_alone:
        return _failure(name, _joined(told, "without the other processes there it would fit"))
    if not fits:
        return _failure("does_not_fit", f"it does not fit: {told}; {lower}")
    return _failure(name, _joined(told, f"it had fitted before; if it comes again, {lower}"))


def _lower(place: str, is_trainer: bool) -> str:
    ours = "trainer.batch, trainer.data.size, trainer.model.width or trainer.model.depth"
    sizes = ours if is_trainer else "its batch, the size of its images, or the width or depth of its model"
    more = "a slot with more memory (resources.min_vram_gib)" if place == "GPU" else "a slot on a host with more memory"
    return f"lower {sizes}, or give it {more}"


def _host_advice(host: Memory) -> str:
    lower = "a smaller batch, fewer data-loader workers or a larger host helps"
    return f"it held {gib(host.own)} of {gib(host.here)}; {lower}" if host.here and host.own else lower


def _unexplained(ended: Exit, number: int | None, is_trainer: bool, words: str, fits: bool) -> Failure:
    """Nothing in the text is known: the exit code or the signal stands for itself."""
    if number is not None:
        return _failure("crashed", _joined(words, f"{_signal_name(number)} in native code"), fits)
    if is_trainer and ended.code == DATA_CODE:
        return _failure("data", words)
    if is_trainer and ended.code == INTERNAL_CODE:
        return _failure("internal", words)
    if ended.code is None:
        return _failure("unknown", _joined(words, ended.error))
    return Failure(f"exit {ended.code}", CLASSES["unknown"][0], words)
