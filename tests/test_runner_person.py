"""What a person types about runs that exist: the log of one attempt, and a resume that names a whole study."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.commands import person
from runner.commands.extend import extend
from runner.errors import UsageError
from runner.home import Home
from runner.launch_spec import attempt_dir
from runner.logs import log_lines
from runner.records import RunState
from runner.store import changes
from runner.store.requests import Answer
from tests.fakes.arms import command_arm
from tests.fakes.stored_study import StoredStudy


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredStudy]:
    found = StoredStudy(Home(tmp_path / "runs"))
    yield found
    found.close()


def begun(stored: StoredStudy, run: str, number: int, said: str) -> Path:
    """An attempt whose two logs hold something; returns its folder."""
    stored.attempt(run, number)
    folder = attempt_dir(stored.home.root / run, number)
    folder.mkdir(parents=True)
    (folder / "stdout.log").write_text(f"{said}\n")
    (folder / "stderr.log").write_text(f"{said} warns\n")
    return folder


def test_the_log_of_the_latest_attempt_or_of_the_one_named(
    stored: StoredStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stored.run(command_arm())
    begun(stored, run, 1, "first")
    begun(stored, run, 2, "second")
    for attempt, said in ((None, "--- attempt 2 ---\nsecond\nsecond warns\n"),
                          (2, "--- attempt 2 ---\nsecond\nsecond warns\n"),
                          (1, "--- attempt 1 ---\nfirst\nfirst warns\n")):  # fmt: skip
        assert person.logs(stored.home.root, "trial/A-s0", follow=False, attempt=attempt) == 0
        assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("attempts", "wanted", "allowed"), [(1, 2, "1"), (3, 4, "1 to 3"), (2, 0, "1 to 2"), (2, -1, "1 to 2")]
)
def test_an_attempt_that_is_not_there(stored: StoredStudy, attempts: int, wanted: int, allowed: str) -> None:
    run = stored.run(command_arm())
    for number in range(1, attempts + 1):
        begun(stored, run, number, "x")
    with pytest.raises(UsageError, match=f"--attempt {wanted}: {run} has no such attempt; allowed: {allowed}$"):
        person.logs(stored.home.root, "trial/A-s0", follow=False, attempt=wanted)


def test_a_run_that_waits_has_no_attempt(stored: StoredStudy, capsys: pytest.CaptureFixture[str]) -> None:
    stored.run(command_arm(), state=RunState.QUEUED)
    with pytest.raises(UsageError, match="has not started, so it has no attempt yet"):
        person.logs(stored.home.root, "trial/A-s0", follow=True, attempt=1)
    assert person.logs(stored.home.root, "trial/A-s0", follow=False) == 0
    assert capsys.readouterr().out == "(nothing yet: the run has not started)\n"


def test_following_one_attempt_ends_when_a_later_one_begins(stored: StoredStudy) -> None:
    """All that it wrote is shown, and nothing of the next."""
    run = stored.run(command_arm(), state=RunState.RUNNING)
    folder = begun(stored, run, 1, "first")
    rounds = 0

    def sleep(_seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        with (folder / "stdout.log").open("a") as stream:
            stream.write(f"round {rounds}\n")
        if rounds == 2:
            begun(stored, run, 2, "second")
        assert rounds < 10, "it never ends"

    text = "".join(log_lines(stored.home, run, True, 1, sleep))
    assert text == "--- attempt 1 ---\nfirst\nfirst warns\nround 1\nround 2\n"
    assert rounds == 2


def test_following_the_latest_attempt_goes_on_with_the_next_until_the_run_has_ended(stored: StoredStudy) -> None:
    run = stored.run(command_arm(), state=RunState.RUNNING)
    begun(stored, run, 1, "first")

    def sleep(_seconds: float) -> None:
        begun(stored, run, 2, "second")
        with stored.session.transaction() as connection:
            changes.move_run(connection, run, RunState.FAILED, "by itself", 3.0)

    text = "".join(log_lines(stored.home, run, True, sleep=sleep))
    assert text == "--- attempt 1 ---\nfirst\nfirst warns\n--- attempt 2 ---\nsecond\nsecond warns\n"


def test_resuming_a_study_says_what_queues_its_runs_again(stored: StoredStudy) -> None:
    for seed, state in enumerate((RunState.CANCELLED, RunState.FINISHED, RunState.RUNNING, RunState.ABORTED)):
        stored.run(command_arm(), seed, state)
    with pytest.raises(UsageError) as refused:
        person.resume(stored.home.root, "Trial", "last")
    said = str(refused.value)
    assert "'Trial' is a study, and resume takes one run of it (trial/A-s0, trial/A-s3)" in said
    assert "`runner launch` of its arm files queues again what was cancelled, failed" in said


def test_a_name_that_nothing_has_is_no_study_either(stored: StoredStudy) -> None:
    stored.run(command_arm())
    with pytest.raises(UsageError, match="there is no run 'w3'; runs: trial/A-s0"):
        person.resume(stored.home.root, "w3", "last")
    with pytest.raises(UsageError, match=r"resume takes one run of it \(none of them waits for that\)"):
        person.resume(stored.home.root, "trial", "last")


@pytest.mark.parametrize(
    ("command", "state"), [("stop", RunState.RUNNING), ("resume", RunState.FAILED), ("extend", RunState.FAILED)]
)
def test_what_an_answer_repeats_of_a_host_cannot_touch_the_terminal(
    stored: StoredStudy,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    state: RunState,
) -> None:
    stored.run(command_arm(command=("python3", "-c", "pass", "{steps}")), state=state)
    for module in ("runner.launching", "runner.commands.extend"):
        monkeypatch.setattr(f"{module}.wait_for_answer", lambda *_: Answer(True, "the host said \x1b[2J\u202e"))
    home, name = stored.home.root, "trial/A-s0"
    code = {
        "stop": lambda: person.stop(home, name, everything=False, wait=False),
        "resume": lambda: person.resume(home, name, "last", yes=True),
        "extend": lambda: extend(home, name, 20, yes=True),
    }[command]()
    assert code == 0
    assert capsys.readouterr().out == "the host said \\x1b[2J\\u202e\n"
