"""Owns attempts on their host: starts each one, watches it, stops it, and writes down how it ended.

One file, standard library only, Python 3.8 or newer, so that it runs on any Linux host it is copied to:

    python3 -I -S supervisor.py spawn

reads launch specs as JSON lines on stdin, forks one supervisor for each, answers each with one JSON line (the identity
of its supervisor, or "error") and ends when stdin does; the supervisors live on. The keys of a launch spec:

    attempt                 a name, unique on this host
    argv cwd env cores      what to run; `env` is its whole environment and is written nowhere; cores [] = not pinned
    run_dir attempt_dir     folders: control.json of the run; logs, heartbeat, supervisor.json, {stop,dump,exit}.json
    deadline_s              stop after so many seconds; null = never
    grace_s                 how long the leader may take after its SIGTERM, to write a checkpoint
    term_s                  how long everything left may take after the second SIGTERM, before SIGKILL
    heartbeat_s             time between heartbeats
    reap                    true: start nothing, but end what a lost supervisor left behind and write its exit.json

The *leader* is the process that is started, alone in a new session; its *tree* is every process that descends from it
or carries its mark in the environment, whatever session it moved to.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

try:
    import ctypes

    LIBC = ctypes.CDLL(None)
except (ImportError, OSError):  # a Python without libffi: strays are then found by their mark only
    LIBC = None  # type: ignore[assignment]

POLL_S = 0.2  # longest time between two looks at stop.json
READY_S = 30.0  # longest time a new supervisor may take to claim its attempt
KILL_WAIT_S = 10.0  # longest time a process may take to vanish after SIGKILL
VANISHED_HEARTBEATS = 3  # this many heartbeats in a row without an attempt folder: somebody removed it
RESERVE = b" " * 4096  # disk space kept for exit.json, for the day the disk is full
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
NEEDED = {"attempt": str, "argv": list, "cwd": str, "env": dict, "run_dir": str, "attempt_dir": str}
DURATIONS = {"deadline_s": None, "grace_s": 60.0, "term_s": 5.0, "heartbeat_s": 5.0}
DEFAULTS: dict[str, Any] = {"cores": [], "reap": False, **DURATIONS}


def main(argv: list[str]) -> int:
    """The command line; returns the exit code."""
    if argv != ["spawn"]:
        sys.stderr.write("usage: python3 -I -S supervisor.py spawn    (launch specs as JSON lines on stdin)\n")
        return 2
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors that end leave no zombies
    with contextlib.suppress(BrokenPipeError):
        for line in iter(sys.stdin.buffer.readline, b""):
            write_all(1, json_line(spawn(line)))
    return 0


def spawn(line: bytes) -> dict[str, Any]:
    """Fork a supervisor for the launch spec in `line`; returns the answer once it has claimed its attempt.

    {"attempt", "boot_id", "init_start_ticks", "pid", "start_ticks"}; with "existing": true and the identity of the
    first supervisor when the attempt was started before; {"attempt", "error"} when nothing was started.
    """
    attempt = None
    try:
        document = json.loads(line.decode())
        attempt = document.get("attempt") if isinstance(document, dict) else None
        return {"attempt": attempt, **_fork(checked(document))}
    except (ValueError, RecursionError) as error:
        return {"attempt": attempt, "error": f"not a launch spec: {error}"}
    except OSError as error:
        return {"attempt": attempt, "error": f"cannot fork a supervisor: {error}"}


def checked(document: Any) -> dict[str, Any]:
    """The launch spec with its defaults. Raises ValueError naming the key (never its value, which may be secret)."""
    if not isinstance(document, dict):
        raise ValueError("a launch spec is a JSON object")
    unknown = sorted(set(document) - set(NEEDED) - set(DEFAULTS))
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; allowed: {', '.join([*NEEDED, *DEFAULTS])}")
    for key, kind in NEEDED.items():
        if not isinstance(document.get(key), kind) or (key != "env" and not document[key]):
            raise ValueError(f"{key}: a {kind.__name__} is needed")
    spec = {**DEFAULTS, **document}
    if not all(isinstance(text, str) and "\0" not in text for text in [*spec["argv"], *spec["env"].values()]):
        raise ValueError("argv, env: strings only")
    if not os.path.isabs(spec["run_dir"]) or not os.path.isabs(spec["attempt_dir"]):
        raise ValueError("run_dir, attempt_dir: absolute paths")
    if not isinstance(spec["cores"], list) or not all(type(core) is int and core >= 0 for core in spec["cores"]):
        raise ValueError("cores: a list of core numbers")
    for key in DURATIONS:
        if not is_duration(spec[key]) and not (key == "deadline_s" and spec[key] is None):
            raise ValueError(f"{key}: seconds, 0 or more")
    return spec


def _fork(spec: dict[str, Any]) -> dict[str, Any]:
    ready, claimed = os.pipe()
    with open(ready, "rb", 0) as answers:
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    _become_supervisor(spec, claimed)
                finally:
                    os._exit(0)
        finally:
            os.close(claimed)
        # One write of less than a pipe's page arrives whole; an end without it means that the supervisor died.
        is_there = select.select([answers], [], [], READY_S)[0]
        answer = answers.read(65536) if is_there else b""
        if not is_there:
            send(pid, signal.SIGKILL)  # what we call not started must not start later
    return json.loads(answer) if answer else {"error": f"no supervisor claimed the attempt within {READY_S:g} s"}


def _become_supervisor(spec: dict[str, Any], claimed: int) -> None:
    """What a forked child does for the rest of its life."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    for descriptor in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, claimed}:
        with contextlib.suppress(OSError):  # the listing's own descriptor is closed already
            os.close(descriptor)
    supervisor = Supervisor(spec)
    try:
        existing = supervisor.claim()
        answer = identity_of(os.getpid()) if existing is None else {**existing, "existing": True}
    except OSError as error:
        existing, answer = {}, {"error": f"cannot claim {spec['attempt_dir']}: {error}"}
    with contextlib.suppress(BrokenPipeError):  # the spawner is gone; the claim stands
        write_all(claimed, json_line(answer))
    os.close(claimed)
    if existing is not None:
        return
    try:
        supervisor.run()
    finally:
        # Our own end sends SIGTERM to the leader, so that not even our mistake leaves it running unwatched.
        if sys.exc_info()[0] is not None:
            supervisor.log(traceback.format_exc())


class Supervisor:
    """One attempt, from its claim to its exit.json."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.leader: dict[str, Any] = {}  # identity of the process that was started
        self.child: subprocess.Popen[bytes] | None = None  # the same; None when it is no child of ours
        self.cause = self.error = self._logged = ""
        self.stop_request: dict[str, Any] | None = None
        self.grace_s, self.term_s = spec["grace_s"], spec["term_s"]
        self.started, self._clock = time.time(), time.monotonic()
        self.max_rss_mib = self._next_beat = 0.0
        self._beats = self._missed = self._dumped = 0
        self._signals: set[int] = set()
        self._wakeup = _wakeup_pipe(self._signals)

    def claim(self) -> dict[str, Any] | None:
        """Make the attempt ours: None, or the identity of the supervisor that had it first.

        supervisor.json is the claim; the kernel's lock on the folder lets one at a time look and write. Raises OSError
        when there is no room to write it, or later exit.json: then nothing is started.
        """
        os.makedirs(self.spec["attempt_dir"], mode=0o700, exist_ok=True)
        lock = os.open(self.spec["attempt_dir"], os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.exists(self._path("supervisor.json")):
                claim = read_object(self._path("supervisor.json"))
                first, self.leader = claim.get("supervisor") or {}, claim.get("child") or {}
                if not self.spec["reap"] or is_running(first) or os.path.exists(self._path("exit.json")):
                    return dict(first)
            write_file(self._path("exit.json.part"), RESERVE)
            self._write_claim()
            return None
        finally:
            os.close(lock)

    def run(self) -> None:
        """Start the leader, watch it, stop it when asked, end what is left of its tree, write exit.json."""
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._beat()
        if self.spec["reap"]:
            self.cause, self.error = "killed", "its supervisor was lost; what was left of the attempt was ended"
        else:
            self._start()
        self._wait(lambda: self._has_ended() or self._must_stop())
        if not self._has_ended():
            self._stop_leader()
        ended = time.time()
        self._write_exit(ended, self._end_tree())

    def _start(self) -> None:
        """Start the leader on its cores; when that fails, `cause` and `error` say why."""
        spec, our_cores = self.spec, os.sched_getaffinity(0)
        marks = {"PYTHONUNBUFFERED": "1", "RUNNER_ATTEMPT": spec["attempt"], "RUNNER_ATTEMPT_DIR": spec["attempt_dir"]}
        try:
            with self._appended("stdout.log") as stdout, self._appended("stderr.log") as stderr:
                if spec["cores"]:
                    os.sched_setaffinity(0, spec["cores"])
                self.child = subprocess.Popen(
                    spec["argv"], cwd=spec["cwd"], env={"RUNNER_RUN_DIR": spec["run_dir"], **spec["env"], **marks},
                    stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True,
                    preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
                )  # fmt: skip
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            cores = f" on the cores {spec['cores']}" if spec["cores"] else ""
            self.cause, self.error = "spawn_failed", f"cannot start {spec['argv'][0]!r}{cores}: {error}"
            self.log(self.error)
            return
        finally:
            os.sched_setaffinity(0, our_cores)
        self.leader = identity_of(self.child.pid)
        try:
            self._write_claim()
        except OSError as error:
            self.log(f"supervisor.json lacks the process, pid {self.child.pid}: {error}")

    def _has_ended(self) -> bool:
        if self.child is None:
            return not is_running(self.leader)
        # WNOWAIT leaves the zombie, so that nobody else gets its number before its tree is gone.
        return os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _must_stop(self) -> bool:
        self._read_stop()
        if self.cause:
            return True
        self._pass_on_dump()
        if self._signals & {signal.SIGTERM, signal.SIGINT}:
            self._ask_stop("SIGTERM to the supervisor")
        elif self._missed >= VANISHED_HEARTBEATS:
            self._ask_stop(f"the folder {self.spec['attempt_dir']} is gone")
        elif self.spec["deadline_s"] is not None and time.monotonic() - self._clock >= self.spec["deadline_s"]:
            self.cause = "deadline"
        return bool(self.cause)

    def _read_stop(self) -> None:
        """Obey stop.json, the latest one. One that cannot be read stops too, with the times of the launch spec."""
        path = self._path("stop.json")
        if os.path.exists(path):
            request = read_object(path)
            self.grace_s = request["grace_s"] if is_duration(request.get("grace_s")) else self.grace_s
            self.term_s = request["term_s"] if is_duration(request.get("term_s")) else self.term_s
            self._ask_stop(str(request.get("reason", "stop.json gives no reason"))[:1000])

    def _pass_on_dump(self) -> None:
        """A new seq in dump.json is SIGUSR1 to the leader, unless it has no handler: then that would kill it."""
        seq, pid = read_object(self._path("dump.json")).get("seq"), self.leader.get("pid", 0)
        if isinstance(seq, int) and seq != self._dumped:
            self._dumped, is_caught = seq, catches(pid, signal.SIGUSR1)
            self.log(f"dump {seq}: " + ("SIGUSR1 to the leader" if is_caught else "the leader does not catch SIGUSR1"))
            if is_caught:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGUSR1)

    def _ask_stop(self, reason: str) -> None:
        self.cause = self.cause or "stopped"
        self.stop_request = {"reason": reason, "grace_s": self.grace_s}

    def _wait(self, is_done: Callable[[], bool], limit_s: Callable[[], float] = lambda: float("inf")) -> bool:
        """Wait until `is_done`, at most `limit_s()` seconds in all, with heartbeats; returns whether it was done."""
        begun = time.monotonic()
        while not is_done():
            now = time.monotonic()
            if now >= self._next_beat:
                self._beat()
            left_s = begun + limit_s() - now
            if left_s <= 0:
                return False
            if select.select([self._wakeup], [], [], max(0.0, min(POLL_S, left_s, self._next_beat - now)))[0]:
                os.read(self._wakeup, 4096)
        return True

    def _beat(self) -> None:
        """Rewrite the heartbeat in place, which needs no new disk space, and look at the memory of the tree."""
        self._next_beat = time.monotonic() + max(0.01, self.spec["heartbeat_s"])
        self._beats += 1
        try:
            write_file(self._path("heartbeat"), f"{self._beats:012d}\n".encode(), sync=False)
            self._missed = 0
        except (FileNotFoundError, NotADirectoryError):
            self._missed += 1
        except OSError as error:
            self.log(f"no heartbeat: {error}")
        pages = sum(process.rss_pages for process in self._tree(marked=False)) if self.leader else 0
        self.max_rss_mib = max(self.max_rss_mib, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

    def _stop_leader(self) -> None:
        """Ask the leader alone: its data-loader workers must live until the checkpoint is written."""
        self.log(f"{self.cause}: SIGTERM to the leader; {self.stop_request}")
        self._write_control()
        send(self.leader["pid"], signal.SIGTERM)

        def grace_s() -> float:
            self._read_stop()  # a second request may shorten or stretch it
            return float(self.grace_s)

        self._wait(self._has_ended, grace_s)

    def _write_control(self) -> None:
        """Ask through control.json too, when it is this attempt's and does not ask already."""
        path = os.path.join(self.spec["run_dir"], "control.json")
        control = read_object(path)
        name = os.path.basename(os.path.normpath(self.spec["attempt_dir"]))
        if name == f"attempt-{control.get('attempt')}" and not control.get("stop"):
            try:
                replace(path, {**control, "seq": control.get("seq", 0) + 1, "stop": "checkpoint"})
            except (OSError, TypeError) as error:
                self.log(f"control.json stays as it is: {error}")

    def _end_tree(self) -> list[int]:
        """SIGTERM to every process that is left, SIGKILL after term_s; returns the pids that outlive both."""

        def is_gone_after(number: int) -> bool:
            left = self._tree()
            for process in left:
                send(process.pid, number)
            return not left

        if is_gone_after(signal.SIGTERM) or self._wait(lambda: not self._tree(), lambda: self.term_s):
            return []
        self.log(f"SIGKILL to what is left: {sorted(process.pid for process in self._tree())}")
        self._wait(lambda: is_gone_after(signal.SIGKILL), lambda: KILL_WAIT_S)
        return sorted(process.pid for process in self._tree())

    def _tree(self, marked: bool = True) -> list[Process]:
        """The living processes of the attempt: descendants of ours or of the leader, and those that carry the mark.

        Descendants whose parents ended are ours again, because this process is a child subreaper.
        """
        found = {process.pid: process for process in processes()}
        roots = {os.getpid()} | ({self.leader["pid"]} if is_running(self.leader) else set())
        oldest = 0 if self.spec["reap"] else found[os.getpid()].start_ticks  # what is older cannot carry our mark
        for process in found.values():
            if process.state == "Z" and process.parent == os.getpid() and process.pid != self.leader.get("pid"):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
        return [
            one for one in found.values() if one.pid != os.getpid() and one.state not in "ZX"
            and (descends(one, roots, found) or (marked and one.start_ticks >= oldest and self._is_marked(one.pid)))
        ]  # fmt: skip

    def _is_marked(self, pid: int) -> bool:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                environment = file.read().split(b"\0")
        except OSError:
            return False
        marks = (f"RUNNER_ATTEMPT={self.spec['attempt']}", f"RUNNER_ATTEMPT_DIR={self.spec['attempt_dir']}")
        return all(os.fsencode(mark) in environment for mark in marks)

    def _write_exit(self, ended: float, leftover_pids: list[int]) -> None:
        """Write exit.json, again and again until it is there or its folder is gone."""
        pid, status = (0, 0) if self.child is None else os.waitpid(self.child.pid, os.WNOHANG)
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        largest_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        document = {
            "attempt": self.spec["attempt"],
            "code": os.WEXITSTATUS(status) if pid and number is None else None,
            "signal": number,
            "cause": self.cause or ("exited" if number is None else "killed"),
            "stop_request": self.stop_request,
            "started": self.started,
            "ended": ended,
            "max_rss_mib": round(max(self.max_rss_mib, largest_mib), 1),
            "leftover_pids": leftover_pids,
            **({"error": self.error} if self.error else {}),
        }

        def is_settled() -> bool:
            try:
                replace(self._path("exit.json"), document)
            except OSError as error:
                self.log(f"no exit.json yet: {error}")
                return not os.path.isdir(self.spec["attempt_dir"])
            return True

        self._wait(is_settled)

    def _write_claim(self) -> None:
        claim = {"attempt": self.spec["attempt"], "supervisor": identity_of(os.getpid()), "child": self.leader or None}
        replace(self._path("supervisor.json"), {**claim, "started": self.started})

    def log(self, text: str) -> None:
        """Add to supervisor.log what can be added, once; a full disk must not end an attempt."""
        if text != self._logged:
            self._logged = text
            with contextlib.suppress(OSError), self._appended("supervisor.log") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n".encode())

    def _appended(self, name: str) -> Any:
        return os.fdopen(os.open(self._path(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb", 0)

    def _path(self, name: str) -> str:
        return os.path.join(self.spec["attempt_dir"], name)


class Process(NamedTuple):
    """What the kernel says of one process."""

    pid: int
    state: str
    parent: int
    start_ticks: int
    rss_pages: int


def processes() -> Iterator[Process]:
    """Every process of this host that we can see."""
    for name in os.listdir("/proc"):
        process = process_of(int(name)) if name.isdigit() else None
        if process is not None:
            yield process


def process_of(pid: int) -> Process | None:
    """One process, or None when there is none of this number."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the name before may hold blanks and brackets
    return Process(pid, fields[0].decode(), int(fields[1]), int(fields[19]), int(fields[21]))


def descends(process: Process, roots: set[int], found: dict[int, Process]) -> bool:
    """Whether a process is one of the roots or below one."""
    for _ in found:  # parents read at different moments could make a ring
        if process.pid in roots or process.parent not in found:
            break
        process = found[process.parent]
    return process.pid in roots


def identity_of(pid: int) -> dict[str, Any]:
    """What no later process of the same number can have, on this boot and in this container; {} for no process."""
    process, init = process_of(pid), process_of(1)
    if process is None:
        return {}
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot_id = file.read().strip()
    ticks = 0 if init is None else init.start_ticks
    return {"boot_id": boot_id, "init_start_ticks": ticks, "pid": pid, "start_ticks": process.start_ticks}


def is_running(identity: dict[str, Any]) -> bool:
    """Whether exactly this process still runs; a zombie does not."""
    process = process_of(identity.get("pid", 0))
    return process is not None and process.state not in "ZX" and identity_of(process.pid) == identity


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        return any(line.startswith("SigCgt:") and int(line[7:], 16) >> (number - 1) & 1 for line in file)
    return False


def send(pid: int, number: int) -> None:
    """Signal a process, and wake it if it was suspended; one that is gone or not ours to signal is passed over."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process; without libffi, nothing."""
    if LIBC is not None:
        LIBC.prctl(option, value, 0, 0, 0)


def is_duration(value: Any) -> bool:
    """Whether a JSON value is a number of seconds."""
    return type(value) in (int, float) and 0 <= value < float("inf")


def read_object(path: str) -> dict[str, Any]:
    """The JSON object in a file; {} when there is none."""
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read().decode())
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def replace(path: str, document: dict[str, Any]) -> None:
    """Replace a file atomically. The space of a part file that is there is used again."""
    write_file(path + ".part", json_line(document))
    os.rename(path + ".part", path)


def write_file(path: str, data: bytes, sync: bool = True) -> None:
    """Write over a file from its beginning and cut it there; space that it has is not given back in between."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        write_all(descriptor, data)
        os.ftruncate(descriptor, len(data))
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte."""
    while data:
        data = data[os.write(descriptor, data) :]


def json_line(document: dict[str, Any]) -> bytes:
    """One line of JSON."""
    return (json.dumps(document) + "\n").encode()


def _wakeup_pipe(arrived: set[int]) -> int:
    """The end of a pipe that turns readable at each signal; the signals that ask for something are added to `arrived`.

    Handlers, unlike ignored signals, are not inherited by what is started later.
    """
    readable, written = os.pipe()
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda number, _frame: arrived.add(number))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    return readable


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
