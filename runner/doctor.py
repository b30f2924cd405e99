"""What is wrong with this machine and this home, and what to do about it. Pure: facts in, checks out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.home import NETWORK_FILE_SYSTEMS, RESERVE_MIB

if TYPE_CHECKING:
    from runner.store.untold import Untold

OK, WARNING, PROBLEM = "ok", "warning", "problem"

LOW_DISK_MIB = 2048
LARGE_LOG_MIB = 256
CLOCK_SLACK_S = 5.0
TOLD_OF_S = 30 * 86400.0
"""How long a notice that was given up is spoken of."""
FEW_FILES = 256
ENOUGH_FILES = 1024


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: `level` is ok, warning or problem, `do` what to do about it ('' = nothing)."""

    name: str
    level: str
    says: str
    do: str = ""


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """The home's database: `error` is why it cannot be read, `damage` what its own check says ('' = fine)."""

    revision: str | None
    newest_revision: str
    log_mib: float = 0.0
    damage: str = ""
    error: str = ""
    open_runs: int = 0
    newest_event: float | None = None
    quarantines: tuple[str, ...] = ()
    untold: Untold | None = None


@dataclass(frozen=True, slots=True)
class LockFacts:
    """The home's lock: who is written in it, and the state letter of that process (None = there is no such process)."""

    is_held: bool
    pid: int | None = None
    state: str | None = None


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """The GPUs that runs may use; `foreign` has one sentence for each program that keeps a run off one."""

    names: tuple[str, ...] = ()
    driver: str = ""
    notes: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the checks look at. Times are in seconds since the epoch.

    `disk_clock` is the time that the home's file system gives a file made at `now`; None when none could be made.
    `trainer` is the folder that `import trainer` would find, `packages` the installed versions (None = not installed).
    """

    home: str
    home_exists: bool
    home_writable: bool
    file_system: str
    free_mib: int
    now: float
    disk_clock: float | None
    database: DatabaseFacts | None
    lock: LockFacts
    gpus: GpuFacts
    trainer: str | None
    packages: Mapping[str, str | None]
    open_files: int
    cores: int


def examine(facts: Facts) -> tuple[Check, ...]:
    """Every check, in the order in which a person would ask."""
    return tuple(check for look in _LOOKS for check in look(facts))


def has_problem(checks: tuple[Check, ...]) -> bool:
    """Whether something stands in the way of running."""
    return any(check.level == PROBLEM for check in checks)


def _home(facts: Facts) -> Iterator[Check]:
    if facts.file_system in NETWORK_FILE_SYSTEMS:
        says = f"{facts.home} lies on a network file system ({facts.file_system})"
        yield Check("home", PROBLEM, says, "choose a local disk with --home or RUNNER_HOME")
    elif not facts.home_writable:
        yield Check("home", PROBLEM, f"{facts.home} is not writable for this user", "choose another with --home")
    elif facts.file_system in ("tmpfs", "ramfs"):
        says = f"{facts.home} lies in memory ({facts.file_system}): a restart of the machine loses every result"
        yield Check("home", WARNING, says, "choose a disk with --home or RUNNER_HOME")
    else:
        new = "" if facts.home_exists else ", not made yet"
        yield Check("home", OK, f"{facts.home} ({facts.file_system or 'unknown file system'}{new})")


def _disk(facts: Facts) -> Iterator[Check]:
    says = f"{facts.free_mib:,} MiB are free"
    if facts.free_mib < RESERVE_MIB:
        yield Check("disk", PROBLEM, says, "free some: checkpoints and the database cannot be written")
    elif facts.free_mib < LOW_DISK_MIB:
        yield Check("disk", WARNING, says, "free some, or lower checkpoint.keep: a checkpoint that does not fit fails")
    else:
        yield Check("disk", OK, says)


def _database(facts: Facts) -> Iterator[Check]:
    found = facts.database
    if found is None:
        yield Check("database", OK, "none yet; the first launch makes it")
        return
    if found.error:
        yield Check("database", PROBLEM, found.error, "move it away, or name another --home")
        return
    if found.damage:
        do = "copy the home, then restore a backup (runner.before-*.db) or start a new home"
        yield Check("database", PROBLEM, f"damaged: {found.damage}", do)
        return
    if found.revision != found.newest_revision:
        says = f"revision {found.revision}; this version writes {found.newest_revision}"
        yield Check("database", WARNING, says, "nothing: the next launch upgrades it and keeps a copy")
    else:
        yield Check("database", OK, f"revision {found.revision}, no damage found")
    if found.log_mib > LARGE_LOG_MIB:
        says = f"its write-ahead log has {found.log_mib:,.0f} MiB: something has been reading for very long"
        yield Check("database", WARNING, says, "close programs that hold runner.db open")


def _controller(facts: Facts) -> Iterator[Check]:
    lock, open_runs = facts.lock, facts.database.open_runs if facts.database else 0
    if lock.is_held and lock.pid is not None and lock.state in ("T", "t"):
        yield Check("controller", PROBLEM, f"pid {lock.pid} holds the home and is stopped", f"kill -CONT {lock.pid}")
    elif lock.is_held and (lock.pid is None or lock.state in (None, "Z", "X")):
        who = "a process that it does not name" if lock.pid is None else f"not by pid {lock.pid}, which has ended"
        says = f"the home's lock is held, {'by ' + who if lock.pid is None else who}"
        yield Check("controller", WARNING, says, "fuser -v controller.lock names it; nothing starts until it ends")
    elif lock.is_held:
        yield Check("controller", OK, f"pid {lock.pid} is at work; {_count(open_runs, 'open run')}")
    elif open_runs:
        says = f"none is alive, and {_count(open_runs, 'run')} wait for one or go on without it"
        yield Check("controller", PROBLEM, says, "runner resume")
    else:
        yield Check("controller", OK, "none is alive, and nothing waits for one")


def _gpus(facts: Facts) -> Iterator[Check]:
    found = facts.gpus
    if found.names:
        yield Check("gpus", OK, f"{', '.join(found.names)}; driver {found.driver or 'unknown'}")
        for note in found.notes:
            yield Check("gpus", WARNING, note)
    else:
        why = f" ({'; '.join(found.notes)})" if found.notes else ""
        yield Check("gpus", OK, f"none{why}: runs train on {_count(facts.cores, 'CPU core')}")
    for text in found.problems:
        yield Check("gpus", PROBLEM, text, "nvidia-smi shows more; a reset or a restart of the machine may help")
    for text in found.foreign:
        yield Check("gpus", WARNING, text, "no run starts there; end that program, or launch with --share-gpus")


def _quarantines(facts: Facts) -> Iterator[Check]:
    for text in facts.database.quarantines if facts.database else ():
        yield Check("slots", WARNING, text, "a live controller looks again and lifts it once the slot is free")


def _notices(facts: Facts) -> Iterator[Check]:
    found = facts.database.untold if facts.database else None
    if found is None or found.changed is None:
        return
    given_up = f"{_count(found.given_up, 'notice')} given up" if found.given_up else ""
    waiting = f"{_count(found.waiting, 'notice')} waiting after a failed try" if found.waiting else ""
    counts = ", ".join(text for text in (given_up, waiting) if text)
    newest = f"the newest, {_age(facts.now - found.changed)} ago: {found.said}"
    do = "repair the receiver, or `notify` for the next launch"
    do += "; what was given up is not sent again, so see `runner status`" if found.given_up else ""
    yield Check("notices", WARNING, f"{counts}; {newest}", do)


def _trainer(facts: Facts) -> Iterator[Check]:
    torch = facts.packages.get("torch")
    if facts.trainer is None:
        do = "pip install 'armature[trainer]'; arms with a command need none"
        yield Check("trainer", WARNING, "the package trainer is not installed here", do)
    elif torch is None:
        do = "pip install 'armature[trainer]', or give arms an environment.python that has it"
        yield Check("trainer", WARNING, f"{facts.trainer}; torch is not installed", do)
    else:
        versions = ", ".join(f"{name} {version}" for name, version in facts.packages.items() if version is not None)
        yield Check("trainer", OK, f"{facts.trainer}; {versions}")


def _clock(facts: Facts) -> Iterator[Check]:
    do = "set the clock (timedatectl shows it); durations of runs that cross the jump are wrong"
    newest = facts.database.newest_event if facts.database else None
    if facts.disk_clock is not None and abs(facts.disk_clock - facts.now) > CLOCK_SLACK_S:
        apart_s = facts.disk_clock - facts.now
        yield Check("clock", WARNING, f"the home's file system is {apart_s:+,.0f} s away from this machine's clock", do)
    elif newest is not None and newest - facts.now > CLOCK_SLACK_S:
        says = f"the newest event of this home lies {newest - facts.now:,.0f} s in the future: the clock was set back"
        yield Check("clock", WARNING, says, do)
    else:
        yield Check("clock", OK, "it agrees with the home's file system and its history")


def _limits(facts: Facts) -> Iterator[Check]:
    says = f"{facts.open_files:,} open files for a process"
    do = f"ulimit -n {ENOUGH_FILES * 4} before `runner launch`"
    if facts.open_files < FEW_FILES:
        yield Check("limits", PROBLEM, says, do)
    elif facts.open_files < ENOUGH_FILES:
        yield Check("limits", WARNING, f"{says}; data loaders with many workers need more", do)
    else:
        yield Check("limits", OK, says)


def _age(seconds: float) -> str:
    for unit, unit_s in (("day", 86400.0), ("hour", 3600.0), ("minute", 60.0)):
        if seconds >= unit_s:
            return _count(int(seconds / unit_s), unit)
    return "less than a minute"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_LOOKS: tuple[Callable[[Facts], Iterator[Check]], ...] = (
    _home, _disk, _database, _controller, _gpus, _quarantines, _notices, _trainer, _clock, _limits,
)  # fmt: skip
