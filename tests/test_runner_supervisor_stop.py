from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.attempts import (
    IGNORES_SIGTERM,
    SAVES_ON_SIGTERM,
    STRAY,
    SUPERVISOR,
    WAITS,
    Attempts,
    ask_stop,
    completed_claim,
    document,
    exists,
    is_ready,
    stray_pid,
    text,
    until,
)

# A second process of the same group: tells when it gets SIGTERM, and stays.
WORKER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: print("worker got SIGTERM", flush=True))
print("ready", flush=True)
while True:
    time.sleep(0.02)
"""


@pytest.fixture
def attempts(tmp_path: Path) -> Iterator[Attempts]:
    started = Attempts(tmp_path)
    yield started
    started.close()


class TestStop:
    def test_the_leader_saves_and_leaves(self, attempts: Attempts) -> None:
        folder, _ = attempts.start(SAVES_ON_SIGTERM)
        until(lambda: is_ready(folder))
        ask_stop(folder, reason="aborted(regress)", grace_s=9)
        ended = document(folder / "exit.json")
        assert (ended["cause"], ended["code"]) == ("stopped", 75)
        assert ended["stop_request"] == {"reason": "aborted(regress)", "grace_s": 9}
        assert (folder / "stdout.log").read_text() == "ready\nsaved\n"

    def test_workers_live_until_the_leader_has_saved(self, attempts: Attempts) -> None:
        program = f"""
import signal, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-I", "-S", "-c", {WORKER!r}])
def save(number, frame):
    print("worker lives:", worker.poll() is None, flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while True:
    time.sleep(0.02)
"""
        folder, _ = attempts.start(program, term_s=0.2)
        until(lambda: is_ready(folder, count=2))
        ask_stop(folder, reason="enough", grace_s=10)
        ended = document(folder / "exit.json")
        said = (folder / "stdout.log").read_text().split("\n", 2)[2]
        assert said == "worker lives: True\nworker got SIGTERM\n"
        assert (ended["code"], ended["leftover_pids"]) == (75, [])
        assert attempts.marked() == []

    def test_who_ignores_sigterm_is_killed_after_the_grace(self, attempts: Attempts) -> None:
        folder, _ = attempts.start(IGNORES_SIGTERM, term_s=0.2)
        until(lambda: is_ready(folder))
        ask_stop(folder, reason="enough", grace_s=0.3)
        ended = document(folder / "exit.json")
        assert (ended["cause"], ended["code"], ended["signal"]) == ("stopped", None, signal.SIGKILL)
        assert ended["leftover_pids"] == []
        steps = (folder / "supervisor.log").read_text()
        assert steps.index("SIGTERM to the leader") < steps.index("SIGKILL")

    def test_a_second_request_may_shorten_the_grace(self, attempts: Attempts) -> None:
        folder, _ = attempts.start(IGNORES_SIGTERM)
        until(lambda: is_ready(folder))
        ask_stop(folder, reason="please", grace_s=3600)
        until(lambda: "SIGTERM to the leader" in text(folder / "supervisor.log"))
        ask_stop(folder, reason="now", grace_s=0, term_s=0)
        ended = document(folder / "exit.json")
        assert ended["stop_request"] == {"reason": "now", "grace_s": 0}
        assert ended["signal"] == signal.SIGKILL

    @pytest.mark.parametrize("text", ["", "[]", "{broken", '{"grace_s": "soon"}'])
    def test_a_request_that_cannot_be_read_stops_too(self, attempts: Attempts, text: str) -> None:
        folder, _ = attempts.start(SAVES_ON_SIGTERM, grace_s=7)
        until(lambda: is_ready(folder))
        (folder / "stop.json").write_text(text)
        ended = document(folder / "exit.json")
        assert (ended["cause"], ended["code"], ended["stop_request"]["grace_s"]) == ("stopped", 75, 7)

    def test_sigterm_to_the_supervisor_walks_the_same_way(self, attempts: Attempts) -> None:
        folder, answer = attempts.start(SAVES_ON_SIGTERM)
        until(lambda: is_ready(folder))
        os.kill(answer["pid"], signal.SIGTERM)
        ended = document(folder / "exit.json")
        assert (ended["cause"], ended["code"]) == ("stopped", 75)
        assert "SIGTERM" in ended["stop_request"]["reason"]

    def test_a_suspended_leader_is_woken_to_save(self, attempts: Attempts) -> None:
        folder, _ = attempts.start(SAVES_ON_SIGTERM)
        until(lambda: is_ready(folder))
        os.kill(completed_claim(folder)["child"]["pid"], signal.SIGSTOP)
        ask_stop(folder, reason="enough", grace_s=10)
        assert document(folder / "exit.json")["code"] == 75

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ({"attempt": 1, "seq": 3, "probe_every_steps": 50, "stop": None}, {"seq": 4, "stop": "checkpoint"}),
            ({"attempt": 1, "seq": 3, "probe_every_steps": 50, "stop": "checkpoint"}, {}),
            ({"attempt": 2, "seq": 3, "probe_every_steps": 50, "stop": None}, {}),
        ],
    )
    def test_control_of_this_attempt_asks_too(
        self, attempts: Attempts, before: dict[str, Any], after: dict[str, Any]
    ) -> None:
        folder, _ = attempts.start(SAVES_ON_SIGTERM)
        until(lambda: is_ready(folder))
        control = folder.parent / "control.json"
        control.write_text(json.dumps(before))
        ask_stop(folder, reason="enough", grace_s=10)
        document(folder / "exit.json")
        assert json.loads(control.read_text()) == {**before, **after}


class TestTheTree:
    def test_strays_end_with_the_leader(self, attempts: Attempts) -> None:
        folder, _ = attempts.start(STRAY, term_s=0.2)
        ended = document(folder / "exit.json")
        assert (ended["cause"], ended["code"], ended["leftover_pids"]) == ("exited", 0, [])
        assert not exists(stray_pid(folder))

    def test_a_stray_that_dropped_its_environment_is_still_a_descendant(self, attempts: Attempts) -> None:
        becomes = [sys.executable, "-ISc", IGNORES_SIGTERM]
        program = STRAY.replace("signal.pause()", f"os.execve({sys.executable!r}, {becomes!r}, {{}})")
        folder, _ = attempts.start(program + "signal.pause()", term_s=0.2)
        pid = stray_pid(folder)
        until(lambda: is_ready(folder))
        assert b"RUNNER_ATTEMPT" not in Path(f"/proc/{pid}/environ").read_bytes()
        ask_stop(folder, reason="enough", grace_s=0)
        assert document(folder / "exit.json")["leftover_pids"] == []
        assert not exists(pid)

    def test_what_cannot_be_killed_is_named(self, attempts: Attempts, tmp_path: Path) -> None:
        spec = attempts.spec(STRAY, term_s=0.1)
        patched = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "from runner import supervisor\n"
            "supervisor.send = lambda pid, number: None\n"
            "supervisor.KILL_WAIT_S = 0.1\n"
            "print(supervisor.spawn(sys.stdin.buffer.readline()))"
        )
        root = str(SUPERVISOR.parents[1])
        subprocess.run(
            [sys.executable, "-c", patched, root], input=json.dumps(spec).encode(), check=True, timeout=60,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        folder = Path(spec["attempt_dir"])
        assert document(folder / "exit.json")["leftover_pids"] == [stray_pid(folder)]

    def test_orphans_that_end_leave_no_zombies(self, attempts: Attempts) -> None:
        program = """
import os, signal
for _ in range(5):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
print("ready", flush=True)
signal.pause()
"""
        folder, answer = attempts.start(program)
        until(lambda: is_ready(folder))
        child = completed_claim(folder)["child"]["pid"]
        until(lambda: _children(answer["pid"]) == [child])

    def test_another_attempt_is_left_alone(self, attempts: Attempts) -> None:
        first, _ = attempts.start(WAITS)
        second, _ = attempts.start(WAITS, number=2)
        until(lambda: is_ready(first) and is_ready(second))
        ask_stop(first, reason="enough", grace_s=0)
        document(first / "exit.json")
        assert exists(completed_claim(second)["child"]["pid"])
        assert not (second / "exit.json").exists()


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
