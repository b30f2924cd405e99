from __future__ import annotations

import ast
import fcntl
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
    PYTHON,
    SAVES_ON_SIGTERM,
    SUPERVISOR,
    WAITS,
    Attempts,
    ask_stop,
    completed_claim,
    document,
    is_ready,
    text,
    until,
)
from tests.fakes.files_now import files_now

EXIT_KEYS = {
    "attempt", "code", "signal", "cause", "stop_request", "started", "ended", "max_rss_mib", "leftover_pids",
}  # fmt: skip


@pytest.fixture
def attempts(tmp_path: Path) -> Iterator[Attempts]:
    started = Attempts(tmp_path)
    yield started
    started.close()


class TestTheFile:
    def test_is_python_3_8_and_standard_library_only(self) -> None:
        tree = ast.parse(SUPERVISOR.read_text(), feature_version=(3, 8))
        imported = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
        imported += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names

    def test_another_command_is_refused_with_the_right_one(self) -> None:
        done = subprocess.run([*PYTHON, str(SUPERVISOR), "swim"], capture_output=True, check=False, timeout=60)
        assert done.returncode == 2
        assert b"supervisor.py spawn" in done.stderr

    def test_a_copy_elsewhere_works(self, attempts: Attempts, tmp_path: Path) -> None:
        copy = tmp_path / "3f2a.py"
        copy.write_bytes(SUPERVISOR.read_bytes())
        spec = attempts.spec("print('hello')")
        done = subprocess.run(
            [*PYTHON, str(copy), "spawn"], input=json.dumps(spec).encode(), capture_output=True, check=True, cwd="/",
            timeout=60,
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
        beat = until(lambda: text(folder / "heartbeat"))
        until(lambda: int(text(folder / "heartbeat") or 0) > int(beat) + 1)
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
        child = completed_claim(folder)["child"]["pid"]
        assert secret.encode() in Path(f"/proc/{child}/environ").read_bytes()
        for pid in (child, answer["pid"]):
            assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert secret.encode() not in Path(f"/proc/{answer['pid']}/environ").read_bytes()
        ask_stop(folder, reason="seen enough", grace_s=0)
        document(folder / "exit.json")
        assert [path for path, data in files_now(folder.parent).items() if secret.encode() in data] == []
