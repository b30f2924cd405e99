"""A short crash soak, proof that its checks can fail, and rough treatment of a home that is no kill."""

from __future__ import annotations

import ast
import inspect
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner.home import Home
from runner.places import Places
from tests.fakes.files_now import remove
from tests.fakes.kill_at_line import EFFECTS, LAUNCH, ROOT, SPAWNING, Kill, Site, lines_of
from tests.fakes.lab import Lab
from tests.fakes.soak_case import Arm, Plan, Told, make_plan, read_told, start_case
from tests.fakes.soak_checks import check

SOAK = Path(__file__).with_name("soak.py")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path, draws_reports=False)
    yield found
    found.clean_up()


def soak(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SOAK), *map(str, arguments)], capture_output=True, text=True, timeout=250, check=False
    )


def held_at(lab: Lab, arm: Path, step: int) -> Path:
    """Launch an arm that stands still at a step, wait until it does, and return the folder of its run."""
    planned = json.loads(lab.run("launch", arm, "--dry-run", "--json").stdout)["runs"][0]
    folder = lab.home / planned["run_dir"]
    folder.mkdir(parents=True)
    (folder / f"wait-at-{step}").touch()
    lab.run("launch", arm, "--detach")
    name = f"{planned['arm']}-s0"
    lab.until(lambda: lab.status().get(name, {}).get("points") == step, f"{step} points")
    return folder


def query(lab: Lab, text: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{lab.home}/runner.db?mode=ro", uri=True)) as connection:
        return connection.execute(text).fetchall()


def marked(lab: Lab) -> list[int]:
    """Processes that carry the mark of an attempt of this home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RUNNER_ATTEMPT_DIR", "").startswith(str(lab.home)):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_a_few_cases_of_the_soak() -> None:
    done = soak("--seed", 500, "--cases", 4)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every point once, no double start, no orphan, every run in its right state" in done.stdout


def test_every_place_where_the_soak_kills_exists() -> None:
    for file in (*EFFECTS, *LAUNCH, *SPAWNING):
        assert lines_of(file), file


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("file", [name for name in LAUNCH if "migrations" in name])
def test_a_launch_killed_while_it_makes_the_database_can_be_repeated(tmp_path: Path, file: str, at: int) -> None:
    (upgrade,) = [node for node in ast.parse((ROOT / file).read_text()).body if getattr(node, "name", "") == "upgrade"]
    statements = upgrade.body[1:]  # behind the docstring
    line = statements[at * (len(statements) - 1) // 2].lineno
    told = played(Kill((Site(file, line, 1),)), tmp_path, victim="launch")
    assert told.deaths[0].startswith(f"launch: killed at {file}")
    assert told.wrong == []


@pytest.mark.parametrize("name", ["release_all", "close"])
def test_what_a_killed_controller_held_is_given_back_by_the_next(tmp_path: Path, name: str) -> None:
    source, first = inspect.getsourcelines(getattr(Places, name))
    line = next(line for line in lines_of("runner/places.py") if line > first)
    assert line < first + len(source)
    told = played(Kill((Site("runner/places.py", line, 1),), after_s=30.0), tmp_path, victim="controller")
    assert told.deaths[0] == f"killed at runner/places.py:{line}"
    assert told.wrong == []


def played(kill: Kill, folder: Path, *, victim: str) -> Told:
    """A study of one short arm with one kill, of its launch or of its controller."""
    arms = (Arm("a", "works", "jsonl", 2, 0.0),)
    launch_kill, kills = (kill, ()) if victim == "launch" else (None, (kill,))
    plan = Plan(0, arms, launch_kill, kills, (0.0,) * len(kills), -1, real_report=False)
    os.waitpid(start_case(plan, folder / "case", check), 0)
    return read_told(plan, folder / "case")


def _delete_a_point(home: Home, _starts: Path) -> str:
    _change(home, "DELETE FROM points WHERE step = 3 AND series = (SELECT min(id) FROM series)")
    return "points missing"


def _change_a_value(home: Home, _starts: Path) -> str:
    _change(home, "UPDATE points SET value = 7 WHERE step = 3 AND series = (SELECT min(id) FROM series)")
    return "values differ"


def _invent_a_point(home: Home, _starts: Path) -> str:
    _change(home, "INSERT INTO points SELECT min(id), 999999, 1.0, 1.0 FROM series")
    return "strange"


def _start_twice(_home: Home, starts: Path) -> str:
    starts.write_text(starts.read_text() * 2)
    return "was started 2 times"


def _start_a_stranger(_home: Home, starts: Path) -> str:
    starts.write_text(starts.read_text() + "/elsewhere/attempt-1 5\n")
    return "no attempt says so"


def _leave_an_intent(home: Home, _starts: Path) -> str:
    _change(home, "UPDATE attempts SET phase = 'intended'")
    return "attempt left intended"


def _keep_the_lease(home: Home, _starts: Path) -> str:
    _change(home, "UPDATE leases SET state = 'owned'")
    return "left owned"


def _lose_an_answer(home: Home, _starts: Path) -> str:
    _change(home, "DELETE FROM answers")
    return "0 answers"


def _skip_a_state(home: Home, _starts: Path) -> str:
    _change(home, "DELETE FROM events WHERE what = 'starting'")
    return "the events jump"


def _end_otherwise(home: Home, _starts: Path) -> str:
    _change(home, "UPDATE runs SET state = 'lost', rule = 'vanished'")
    return "it ended as lost(vanished)"


def _change(home: Home, statement: str) -> None:
    with closing(sqlite3.connect(home.database)) as connection:
        connection.execute(statement)
        connection.commit()


@pytest.fixture(scope="module")
def finished_case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soak")
    done = soak("--seed", 7, "--keep", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "7"


@pytest.mark.parametrize(
    "spoil",
    [
        _delete_a_point,
        _change_a_value,
        _invent_a_point,
        _start_twice,
        _start_a_stranger,
        _leave_an_intent,
        _keep_the_lease,
        _lose_an_answer,
        _skip_a_state,
        _end_otherwise,
    ],
)
def test_the_checks_see_what_is_wrong(finished_case: Path, tmp_path: Path, spoil: Callable[[Home, Path], str]) -> None:
    # Attempts are told by their absolute folders, so it is the case's own place that is spoilt, and put back.
    kept = shutil.copytree(finished_case, tmp_path / "kept")
    home, starts, plan = Home(finished_case / "runs"), finished_case / "starts.log", make_plan(7)
    try:
        assert check(plan, home, starts)[0] == []
        complaint = spoil(home, starts)
        assert any(complaint in found for found in check(plan, home, starts)[0])
    finally:
        shutil.rmtree(finished_case)
        shutil.copytree(kept, finished_case)


def test_a_controller_that_was_suspended_loses_nothing_and_accuses_nobody(lab: Lab) -> None:
    folder = held_at(lab, lab.arm("talker", steps=30), 10)
    pid = lab.controller_pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    (folder / "wait-at-10").unlink()
    lab.until(lambda: (folder / "attempt-1" / "exit.json").exists(), "the training to end by itself")
    assert lab.status()["talker-s0"]["points"] == 10
    os.kill(pid, signal.SIGCONT)
    run = lab.until_state("talker-s0", "finished")
    assert (run["points"], run["attempts"], run["rejected_lines"], run["health"]) == (30, 1, 0, "ok")
    assert query(lab, "SELECT * FROM events WHERE what IN ('trouble', 'warning')") == []


def test_two_launches_at_once_make_one_set_of_runs(lab: Lab) -> None:
    script = (
        "import os\n"
        f"with open({str(lab.folder / 'starts')!r}, 'a') as file: print(os.environ['RUNNER_ATTEMPT_DIR'], file=file)\n"
        "print('step 1/1 loss=1')\n"
    )
    arms = [lab.arm(name, script, steps=1) for name in ("one", "two")]
    both = [lab.start("launch", *arms) for _ in range(2)]
    for launch in both:
        out, err = launch.communicate(timeout=60)
        assert launch.returncode == 0, out + err + lab.log()
    assert {run["state"] for run in lab.status().values()} == {"finished"}
    starts = (lab.folder / "starts").read_text().split()
    assert len(starts) == len(set(starts)) == 2
    assert query(lab, "SELECT count(*), sum(accepted) FROM answers") == [(2, 2)]
    assert query(lab, "SELECT count(*) FROM attempts") == [(2,)]
    lab.until(lambda: lab.controller_pid() is None, "the controller to end")


def test_a_run_folder_that_is_deleted_costs_that_attempt_and_nothing_else(lab: Lab) -> None:
    other = held_at(lab, lab.arm("other"), 5)
    folder = held_at(lab, lab.arm("talker"), 5)
    remove(folder)
    run = lab.until_state("talker-s0", "finished", "lost", "failed")
    assert (run["state"], run["attempts"]) == ("finished", 2)
    assert lab.status()["other-s0"]["state"] == "running"
    (other / "wait-at-5").unlink()
    assert lab.until_state("other-s0", "finished")["points"] == 20


def test_a_number_that_passed_to_another_process_misleads_nobody(lab: Lab) -> None:
    """The pid in the lock file, in supervisor.json and in the database now belongs to somebody else."""
    folder = held_at(lab, lab.arm("talker"), 5)
    lab.kill_controller()
    claim_file = folder / "attempt-1" / "supervisor.json"
    claim = json.loads(claim_file.read_text())
    os.kill(claim["supervisor"]["pid"], signal.SIGKILL)
    lab.until(lambda: not marked(lab), "the training to end with its supervisor")
    stranger = subprocess.Popen(["sleep", "100"])
    try:
        for part in ("supervisor", "child"):
            claim[part]["pid"] = stranger.pid
        claim_file.write_text(json.dumps(claim))
        with closing(sqlite3.connect(lab.home / "runner.db")) as connection:
            connection.execute("UPDATE attempts SET identity = ?", [json.dumps(claim["supervisor"])])
            connection.commit()
        (lab.home / "controller.lock").write_text(f"{stranger.pid}\n")
        (folder / "wait-at-5").unlink()
        lab.run("resume")
        run = lab.until_state("talker-s0", "finished", "lost", "failed")
        assert (run["state"], run["attempts"]) == ("finished", 2)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_home_that_vanishes_ends_its_controller_and_leaves_no_process(lab: Lab) -> None:
    folder = held_at(lab, lab.arm("talker"), 5)
    pid = lab.controller_pid()
    assert pid is not None
    controller = psutil.Process(pid)
    supervisor = psutil.Process(json.loads((folder / "attempt-1" / "supervisor.json").read_text())["supervisor"]["pid"])
    lab.home.rename(lab.folder / "moved")
    gone, alive = psutil.wait_procs([controller], timeout=60)
    assert gone, alive
    assert not lab.home.exists()
    remove(lab.folder / "moved")
    lab.until(lambda: not marked(lab) and not _runs(supervisor), "the training and its supervisor to end")


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
