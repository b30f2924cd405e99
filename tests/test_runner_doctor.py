from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert

from provisioning.base import Slot
from provisioning.processes import state_of
from runner.commands.doctor import WIDTH, doctor, page
from runner.doctor import (
    OK,
    PROBLEM,
    TOLD_OF_S,
    WARNING,
    Check,
    DatabaseFacts,
    Facts,
    GpuFacts,
    LockFacts,
    examine,
    has_problem,
)
from runner.doctor_facts import collect
from runner.errors import EXIT_INFRASTRUCTURE, EXIT_OK
from runner.home import Home, create_home
from runner.lock import HomeLock
from runner.slot_watch import SlotWatch
from runner.store import changes, outbox, tables
from runner.store.database import create_or_upgrade
from runner.store.session import Session
from runner.store.untold import Untold
from tests.fakes.attempts import until

NOW = 1_790_000_000.0
DATABASE = DatabaseFacts("0003", "0003")
HEALTHY = Facts(
    home="/data/runs", home_exists=True, home_writable=True, file_system="ext4", free_mib=90_000, now=NOW,
    disk_clock=NOW - 0.004, database=DATABASE, lock=LockFacts(False), gpus=GpuFacts(), trainer="/x/trainer",
    packages={"torch": "2.13.0"}, open_files=20_000, cores=2,
)  # fmt: skip


def untold(given_up: int, waiting: int) -> dict[str, Any]:
    return {"database": replace(DATABASE, untold=Untold(given_up, waiting, "no answer", NOW - 7_300))}


def found(facts: Facts) -> list[Check]:
    return [check for check in examine(facts) if check.level != OK]


class TestChecks:
    def test_a_healthy_machine_has_no_remarks(self) -> None:
        assert found(HEALTHY) == []
        assert found(replace(HEALTHY, database=None, home_exists=False)) == []
        assert found(replace(HEALTHY, database=replace(DATABASE, untold=Untold()))) == []

    @pytest.mark.parametrize(
        ("change", "level", "says", "do"),
        [
            ({"file_system": "nfs4"}, PROBLEM, "network file system (nfs4)", "--home"),
            ({"home_writable": False}, PROBLEM, "not writable", "--home"),
            ({"file_system": "tmpfs"}, WARNING, "lies in memory", "disk"),
            ({"free_mib": 10}, PROBLEM, "10 MiB are free", "free some"),
            ({"free_mib": 1_000}, WARNING, "1,000 MiB are free", "checkpoint.keep"),
            ({"database": replace(DATABASE, error="x.db: newer")}, PROBLEM, "x.db: newer", "--home"),
            ({"database": replace(DATABASE, damage="page 3")}, PROBLEM, "damaged: page 3", "copy the home"),
            ({"database": replace(DATABASE, revision="0001")}, WARNING, "revision 0001", "next launch upgrades"),
            ({"database": replace(DATABASE, log_mib=900)}, WARNING, "900 MiB", "runner.db"),
            ({"database": replace(DATABASE, open_runs=2)}, PROBLEM, "2 runs wait", "runner resume"),
            ({"lock": LockFacts(True, 7, "T")}, PROBLEM, "pid 7 holds the home and is stopped", "kill -CONT 7"),
            ({"lock": LockFacts(True, 7, None)}, WARNING, "not by pid 7, which has ended", "fuser"),
            ({"lock": LockFacts(True)}, WARNING, "by a process that it does not name", "fuser"),
            ({"trainer": None}, WARNING, "trainer is not installed", "pip install"),
            ({"packages": {"torch": None}}, WARNING, "torch is not installed", "pip install"),
            ({"disk_clock": NOW + 3_600}, WARNING, "+3,600 s away", "timedatectl"),
            ({"database": replace(DATABASE, newest_event=NOW + 60)}, WARNING, "60 s in the future", "timedatectl"),
            ({"open_files": 100}, PROBLEM, "100 open files", "ulimit -n 4096"),
            ({"open_files": 512}, WARNING, "512 open files", "ulimit -n 4096"),
            ({"gpus": GpuFacts(("0 card",), "570", foreign=("GPU 0: pid 4",))}, WARNING, "GPU 0: pid 4", "--share"),
            ({"gpus": GpuFacts(("0 card",), "570", problems=("GPU 0: lost",))}, PROBLEM, "GPU 0: lost", "reset"),
            ({"database": replace(DATABASE, quarantines=("cpu0 is not used: x",))}, WARNING, "cpu0 is not", "lifts"),
            (untold(1, 0), WARNING, "1 notice given up; the newest, 2 hours ago: no answer", "is not sent again"),
            (untold(2, 3), WARNING, "2 notices given up, 3 notices waiting after a failed try; the newest", "notify"),
            (untold(0, 1), WARNING, "1 notice waiting after a failed try; the newest, 2 hours ago", "the receiver"),
        ],
    )
    def test_each_trouble_is_named_with_what_to_do(
        self, change: dict[str, Any], level: str, says: str, do: str
    ) -> None:
        (check,) = found(replace(HEALTHY, **change))
        assert check.level == level
        assert says in check.says
        assert do in check.do
        assert has_problem((check,)) is (level == PROBLEM)

    @pytest.mark.parametrize("lock", [LockFacts(True, 7, "S"), LockFacts(False, 7, None)])
    def test_a_live_controller_and_the_pid_of_a_dead_one_are_fine(self, lock: LockFacts) -> None:
        assert found(replace(HEALTHY, lock=lock)) == []

    def test_what_it_found_is_said_where_nothing_is_wrong(self) -> None:
        says = {check.name: check.says for check in examine(replace(HEALTHY, gpus=GpuFacts(("0 card",), "570")))}
        assert says["gpus"] == "0 card; driver 570"
        assert says["trainer"] == "/x/trainer; torch 2.13.0"


words = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Zs", "Zl", "Zp")), max_size=60)


@given(says=st.lists(words, max_size=30), do=st.lists(words, max_size=20))
def test_a_page_fits_80_columns_but_for_single_long_words(says: list[str], do: list[str]) -> None:
    check = Check("controller", PROBLEM, "x " + " ".join(says), " ".join(do))
    for line in page((check,)):
        assert len(line) <= WIDTH or len(line.split()) <= 3  # name, level, one long word
        assert not any(unicodedata.category(letter).startswith("C") for letter in line)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "runs")
    create_home(made)
    lock = HomeLock(made.lock)
    create_or_upgrade(made, lock)
    lock.release()
    return made


@pytest.fixture
def holder(home: Home) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the home's lock, as a controller does."""
    program = (
        "import sys; from pathlib import Path; from runner.lock import HomeLock; lock = HomeLock(Path(sys.argv[1])); "
        "lock.acquire(); print(flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(home.lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.send_signal(signal.SIGCONT)
    process.communicate()


class TestTheRealThing:
    def test_a_new_home(self, home: Home) -> None:
        facts = collect(home, os.environ)
        assert facts.database is not None
        assert (facts.database.error, facts.database.damage, facts.database.open_runs) == ("", "", 0)
        assert facts.database.revision == facts.database.newest_revision
        assert facts.disk_clock is not None
        assert abs(facts.disk_clock - facts.now) < 1
        assert facts.lock.is_held is False
        assert facts.trainer is not None

    def test_nothing_is_made_where_there_is_no_home(self, tmp_path: Path) -> None:
        facts = collect(Home(tmp_path / "not" / "there"), {})
        assert (facts.home_exists, facts.home_writable, facts.database) == (False, True, None)
        assert list(tmp_path.iterdir()) == []

    def test_a_stopped_controller_is_a_problem_that_kill_cont_solves(
        self, home: Home, holder: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
    ) -> None:
        facts = collect(home, {})
        assert (facts.lock.is_held, facts.lock.pid) == (True, holder.pid)
        holder.send_signal(signal.SIGSTOP)
        until(lambda: state_of(holder.pid) == "T")
        assert doctor(home.root, as_json=False) == EXIT_INFRASTRUCTURE
        assert f"-> kill -CONT {holder.pid}" in capsys.readouterr().out
        holder.send_signal(signal.SIGCONT)
        until(lambda: state_of(holder.pid) != "T")
        assert doctor(home.root, as_json=False) == EXIT_OK

    def test_a_quarantine_is_told(self, home: Home) -> None:
        session = Session(home.database, pid=1, now=1.0)
        with session.transaction() as connection:
            connection.exec_driver_sql(
                "INSERT INTO leases (id, provider, label, host, state, price_usd_per_h, created) "
                "VALUES (1, 'local', 'armature/x/1', 'here', 'owned', 0, 1)"
            )
        watch = SlotWatch(session, lambda *_: pytest.fail("no probe is needed"), lambda: 1.0, lambda: 1.0)
        watch.quarantine(1, Slot("cpu1", (1,)), "a core is gone")
        session.close()
        facts = collect(home, {})
        assert facts.database is not None
        assert facts.database.quarantines == ("cpu1 is not used: a core is gone",)

    def test_notices_that_nobody_heard_are_told(self, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
        session, now = Session(home.database, pid=1, now=1.0), time.time()
        rows = [
            ("failed", 6, "too old", now - TOLD_OF_S - 60), ("failed", 1, "no such program", now - 90),
            ("waiting", 2, "HTTP 500", now - 200), ("waiting", 0, "", now), ("sent", 1, "HTTP 200", now),
        ]  # fmt: skip
        with session.transaction() as connection:
            for event, (state, tries, said, changed) in enumerate(rows, start=1):
                changes.add_event(connection, changed, "failed", "why")
                connection.execute(insert(tables.notifications).values(event=event, state="", tries=0, changed=0))
                outbox.note(connection, event, state, tries, said, changed)
        session.close()
        assert doctor(home.root, as_json=False) == EXIT_OK
        out = " ".join(capsys.readouterr().out.split())
        assert "1 notice given up, 1 notice waiting after a failed try; the newest, 1 minute ago: no such" in out

    @pytest.mark.parametrize("damage", ["no database", "cut"])
    def test_a_damaged_database_is_a_problem(self, home: Home, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
        if damage == "cut":
            data = bytearray(home.database.read_bytes())
            data[4096:12288] = b"\xff" * 8192
            home.database.write_bytes(data)
        else:
            home.database.write_bytes(b"not a database" * 100)
        assert doctor(home.root, as_json=True) == EXIT_INFRASTRUCTURE
        checks = json.loads(capsys.readouterr().out)["checks"]
        assert [check["level"] for check in checks if check["name"] == "database"] == [PROBLEM]

    def test_it_starts_without_torch(self, home: Home) -> None:
        program = (
            "import sys; from pathlib import Path; from runner.commands.doctor import doctor; "
            "code = doctor(Path(sys.argv[1]), as_json=True); assert 'torch' not in sys.modules; sys.exit(code)"
        )
        done = subprocess.run([sys.executable, "-c", program, str(home.root)], capture_output=True, check=True)
        assert {"name", "level", "says", "do"} == set(json.loads(done.stdout)["checks"][0])
