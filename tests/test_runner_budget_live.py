"""A budget that runs out while runs go on: training ends, what waits is cancelled, a hook is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.lab import Lab
from tests.test_runner_waves import launch, work

WALKS_ON = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
for step in range(1, 2000):
    print(f"step {step}/2000 loss=1", flush=True)
    time.sleep(0.02)
"""
TELL = "import sys; from pathlib import Path; Path(sys.argv[1]).open('a').write(sys.stdin.read())"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path, draws_reports=False)
    yield found
    found.clean_up()


def test_a_spent_study_ends_what_runs_and_what_waits_and_says_so(lab: Lab, tmp_path: Path) -> None:
    told = tmp_path / "told"
    notify = {"command": [sys.executable, "-c", TELL, str(told)], "on": ["aborted", "cancelled", "study_ended"]}
    budget = {"study": {"max_hours": 4 / 3600}, "reserve": 0.25}
    launch(lab, *(lab.arm(name, WALKS_ON, steps=2000, budget=budget, notify=notify) for name in "abc"))
    work(lab, [])
    runs = lab.status()
    assert [runs[name]["state"] for name in ("a-s0", "b-s0")] == ["aborted(budget)"] * 2
    assert runs["c-s0"]["state"] == "cancelled(budget)"
    assert "budget.study.max_hours" in runs["a-s0"]["reason"]
    notices = [json.loads(line) for line in told.read_text().splitlines()]
    assert sorted(notice["what"] for notice in notices) == sorted(
        ["aborted(budget)", "aborted(budget)", "cancelled(budget)", "report"]
    )
