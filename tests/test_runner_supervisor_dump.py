from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.fakes.attempts import Attempts, ask_stop, completed_claim, document, exists, is_ready, text, until
from tests.fakes.trainer_runs import SMALL

ROOT = Path(__file__).resolve().parents[1]

TELLS_STACKS = """
import faulthandler, signal
faulthandler.register(signal.SIGUSR1, file=2, all_threads=True, chain=False)
def waits_for_ever():
    print("ready", flush=True)
    while True:
        signal.pause()
waits_for_ever()
"""
HAS_NO_HANDLER = "import time; print('ready', flush=True); time.sleep(1000)"
IGNORES_SIGUSR1 = f"import signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN); {HAS_NO_HANDLER}"
# The leader catches the signal, and the worker that it starts would die of it.
HAS_A_WORKER = f"""
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-I", "-S", "-c", {HAS_NO_HANDLER!r}])
print("worker", worker.pid, flush=True)
{TELLS_STACKS}
"""


@pytest.fixture
def attempts(tmp_path: Path) -> Iterator[Attempts]:
    started = Attempts(tmp_path)
    yield started
    started.close()


def ask_dump(folder: Path, content: str) -> None:
    """Write dump.json as the controller does."""
    part = folder / "dump.json.new"
    part.write_text(content)
    part.rename(folder / "dump.json")


def stacks(folder: Path) -> int:
    """How many dumps the error log of an attempt holds that name the function it waits in."""
    return text(folder / "stderr.log").count("in waits_for_ever")


def beat_twice(folder: Path) -> None:
    """Return once the supervisor has looked at its files again for sure."""
    first = int(until(lambda: text(folder / "heartbeat")))
    until(lambda: int(text(folder / "heartbeat") or 0) > first + 1)


class TestADump:
    def test_the_stack_is_in_the_error_log_and_the_process_lives_on(self, attempts: Attempts) -> None:
        folder, _ = attempts.start(TELLS_STACKS)
        until(lambda: is_ready(folder))
        ask_dump(folder, json.dumps({"seq": 1}))
        until(lambda: stacks(folder) == 1)
        assert exists(completed_claim(folder)["child"]["pid"])
        assert "dump 1: SIGUSR1 to the leader\n" in until(lambda: text(folder / "supervisor.log"))
        assert not (folder / "exit.json").exists()

    def test_one_for_each_number(self, attempts: Attempts) -> None:
        folder, _ = attempts.start(TELLS_STACKS)
        until(lambda: is_ready(folder))
        for seq in (1, 2, 7):
            before = stacks(folder)
            ask_dump(folder, json.dumps({"seq": seq}))
            until(lambda: stacks(folder) > before)  # noqa: B023  (called in this turn of the loop only)
            ask_dump(folder, json.dumps({"seq": seq, "written": "again"}))
            beat_twice(folder)
        assert stacks(folder) == 3

    @pytest.mark.parametrize("program", [HAS_NO_HANDLER, IGNORES_SIGUSR1, ["sleep", "1000"]])
    def test_a_process_without_a_handler_is_left_alone(self, attempts: Attempts, program: str | list[str]) -> None:
        folder, _ = attempts.start(program)
        pid = completed_claim(folder)["child"]["pid"]
        until(lambda: isinstance(program, list) or is_ready(folder))
        ask_dump(folder, json.dumps({"seq": 1}))
        assert "dump 1: the leader does not catch SIGUSR1\n" in until(lambda: text(folder / "supervisor.log"))
        beat_twice(folder)
        assert exists(pid)
        ask_stop(folder, reason="enough", grace_s=5)
        assert document(folder / "exit.json")["signal"] == signal.SIGTERM

    def test_workers_do_not_get_it(self, attempts: Attempts) -> None:
        folder, _ = attempts.start(HAS_A_WORKER)
        until(lambda: is_ready(folder, count=2))
        ask_dump(folder, json.dumps({"seq": 1}))
        until(lambda: stacks(folder) == 1)
        worker = next(line for line in text(folder / "stdout.log").splitlines() if line.startswith("worker"))
        assert exists(int(worker.split()[1]))

    def test_a_suspended_process_stays_so_and_answers_when_it_goes_on(self, attempts: Attempts) -> None:
        folder, _ = attempts.start(TELLS_STACKS)
        until(lambda: is_ready(folder))
        pid = completed_claim(folder)["child"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        until(lambda: Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T")
        ask_dump(folder, json.dumps({"seq": 1}))
        until(lambda: "SIGUSR1 to the leader" in text(folder / "supervisor.log"))
        beat_twice(folder)
        assert Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
        os.kill(pid, signal.SIGCONT)
        until(lambda: stacks(folder) == 1)

    @pytest.mark.parametrize("content", ["", "{", "[1]", '{"seq": null}', '{"seq": NaN}', '{"seq": "x"}', "{}"])
    def test_what_is_no_request_changes_nothing(self, attempts: Attempts, content: str) -> None:
        folder, _ = attempts.start(TELLS_STACKS)
        until(lambda: is_ready(folder))
        ask_dump(folder, content)
        beat_twice(folder)
        assert text(folder / "supervisor.log") == ""
        ask_dump(folder, json.dumps({"seq": 1}))
        until(lambda: stacks(folder) == 1)

    def test_a_request_beside_a_stop_does_no_harm(self, attempts: Attempts) -> None:
        folder, _ = attempts.start(TELLS_STACKS)
        until(lambda: is_ready(folder))
        ask_dump(folder, json.dumps({"seq": 1}))
        ask_stop(folder, reason="enough", grace_s=5)
        assert document(folder / "exit.json")["cause"] == "stopped"


class TestTheTrainer:
    @pytest.mark.long
    def test_it_tells_its_stacks_while_it_computes_and_ends_as_if_nothing_was(
        self, attempts: Attempts, tmp_path: Path
    ) -> None:
        config = tmp_path / "config.yaml"
        run_dir = Path(attempts.spec("")["run_dir"])
        trainer = {**SMALL, "steps": 4000, "validation": {**SMALL["validation"], "every": 4000}}
        config.write_text(yaml.safe_dump({"seed": 1, "run": "small", "trainer": trainer}))
        argv = [sys.executable, "-m", "trainer", "train", str(config), "--run-dir", str(run_dir), "--attempt", "1"]
        cap = {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
        folder, _ = attempts.start([*argv], cwd=str(ROOT), env=cap)
        until(lambda: '"kind": "train"' in text(folder / "metrics.jsonl"), within_s=60)
        ask_dump(folder, json.dumps({"seq": 1}))
        until(lambda: "in _loop" in text(folder / "stderr.log"))
        seen = text(folder / "stderr.log")
        assert "Thread 0x" in seen
        assert f"{ROOT}/trainer/train.py" in seen
        lines = text(folder / "metrics.jsonl").count("\n")
        until(lambda: text(folder / "metrics.jsonl").count("\n") > lines)
        ask_stop(folder, reason="enough", grace_s=20)
        ended = document(folder / "exit.json")
        assert (ended["code"], ended["signal"]) == (75, None)

    @pytest.mark.parametrize("command", ["train", "evaluate"])
    def test_the_handler_costs_no_torch_and_stands_before_anything_is_read(self, command: str) -> None:
        program = f"import sys, trainer.__main__ as commands\ncommands._COMMANDS[{command!r}](['--help'])\n"
        ends_with = (
            "import atexit, sys\n"
            "def tell():\n"
            "    caught = [line for line in open('/proc/self/status') if line.startswith('SigCgt:')][0]\n"
            "    print('caught', int(caught.split()[1], 16) >> 9 & 1, 'torch' in sys.modules)\n"
            "atexit.register(tell)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", ends_with + program],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            timeout=60,
        )
        assert done.stdout.splitlines()[-1] == f"caught 1 {command == 'evaluate'}"
