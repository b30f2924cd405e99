from __future__ import annotations

import ast
import fcntl
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.attempts import (
    IGNORES_SIGTERM,
    PYTHON,
    SAVES_ON_SIGTERM,
    SUPERVISOR,
    WAITS,
    Attempts,
    ask_stop,
    document,
    exists,
    is_ready,
    until,
)

EXIT_KEYS = {
    "attempt", "code", "signal", "cause", "stop_request", "started", "ended", "max_rss_mib", "leftover_pids",
}  # fmt: skip
# A second process of the same group: tells when it gets SIGTERM, and stays.
WORKER = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: print("worker got SIGTERM", flush=True))
print("ready", flush=True)
while True:
    signal.pause()
"""
# Leaves its session, its parent and its group, as a daemon does.
STRAY = """
import os, signal
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("stray", os.getpid(), flush=True)
        while True:
            signal.pause()
    os._exit(0)
os.wait()
"""


@pytest.fixture
def attempts(tmp_path: Path) -> Iterator[Attempts]:
    started = Attempts(tmp_path)
    yield started
    started.close()


def stray_pid(folder: Path) -> int:
    log = folder / "stdout.log"
    lines = until(lambda: [line for line in _text(log).splitlines() if line.startswith("stray ")])
    return int(lines[0].split()[1])


class TestTheFile:
    def test_is_python_3_8_and_standard_library_only(self) -> None:
        tree = ast.parse(SUPERVISOR.read_text(), feature_version=(3, 8))
        imported = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
        imported += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names

    def test_another_command_is_refused_with_the_right_one(self) -> None:
        done = subprocess.run([*PYTHON, str(SUPERVISOR), "swim"], capture_output=True, check=False, timeout=20)
        assert done.returncode == 2
        assert b"supervisor.py spawn" in done.stderr

    def test_a_copy_elsewhere_works(self, attempts: Attempts, tmp_path: Path) -> None:
        copy = tmp_path / "3f2a.py"
        copy.write_bytes(SUPERVISOR.read_bytes())
        spec = attempts.spec("print('hello')")
        done = subprocess.run(
            [*PYTHON, str(copy), "spawn"], input=json.dumps(spec).encode(), capture_output=True, check=True, cwd="/",
            timeout=20,
        )  # fmt: skip
        assert json.loads(done.stdout)["attempt"] == spec["attempt"]
        assert document(Path(spec["attempt_dir"]) / "exit.json")["code"] == 0


class TestHowAnAttemptEnds:
    @pytest.mark.parametrize("code", [0, 3, 75])
    def test_exit_code(self, attempts: Attempts, code: int) -> None:
        ended = attempts.run(f"import sys; sys.exit({code})")
        assert set(ended) == EXIT_KEYS
        assert (ended["code"], ended["signal"], ended["cause"]) == (code, None, "exited")
        assert (ended["stop_request"], ended["leftover_pids"]) == (None, [])
        assert ended["attempt"] == attempts.spec("")["attempt"]
        assert 0 < ended["started"] <= ended["ended"]

    def test_a_signal_that_nobody_here_sent(self, attempts: Attempts) -> None:
        ended = attempts.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        assert (ended["code"], ended["signal"], ended["cause"]) == (None, signal.SIGKILL, "killed")

    def test_deadline(self, attempts: Attempts) -> None:
        ended = attempts.run(SAVES_ON_SIGTERM, deadline_s=0.5)
        assert (ended["cause"], ended["code"], ended["stop_request"]) == ("deadline", 75, None)
        assert ended["ended"] - ended["started"] >= 0.5

    def test_output_is_kept_apart(self, attempts: Attempts) -> None:
        folder, _ = attempts.start("import sys; print('out'); print('err', file=sys.stderr)")
        document(folder / "exit.json")
        assert (folder / "stdout.log").read_text() == "out\n"
        assert (folder / "stderr.log").read_text() == "err\n"

    def test_memory_is_that_of_the_whole_tree(self, attempts: Attempts) -> None:
        program = """
import os, signal
first, second = os.pipe()
child = os.fork()
block = b"x" * 40_000_000
if child == 0:
    os.write(second, b"1")
    signal.pause()
os.read(first, 1)
print("ready", flush=True)
signal.pause()
"""
        folder, _ = attempts.start(program)
        until(lambda: is_ready(folder))
        beat = (folder / "heartbeat").read_text()
        until(lambda: int((folder / "heartbeat").read_text() or 0) > int(beat) + 1)
        ask_stop(folder, reason="enough", grace_s=0)
        assert 80 < document(folder / "exit.json")["max_rss_mib"] < 400

    @pytest.mark.parametrize(
        ("argv", "other", "said"),
        [
            (["no-such-program"], {}, "no-such-program"),
            (["./not-executable"], {}, "Permission denied"),
            (["./no-interpreter-line"], {}, "Exec format error"),
            (["true"], {"cwd": "/no/such/folder"}, "/no/such/folder"),
            (["true"], {"cores": [4095]}, "4095"),
            (["true"], {"env": {"a=b": "c"}}, "environment"),
        ],
    )
    def test_what_cannot_start_says_why(
        self, attempts: Attempts, argv: list[str], other: dict[str, Any], said: str
    ) -> None:
        run_dir = Path(attempts.spec("")["run_dir"])
        (run_dir / "not-executable").write_text("#!/bin/sh\n")
        (run_dir / "no-interpreter-line").write_bytes(b"\0\0")
        (run_dir / "no-interpreter-line").chmod(0o700)
        ended = attempts.run(argv, **other)
        assert (ended["cause"], ended["code"], ended["signal"]) == ("spawn_failed", None, None)
        assert argv[0] in ended["error"]
        assert said in ended["error"]
        assert set(ended) == EXIT_KEYS | {"error"}


class TestTheProcessThatIsStarted:
    def test_environment_is_the_specs_and_the_marks_only(self, attempts: Attempts) -> None:
        attempts.spawner(env={**os.environ, "OF_THE_SPAWNER": "1"})
        folder, _ = attempts.start(
            "import os, json; print(json.dumps(dict(os.environ)))", env={"RUNNER_SEED": "7", "NAME": "välue"}
        )
        document(folder / "exit.json")
        seen = json.loads((folder / "stdout.log").read_text())
        seen.pop("LC_CTYPE", None)  # the interpreter sets this one by itself
        assert seen == {
            "RUNNER_SEED": "7",
            "NAME": "välue",
            "RUNNER_RUN_DIR": str(folder.parent),
            "PYTHONUNBUFFERED": "1",
            "RUNNER_ATTEMPT": attempts.spec("")["attempt"],
            "RUNNER_ATTEMPT_DIR": str(folder),
        }

    def test_it_leads_a_session_of_its_own_and_inherits_no_files(self, attempts: Attempts) -> None:
        held = fcntl.fcntl(0, fcntl.F_DUPFD, 100)
        attempts.spawner(pass_fds=[held])
        os.close(held)
        folder, answer = attempts.start(
            "import os, signal\n"
            "print(os.getpid(), os.getsid(0), os.getpgid(0), os.readlink('/proc/self/fd/0'), os.getcwd(), flush=True)\n"
            "print(*[n for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + n)], 'ready',\n"
            "      flush=True)\n"
            "signal.pause()"
        )
        until(lambda: is_ready(folder))
        first, second = (folder / "stdout.log").read_text().splitlines()
        pid, session, group, stdin, cwd = first.split()
        assert pid == session == group
        assert (stdin, cwd) == ("/dev/null", str(folder.parent))
        assert second.split() == ["0", "1", "2", "ready"]
        supervisor = Path(f"/proc/{answer['pid']}/fd")
        assert os.getsid(answer["pid"]) == answer["pid"] != int(pid)
        assert {os.readlink(supervisor / name) for name in "012"} == {"/dev/null"}
        assert str(held) not in {path.name for path in supervisor.iterdir()}

    def test_signals_that_the_spawner_ignores_reach_it(self, attempts: Attempts) -> None:
        def ignore() -> None:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])

        attempts.spawner(preexec_fn=ignore)
        folder, _ = attempts.start("print(open('/proc/self/status').read())")
        document(folder / "exit.json")
        status = dict(
            line.split(":\t", 1) for line in (folder / "stdout.log").read_text().splitlines() if ":\t" in line
        )
        assert not int(status["SigIgn"], 16) & 1 << signal.SIGHUP - 1
        assert not int(status["SigIgn"], 16) & 1 << signal.SIGCHLD - 1
        assert int(status["SigBlk"], 16) == 0

    def test_it_is_pinned_and_its_supervisor_is_not(self, attempts: Attempts) -> None:
        usable = sorted(os.sched_getaffinity(0))
        folder, answer = attempts.start(
            "import os, signal; print(sorted(os.sched_getaffinity(0)), 'ready', flush=True); signal.pause()",
            cores=usable[-1:],
        )
        until(lambda: is_ready(folder))
        assert (folder / "stdout.log").read_text() == f"{usable[-1:]} ready\n"
        assert sorted(os.sched_getaffinity(answer["pid"])) == usable

    def test_secrets_are_in_no_file_and_no_command_line(self, attempts: Attempts) -> None:
        secret = "s3cret-" + os.urandom(8).hex()
        folder, answer = attempts.start(WAITS, env={"TOKEN": secret})
        until(lambda: is_ready(folder))
        child = document(folder / "supervisor.json")["child"]["pid"]
        assert secret.encode() in Path(f"/proc/{child}/environ").read_bytes()
        for pid in (child, answer["pid"]):
            assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert secret.encode() not in Path(f"/proc/{answer['pid']}/environ").read_bytes()
        ask_stop(folder, reason="seen enough", grace_s=0)
        document(folder / "exit.json")
        for path in folder.parent.rglob("*"):
            assert path.is_dir() or secret.encode() not in path.read_bytes(), path


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
import signal, subprocess, sys
worker = subprocess.Popen([sys.executable, "-I", "-S", "-c", {WORKER!r}])
def save(number, frame):
    print("worker lives:", worker.poll() is None, flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while True:
    signal.pause()
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
        until(lambda: "SIGTERM to the leader" in _text(folder / "supervisor.log"))
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
        os.kill(document(folder / "supervisor.json")["child"]["pid"], signal.SIGSTOP)
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
            [sys.executable, "-c", patched, root], input=json.dumps(spec).encode(), check=True, timeout=20,
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
        child = document(folder / "supervisor.json")["child"]["pid"]
        until(lambda: _children(answer["pid"]) == [child])

    def test_another_attempt_is_left_alone(self, attempts: Attempts) -> None:
        first, _ = attempts.start(WAITS)
        second, _ = attempts.start(WAITS, number=2)
        until(lambda: is_ready(first) and is_ready(second))
        ask_stop(first, reason="enough", grace_s=0)
        document(first / "exit.json")
        assert exists(document(second / "supervisor.json")["child"]["pid"])
        assert not (second / "exit.json").exists()


class TestLiveness:
    def test_identity_and_heartbeat(self, attempts: Attempts) -> None:
        folder, answer = attempts.start(WAITS)
        until(lambda: is_ready(folder))
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        written = until(lambda: (found := document(folder / "supervisor.json"))["child"] and found)
        assert {key: answer[key] for key in written["supervisor"]} == written["supervisor"]
        assert written["supervisor"]["boot_id"] == written["child"]["boot_id"] == boot_id
        assert written["child"]["start_ticks"] == _start_ticks(written["child"]["pid"])
        assert written["child"]["init_start_ticks"] == _start_ticks(1)
        first = int((folder / "heartbeat").read_text())
        until(lambda: int((folder / "heartbeat").read_text() or 0) > first + 2)

    def test_files_are_private(self, attempts: Attempts) -> None:
        folder, _ = attempts.start("")
        document(folder / "exit.json")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}

    @pytest.mark.parametrize("how", ["kill", "close its input"])
    def test_the_spawner_ends_and_supervisors_live_on(self, attempts: Attempts, how: str) -> None:
        spawner = attempts.spawner()
        folder, answer = attempts.start(SAVES_ON_SIGTERM)
        until(lambda: is_ready(folder))
        if how == "kill":
            spawner.kill()
        else:
            assert spawner.stdin is not None
            spawner.stdin.close()
            spawner.stdin = None
        assert spawner.wait(20) == (-signal.SIGKILL if how == "kill" else 0)
        assert exists(answer["pid"])
        os.kill(answer["pid"], signal.SIGHUP)
        ask_stop(folder, reason="enough", grace_s=10)
        assert document(folder / "exit.json")["code"] == 75

    def test_a_killed_supervisor_is_seen_and_its_attempt_ended_by_another(self, attempts: Attempts) -> None:
        folder, answer = attempts.start(SAVES_ON_SIGTERM)
        until(lambda: is_ready(folder))
        os.kill(answer["pid"], signal.SIGKILL)
        until(lambda: not exists(answer["pid"]))
        # Nobody watches the leader any more, so it was asked to save and leave.
        until(lambda: "saved" in _text(folder / "stdout.log"))
        assert not (folder / "exit.json").exists()
        again = attempts.ask(attempts.spawner(), attempts.spec(WAITS, reap=True))
        ended = document(folder / "exit.json")
        assert "existing" not in again
        assert (ended["cause"], ended["code"], ended["signal"]) == ("killed", None, None)
        assert "supervisor was lost" in ended["error"]
        assert attempts.marked() == []
        assert attempts.ask(attempts.spawner(), attempts.spec(WAITS, reap=True))["existing"] is True

    def test_marked_strays_of_a_killed_supervisor_are_found(self, attempts: Attempts) -> None:
        folder, answer = attempts.start(STRAY + "signal.pause()")
        pid = stray_pid(folder)
        os.kill(answer["pid"], signal.SIGKILL)
        until(lambda: not exists(document(folder / "supervisor.json")["child"]["pid"]))
        assert exists(pid)
        attempts.ask(attempts.spawner(), attempts.spec("", reap=True, term_s=0.1))
        assert document(folder / "exit.json")["leftover_pids"] == []
        assert not exists(pid)

    def test_a_number_that_went_to_another_process_harms_nobody(self, attempts: Attempts) -> None:
        spec = attempts.spec("", reap=True, grace_s=0.1, term_s=0.1)
        with subprocess.Popen([*PYTHON, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
            earlier = {"boot_id": "of-an-earlier-boot", "init_start_ticks": 1, "pid": bystander.pid, "start_ticks": 1}
            folder = Path(spec["attempt_dir"])
            folder.mkdir()
            (folder / "supervisor.json").write_text(json.dumps({"supervisor": earlier, "child": earlier}))
            assert "existing" not in attempts.ask(attempts.spawner(), spec)
            assert document(folder / "exit.json")["leftover_pids"] == []
            assert bystander.poll() is None
            bystander.communicate(b"\n")

    def test_a_removed_folder_ends_the_attempt(self, attempts: Attempts) -> None:
        folder, answer = attempts.start(WAITS)
        until(lambda: is_ready(folder))
        folder.rename(folder.with_name("elsewhere"))
        until(lambda: not exists(answer["pid"]))
        assert attempts.marked() == []


class TestTheSpawner:
    def test_a_second_spawn_is_answered_with_the_first(self, attempts: Attempts) -> None:
        spec = attempts.spec("open('starts', 'a').write('x')\n" + WAITS)
        spawner = attempts.spawner()
        first = attempts.ask(spawner, spec)
        folder = Path(spec["attempt_dir"])
        until(lambda: is_ready(folder))
        for other in (spawner, attempts.spawner()):
            assert attempts.ask(other, spec) == {**first, "existing": True}
            assert attempts.ask(other, {**spec, "reap": True}) == {**first, "existing": True}
        ask_stop(folder, reason="enough", grace_s=0)
        document(folder / "exit.json")
        assert attempts.ask(spawner, spec) == {**first, "existing": True}
        assert (folder.parent / "starts").read_text() == "x"

    def test_of_many_at_once_one_starts(self, attempts: Attempts) -> None:
        spawners = [attempts.spawner() for _ in range(4)]
        for spawner in spawners:
            attempts.ask(spawner, b"are you awake?\n")
        for number in range(10):
            spec = attempts.spec("open('starts', 'a').write('x')", number=number)
            with ThreadPoolExecutor(len(spawners)) as pool:
                answers = list(pool.map(attempts.ask, spawners, [spec] * len(spawners)))
            document(Path(spec["attempt_dir"]) / "exit.json")
            assert len({answer["pid"] for answer in answers}) == 1
            assert sorted(answer.get("existing", False) for answer in answers) == [False, True, True, True]
        assert (Path(spec["run_dir"]) / "starts").read_text() == "x" * 10

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            (b"\xff\xfe\n", "utf-8"),
            (b"not json\n", "line 1 column 1"),
            (b"[" * 100_000 + b"\n", "recursion"),
            (b"[]\n", "JSON object"),
            (b"{}\n", "attempt: a str is needed"),
        ],
    )
    def test_garbage_is_answered_and_the_next_line_read(self, attempts: Attempts, line: bytes, said: str) -> None:
        spawner = attempts.spawner()
        answer = attempts.ask(spawner, line)
        assert set(answer) == {"attempt", "error"}
        assert answer["attempt"] is None
        assert said in answer["error"]
        assert "error" not in attempts.ask(spawner, attempts.spec(""))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"argv": []}, "argv"),
            ({"argv": ["true", 1]}, "argv"),
            ({"argv": ["tr\0ue"]}, "argv"),
            ({"env": {"A": 1}}, "env"),
            ({"env": None}, "env"),
            ({"cwd": 7}, "cwd"),
            ({"attempt_dir": "runs/attempt-1"}, "attempt_dir"),
            ({"cores": [-1]}, "cores"),
            ({"cores": [True]}, "cores"),
            ({"deadline_s": -1}, "deadline_s"),
            ({"grace_s": None}, "grace_s"),
            ({"term_s": True}, "term_s"),
            ({"heartbeat_s": "1"}, "heartbeat_s"),
            ({"color": "red"}, "allowed: attempt"),
        ],
    )
    def test_a_wrong_spec_names_the_key(self, attempts: Attempts, change: dict[str, Any], said: str) -> None:
        spec = attempts.spec("", **{"env": {"TOKEN": "s3cret"}, **change})
        answer = attempts.ask(attempts.spawner(), spec)
        assert (set(answer), answer["attempt"]) == ({"attempt", "error"}, spec["attempt"])
        assert said in answer["error"]
        assert "s3cret" not in answer["error"]
        assert not Path(attempts.spec("")["attempt_dir"]).exists()

    def test_durations_have_defaults(self, attempts: Attempts) -> None:
        spec = attempts.spec("")
        for key in ("cores", "deadline_s", "grace_s", "term_s", "heartbeat_s"):
            del spec[key]
        attempts.ask(attempts.spawner(), spec)
        assert document(Path(spec["attempt_dir"]) / "exit.json")["code"] == 0

    def test_an_attempt_folder_that_cannot_be_made(self, attempts: Attempts, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        answer = attempts.ask(
            attempts.spawner(), attempts.spec(WAITS, attempt_dir=str(tmp_path / "file" / "attempt-1"))
        )
        assert str(tmp_path / "file") in answer["error"]
        assert attempts.marked() == []


class TestAFullDisk:
    """A file size limit of 0 bytes makes every write fail, as a full disk does."""

    def test_nothing_starts_without_room_for_the_claim(self, attempts: Attempts) -> None:
        def no_room() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

        spec = attempts.spec("open('started', 'w')")
        answer = attempts.ask(attempts.spawner(preexec_fn=no_room), spec)
        assert f"cannot claim {spec['attempt_dir']}" in answer["error"]
        assert not (Path(spec["run_dir"]) / "started").exists()
        assert "error" not in attempts.ask(attempts.spawner(), spec)
        assert document(Path(spec["attempt_dir"]) / "exit.json")["code"] == 0

    def test_the_attempt_is_watched_to_its_end_and_written_down_when_there_is_room(self, attempts: Attempts) -> None:
        folder, answer = attempts.start(SAVES_ON_SIGTERM, term_s=0.1)
        until(lambda: is_ready(folder))
        child = document(folder / "supervisor.json")["child"]["pid"]
        resource.prlimit(answer["pid"], resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        ask_stop(folder, reason="enough", grace_s=10)
        until(lambda: not exists(child))
        assert exists(answer["pid"])
        assert not (folder / "exit.json").exists()
        resource.prlimit(answer["pid"], resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert document(folder / "exit.json")["code"] == 75

    def test_room_for_the_exit_record_is_held_from_the_start(self, attempts: Attempts) -> None:
        folder, _ = attempts.start(WAITS)
        until(lambda: is_ready(folder))
        held = (folder / "exit.json.part").stat()
        ask_stop(folder, reason="enough", grace_s=0)
        ended = document(folder / "exit.json")
        assert held.st_size > len(json.dumps(ended))
        assert held.st_ino == (folder / "exit.json").stat().st_ino


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _start_ticks(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[19])
