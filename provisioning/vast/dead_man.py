"""The switch that destroys a rented machine when nobody else does. It runs there, alone, on any Python from 3.7 on.

It fires at the end of the machine's life; or when there was neither a living attempt nor a word from us for too long;
or when nothing was staged in time after the start. Time is what it observes itself, on a clock that also runs while the
machine sleeps and that no setting of the date moves. What it counted is kept in a file, so that a container that is
started again goes on counting; over a reboot of the machine, where that clock begins anew, the date must do.

Nothing that happens on the machine may end it: no full disk, no foreign answer, no signal that can be ignored.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import glob
import hashlib
import http.client
import json
import os
import re
import signal
import sys
import time
import urllib.request

SERVICE = "https://console.vast.ai"
ALLOWED = r"https://([a-z0-9-]+\.)*vast\.ai(:\d+)?|http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?"
FOLDER = os.path.expanduser("~/.armature/switch/")
LONGEST_PAUSE_S = 60.0
MOST_S = 1e9
KEYS_WITHIN_S = 30


def read(path: str) -> bytes:
    """The start of a file; nothing when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(65536)
    except OSError:
        return b""


def write(name: str, text: str) -> None:
    """Replace a file of ours, if the disk lets us."""
    try:
        with open(FOLDER + name + ".part", "w") as file:
            file.write(text)
        os.replace(FOLDER + name + ".part", FOLDER + name)
    except OSError as error:
        say(f"{name}: {error}")


def stamp(name: str) -> tuple[int, int] | None:
    """What changes whenever a file is touched; None when it is not there."""
    try:
        found = os.stat(FOLDER + name)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def say(text: str) -> None:
    """Into our log, if the disk lets us."""
    with contextlib.suppress(OSError):
        os.write(1, f"{time.strftime('%F %T')} {text}\n".encode())


def start_ticks(pid: int) -> int:
    """When a process started, in ticks since boot."""
    return int(read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[19])


def is_attempt_alive() -> bool:
    """Whether any process here carries the mark of an attempt."""
    pids = filter(str.isdigit, os.listdir("/proc"))
    return any(b"\0RUNNER_ATTEMPT=" in b"\0" + environment(pid) for pid in pids)


def environment(pid: str) -> bytes:
    """The variables of a process, however many."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""


def call(method: str) -> tuple[str, bool]:
    """Ask the service about this machine: why there was no answer ('' = there was), and whether it said yes."""
    number, key = os.environ.get("CONTAINER_ID", ""), os.environ.get("CONTAINER_API_KEY", "")
    if not (number.isdigit() and key):
        return "CONTAINER_ID or CONTAINER_API_KEY is not set", False
    url = os.environ.get("VAST_URL", "").rstrip("/")
    if not re.fullmatch(ALLOWED, url):
        url = SERVICE
    ends = method == "DELETE"
    url += f"/api/v0/instances/{number}/{'' if ends else '?owner=me'}"
    request = urllib.request.Request(url, b"{}" if ends else None, {"Content-Type": "application/json"}, method=method)
    request.add_unredirected_header("Authorization", "Bearer " + key)
    direct = [urllib.request.ProxyHandler({})] if url.startswith("http:") else []
    try:
        with urllib.request.build_opener(*direct).open(request, timeout=30) as answer:
            return "", bool(re.search(rb'"success"\s*:\s*true', answer.read(65536)))
    except (OSError, ValueError, http.client.HTTPException) as error:
        return ("" if hasattr(error, "code") else f"no answer: {error}"), False


class Switch:
    """What is counted, all in seconds: the life so far, silence, and the time in which nothing was staged."""

    def __init__(self, ttl_s: float, contact_s: float, staged_s: float, poll_s: float, again_s: float) -> None:
        self.ttl_s, self.contact_s, self.staged_s = ttl_s, contact_s, staged_s
        self.poll_s, self.again_s = poll_s, again_s
        self.boot = read("/proc/sys/kernel/random/boot_id").decode().strip()
        self.contact = stamp("contact")
        self.lived_s = self.silent_s = self.unstaged_s = 0.0
        self.at_s, self.date_s = time.clock_gettime(time.CLOCK_BOOTTIME), time.time()
        try:
            kept = json.loads(read(FOLDER + "age"))
            passed_s = self.at_s - kept["at_s"]
            if kept["boot"] != self.boot or passed_s < 0:
                passed_s = max(0.0, self.date_s - kept["date_s"])
            self.lived_s = kept["lived_s"] + passed_s
            self.silent_s, self.unstaged_s = kept["silent_s"], kept["unstaged_s"]
            self.ttl_s = max(ttl_s, kept["ttl_s"])
        except (ValueError, KeyError, TypeError):
            say("born now")

    def look(self) -> str:
        """Why the machine must go, or ''."""
        before_s = self.at_s
        self.at_s, self.date_s = time.clock_gettime(time.CLOCK_BOOTTIME), time.time()
        self.lived_s += self.at_s - before_s
        # Whoever was not looking accuses nobody: after a sleep of the machine, others come first.
        seen_s = min(self.at_s - before_s, 3 * max(self.poll_s, self.again_s))
        try:
            told_s = float(read(FOLDER + "ttl_s"))
            if self.ttl_s < told_s < MOST_S:
                self.ttl_s = told_s
        except ValueError:
            write("ttl_s", f"{self.ttl_s:.3f}\n")
        is_alive, contact = is_attempt_alive(), stamp("contact")
        self.silent_s = 0.0 if is_alive or contact != self.contact else self.silent_s + seen_s
        self.contact = contact
        self.unstaged_s = 0.0 if is_alive or stamp("staged") else self.unstaged_s + seen_s
        names = ("boot", "at_s", "date_s", "lived_s", "silent_s", "unstaged_s", "ttl_s")
        write("age", json.dumps({name: getattr(self, name) for name in names}))
        if self.lived_s >= self.ttl_s:
            return f"its life of {self.ttl_s:g} s is over"
        if self.silent_s >= self.contact_s:
            return f"no attempt alive and no word from us for {self.silent_s:g} s"
        if self.unstaged_s >= self.staged_s:
            return f"nothing staged for {self.unstaged_s:g} s"
        return ""

    def arm(self, missing: str) -> None:
        """Say who we are, and what we lack."""
        pid = os.getpid()
        who = {"boot_id": self.boot, "init_start_ticks": start_ticks(1), "pid": pid, "start_ticks": start_ticks(pid)}
        write("armed", json.dumps({"missing": missing, **who}))

    def run(self) -> None:
        """Look and, when it must be, destroy; for ever. A word from us may still call it off."""
        missing, pause_s = "it has not reached the service yet", 0.0
        self.arm(missing)
        while True:
            why = self.look()
            if why:
                problem, is_gone = call("DELETE")
                say(f"{why}: {'destroyed' if is_gone else problem or 'refused'}")
                pause_s = min(LONGEST_PAUSE_S, max(self.again_s, 2 * pause_s))
            else:
                pause_s = 0.0
                if missing:
                    missing = call("GET")[0]
                    self.arm(missing)
            time.sleep(pause_s or self.poll_s)


def print_host_keys() -> None:
    """Into the log of the machine: whoever rented it compares them with what it shows."""
    for _ in range(KEYS_WITHIN_S):
        names = glob.glob(os.environ.get("SSH_HOST_KEYS", "/etc/ssh/ssh_host_*_key.pub"))
        for name in sorted(names):
            kind, key = read(name).decode().split()[:2]
            digest = base64.b64encode(hashlib.sha256(base64.b64decode(key)).digest()).decode().rstrip("=")
            print(f"armature host key: {kind} SHA256:{digest}", flush=True)
        if names:
            return
        time.sleep(1)


def settle_down() -> None:
    """Leave the session, the terminal and the signals of whoever started us; end if there is a switch already."""
    os.setsid()
    if os.fork():
        os._exit(0)
    try:
        lock = os.open(FOLDER + "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os._exit(0)
    except OSError as error:
        say(f"armature switch: {error}")
    try:
        log = os.open(FOLDER + "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        log = os.open(os.devnull, os.O_WRONLY)
    for number, to in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
        os.dup2(to, number)
    for each in signal.SIGHUP, signal.SIGINT, signal.SIGTERM:
        signal.signal(each, signal.SIG_IGN)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-1000")
    except OSError:
        say("when memory runs out the kernel may end the switch")


def main(durations: list[float]) -> None:
    """Start the switch, then print the keys."""
    try:
        os.makedirs(FOLDER, 0o700, exist_ok=True)
    except OSError as error:
        say(f"armature switch: {error}")
    if os.fork():
        os.wait()
        print_host_keys()
    else:
        settle_down()
        Switch(*durations).run()


if __name__ == "__main__":
    main([float(word) for word in sys.argv[1:]])
