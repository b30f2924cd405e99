from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.attempts import (
    PYTHON,
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

# A spawner of little patience, which also says whom it forked; it goes on until its input ends.
IMPATIENT = """
import importlib.util, json, os, signal, sys
found = importlib.util.spec_from_file_location("supervisor", sys.argv[1])
supervisor = importlib.util.module_from_spec(found)
found.loader.exec_module(supervisor)
supervisor.READY_S = 0.2
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
fork, forked = os.fork, []
def noted():
    pid = fork()
    forked.append(pid)
    return pid
os.fork = noted
answer = supervisor.spawn(sys.stdin.buffer.readline())
print(json.dumps({"forked": forked, "answer": answer}), flush=True)
sys.stdin.buffer.read()
"""


@pytest.fixture
def attempts(tmp_path: Path) -> Iterator[Attempts]:
    started = Attempts(tmp_path)
    yield started
    started.close()


class TestLiveness:
    def test_identity_and_heartbeat(self, attempts: Attempts) -> None:
        folder, answer = attempts.start(WAITS)
        until(lambda: is_ready(folder))
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        written = completed_claim(folder)
        assert {key: answer[key] for key in written["supervisor"]} == written["supervisor"]
        assert written["supervisor"]["boot_id"] == written["child"]["boot_id"] == boot_id
        assert written["child"]["start_ticks"] == _start_ticks(written["child"]["pid"])
        assert written["child"]["init_start_ticks"] == _start_ticks(1)
        first = int(until(lambda: text(folder / "heartbeat")))
        until(lambda: int(text(folder / "heartbeat") or 0) > first + 2)

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
        assert spawner.wait(60) == (-signal.SIGKILL if how == "kill" else 0)
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
        until(lambda: "saved" in text(folder / "stdout.log"))
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
        until(lambda: not exists(completed_claim(folder)["child"]["pid"]))
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

    def test_what_could_not_claim_its_attempt_in_time_never_starts(self, attempts: Attempts) -> None:
        spec = attempts.spec("open('started', 'w')")
        folder = Path(spec["attempt_dir"])
        folder.mkdir()
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        argv = [*PYTHON, "-c", IMPATIENT, str(SUPERVISOR)]
        with subprocess.Popen(argv, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as spawner:
            assert spawner.stdin is not None
            assert spawner.stdout is not None
            spawner.stdin.write(json.dumps(spec).encode() + b"\n")
            said = json.loads(spawner.stdout.readline())
            (pid,) = said["forked"]
            assert said["answer"] == {
                "attempt": spec["attempt"],
                "error": "no supervisor claimed the attempt within 0.2 s",
            }
            try:
                until(lambda: not exists(pid))
            finally:
                os.close(lock)
                spawner.stdin.close()
        assert list(folder.iterdir()) == []
        assert "error" not in attempts.ask(attempts.spawner(), spec), "it may be asked for again"
        assert document(folder / "exit.json")["code"] == 0

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
        child = completed_claim(folder)["child"]["pid"]
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


def _start_ticks(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[19])
