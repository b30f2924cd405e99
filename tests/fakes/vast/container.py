"""The first process of a rented container: it starts the ssh server and the start commands, adopts whatever loses its
parent, and ends all of it when its input ends, be it that the fake closed it or that the fake was killed.

Run by its path, with the standard library alone: `python -I -S container.py FOLDER`. FOLDER/container.json says what
to run. It says `ready` on its output, or what went wrong, and nothing else.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
LOOK_S = 0.005


def main(folder: str) -> int:
    """Run one container until its input ends."""
    wanted = json.loads(Path(folder, "container.json").read_bytes())
    # What daemonizes inside becomes a child of this process instead of leaving the container unseen.
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    wakes, wakened = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wakened)
    is_over: list[int] = []
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGTERM, lambda number, frame: is_over.append(number))
    held: list[socket.socket] = []  # kept so that they stay open
    try:
        problem = _begin(wanted, held)
        os.write(1, (problem or "ready").encode() + b"\n")
        while not (problem or is_over):
            readable, _, _ = select.select([0, wakes], [], [])
            if 0 in readable:
                break
            os.read(wakes, 4096)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
    finally:
        end_children()
    return 0


def _begin(wanted: dict[str, Any], held: list[socket.socket]) -> str:
    """Start what is wanted; what went wrong, or ''."""
    for source, target in wanted["mounts"]:
        done = subprocess.run(["mount", "--bind", source, target], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"mount {target}: {' '.join(done.stderr.split())}"
    own = {"cwd": wanted["home"], "stdin": subprocess.DEVNULL, "start_new_session": True}
    with open(wanted["log"], "ab") as log:
        if wanted["sshd"] is None:
            for port in wanted["ports"]:  # connections are taken by the kernel, and nobody ever speaks
                held.append(socket.create_server(("127.0.0.1", port)))
        else:
            server = subprocess.Popen(wanted["sshd"], stdout=log, stderr=log, **own)
            for port in wanted["ports"]:
                while not _listens(port):
                    if server.poll() is not None:
                        return f"sshd ended with {server.returncode}"
                    time.sleep(LOOK_S)
        if wanted["onstart"]:
            subprocess.Popen(wanted["onstart"], stdout=log, stderr=log, env=wanted["environment"], **own)
    return ""


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end_children() -> None:
    """Kill all children, then those whose parents these were, until there is none.

    Only children are killed, and only this process waits for them: a number cannot have passed to a stranger.
    """
    while children := _children():
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)


def _children() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError):
                text = Path("/proc", name, "stat").read_bytes()
                if int(text[text.rindex(b")") + 2 :].split()[1]) == os.getpid():
                    found.append(int(name))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
