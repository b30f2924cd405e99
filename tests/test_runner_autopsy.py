"""Autopsies: after an abort on the held slot, and when a person asks for one of a run that has ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.autopsies import DEFAULT_S, MAY, limit_s, refuse_autopsy
from runner.errors import UsageError
from runner.records import Policy, RunState
from tests.fakes.acting import Acting, verdict
from tests.test_runner_controller import BrittleProvider, Killed

TRAIN = "train --run-dir --attempt"
PRIMARY = {"metric": "val/recon_rmse"}


@pytest.fixture
def acting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Acting]:
    found = Acting(tmp_path, monkeypatch)
    yield found
    found.clean_up()


def aborted(acting: Acting, **policy: object) -> None:
    """A run whose abort is decided, after enough steps for two checkpoints."""
    acting.launch(acting.arm(policy=policy))
    acting.rounds(lambda: acting.run()["step"] > 6)
    acting.says = verdict("abort")


def finished(acting: Acting) -> None:
    acting.launch(acting.arm(steps=12))
    acting.until("finished")


def test_an_abort_is_scored_and_opened_up_before_the_slot_is_given_back(acting: Acting) -> None:
    aborted(acting, autopsy_s=40)
    run = acting.until("aborted(regress)")
    assert run["reason"] == "it got worse"
    assert acting.kinds() == ["train", "evaluate", "autopsy"]
    assert acting.calls() == [f"{TRAIN} 1", "evaluate --attempt 2", "autopsy --attempt 3 --budget-s 36.0"]
    assert (acting.folder() / "autopsy" / "autopsy.json").exists()
    assert [what for what, _ in acting.events("evaluate", "autopsy", "aborted(regress)")] == [
        "evaluate", "autopsy", "aborted(regress)",
    ]  # fmt: skip


def test_what_fails_in_it_is_a_note_and_changes_nothing_else(acting: Acting) -> None:
    aborted(acting)
    acting.rounds(lambda: acting.run()["state"] == "stopping")
    (acting.folder() / "exit-evaluate").write_text("70")
    (acting.folder() / "exit-autopsy").write_text("65")
    run = acting.until("aborted(regress)")
    assert run["reason"] == (
        "it got worse (its final evaluation ended with exit code 70) (its autopsy ended with exit code 65)"
    )
    assert run["health"] == "diverged"


@pytest.mark.parametrize(("policy", "rule"), [({"autopsy_s": 0}, "regress"), ({}, "budget")])
def test_without_a_wish_or_for_a_spent_budget_there_is_none(acting: Acting, policy: dict[str, int], rule: str) -> None:
    if rule == "budget":
        acting.launch(acting.arm(policy=policy, budget={"run": {"max_hours": 1.5 / 3600}}))
    else:
        aborted(acting, **policy)
    acting.until(f"aborted({rule})")
    assert acting.kinds() == ["train", "evaluate"]


def test_a_person_s_stop_ends_it_and_the_run_keeps_its_reason(acting: Acting) -> None:
    aborted(acting)
    acting.rounds(lambda: acting.run()["state"] == "stopping")
    (acting.folder() / "wait-autopsy").touch()
    acting.rounds(lambda: acting.kinds()[-1] == "autopsy" and "autopsy --attempt 3" in acting.calls()[-1])
    assert not acting.ask("autopsy").accepted
    acting.stop()
    run = acting.until("aborted(regress)")
    assert run["reason"] == "it got worse (its autopsy ended with killed by SIGTERM)"
    assert ("stop", "its autopsy ends: stopped by a person") in acting.events("stop")


def test_one_that_a_person_asks_for_leaves_the_run_as_it_is(acting: Acting) -> None:
    finished(acting)
    before = acting.run()
    answer = acting.ask("autopsy")
    assert answer.message == f"{before['run']}: its autopsy waits for a slot"
    assert acting.run()["state"] == "finished"
    acting.rounds(lambda: acting.events("autopsy_ended"))
    after = acting.run()
    assert {**after, "attempts": 1, "changed": 0.0} == {**before, "changed": 0.0}
    assert after["changed"] > before["changed"]  # so that the report is written anew
    assert acting.kinds() == ["train", "autopsy"]
    assert acting.events("autopsy_wanted", "autopsy", "autopsy_ended")[-1] == ("autopsy_ended", "done")
    assert acting.controller is not None
    acting.rounds(lambda: acting.controller is not None and not acting.controller.step().open)
    assert acting.ask("autopsy").accepted  # and another one, whenever somebody wants it
    acting.rounds(lambda: len(acting.events("autopsy_ended")) == 2)
    assert acting.kinds() == ["train", "autopsy", "autopsy"]


def test_asked_for_twice_it_is_made_once_and_a_stop_ends_it(acting: Acting) -> None:
    finished(acting)
    (acting.folder() / "wait-autopsy").touch()
    assert acting.ask("autopsy").accepted
    acting.rounds(lambda: acting.run()["autopsy"] == "running" and len(acting.calls()) == 2)
    again = acting.ask("autopsy")
    assert (again.accepted, again.message[10:]) == (True, "an autopsy of it is under way already (attempt 2)")
    acting.stop()
    acting.rounds(lambda: acting.events("autopsy_ended"))
    assert acting.events("autopsy_ended") == [("autopsy_ended", "it ended with killed by SIGTERM")]
    assert (acting.run()["state"], acting.run()["autopsy"]) == ("finished", None)
    assert acting.kinds() == ["train", "autopsy"]


def test_whatever_else_is_wanted_of_the_run_comes_after_it(acting: Acting) -> None:
    acting.launch(acting.arm())
    acting.rounds(lambda: acting.run()["step"] > 6)
    acting.stop()
    acting.until("cancelled")
    (acting.folder() / "wait-autopsy").touch()
    assert acting.ask("autopsy").accepted
    acting.rounds(lambda: len(acting.calls()) == 2)
    assert acting.ask("resume", **{"from": "last"}).accepted
    acting.rounds(lambda: acting.run()["reason"] == "waits: its autopsy comes first")
    for _ in range(5):
        assert acting.controller is not None
        acting.controller.step()
    assert (acting.run()["state"], acting.kinds()) == ("queued", ["train", "autopsy"])
    (acting.folder() / "wait-autopsy").unlink()
    acting.rounds(lambda: len(acting.calls()) == 3)
    assert acting.kinds() == ["train", "autopsy", "train"]
    assert acting.calls()[-1] == f"{TRAIN} 3 --resume"


def test_it_waits_for_a_slot_that_is_free_and_a_stop_takes_it_back(acting: Acting) -> None:
    finished(acting)
    acting.launch(acting.arm("U"), slots=1)
    acting.until("running", "U-s0")
    assert acting.ask("autopsy").accepted
    assert acting.ask("autopsy").message.endswith("waits for a slot already")
    assert acting.run()["autopsy"] == "waiting"
    acting.stop()
    acting.rounds(lambda: acting.events("autopsy_ended"))
    assert acting.events("autopsy_ended") == [("autopsy_ended", "it was not begun: stopped by a person")]
    assert acting.kinds() == ["train"]
    assert acting.run("U-s0")["state"] == "running"


@pytest.mark.parametrize("dies", ["before", "after"])
def test_a_controller_cut_off_around_its_start_starts_none_twice(acting: Acting, dies: str) -> None:
    finished(acting)
    assert acting.ask("autopsy").accepted
    acting.rounds(lambda: acting.events("autopsy_ended"))
    BrittleProvider.dies = dies
    (acting.folder() / "wait-autopsy").touch()
    acting.start(BrittleProvider)
    with pytest.raises(Killed):
        acting.ask("autopsy")
    acting.start()
    acting.rounds(lambda: len(acting.calls()) == 3)
    (acting.folder() / "wait-autopsy").unlink()
    acting.rounds(lambda: len(acting.events("autopsy_ended")) == 2)
    assert acting.kinds() == ["train", "autopsy", "autopsy"]
    assert len(acting.calls()) == 3


def test_one_that_cannot_be_started_is_over_and_says_so(acting: Acting, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(acting)
    monkeypatch.setattr("runner.stage.environment_values", _raise)
    assert acting.ask("autopsy").accepted
    acting.rounds(lambda: acting.events("autopsy_ended"))
    assert "spawn_failed" in acting.events("autopsy_ended")[0][1] or "could not" in acting.events("autopsy_ended")[0][1]
    assert acting.run()["state"] == "finished"


def _raise(*_arguments: object) -> None:
    raise UsageError("the variable TOKEN is not set")


def test_what_cannot_be_opened_up_is_refused_with_what_can(acting: Acting) -> None:
    acting.launch(acting.arm("T", steps=12), acting.arm("V"), acting.lab.arm("C", steps=3, primary=PRIMARY))
    acting.until("finished", "C-s0")
    acting.until("running", "V-s0")
    assert "runs a command" in acting.ask("autopsy", "C-s0").message
    live = acting.ask("autopsy", "V-s0")
    assert (live.accepted, "is running; allowed: an ended run" in live.message) == (False, True)
    acting.until("finished")
    for path in sorted((acting.folder() / "checkpoints").iterdir())[1:]:
        path.rmdir()
    assert "compares two checkpoints, and 1 is there" in acting.ask("autopsy").message


@pytest.mark.long
def test_the_command_waits_prints_what_was_found_and_tells_by_its_exit_code(acting: Acting) -> None:
    acting.launch(acting.arm(steps=12), acting.lab.arm("C", steps=3, primary=PRIMARY))
    acting.until("finished")
    acting.until("finished", "C-s0")
    assert acting.controller is not None
    acting.controller.close()
    acting.controller = None
    lab = acting.lab
    assert lab.run("autopsy", "lab/T-s0").stdout == "the weights became worse\n"
    (acting.folder() / "exit-autopsy").write_text("65")
    failed = lab.run("autopsy", "lab/T-s0", code=1)
    assert (failed.stdout, "it ended with exit code 65; what was said: runner logs " in failed.stderr) == ("", True)
    assert "runs a command" in lab.run("autopsy", "lab/C-s0", code=2).stderr
    (acting.folder() / "exit-autopsy").unlink()
    found = lab.run("autopsy", "lab/T-s0", "--json").stdout
    assert json.loads(found) == {"conclusion": "the weights became worse"}


def test_only_ended_runs_of_our_trainer_may_be_opened_up() -> None:
    for state in RunState:
        if state in MAY:
            refuse_autopsy("r", state, is_trainer=True, checkpoints=2)
            continue
        with pytest.raises(UsageError, match=f"r is {state}"):
            refuse_autopsy("r", state, is_trainer=True)


def test_its_time_is_the_policy_s_within_the_budget() -> None:
    assert limit_s(Policy(autopsy_s=60.0), None) == 60.0
    assert limit_s(Policy(autopsy_s=60.0), 20.0) == 20.0
    assert limit_s(Policy(autopsy_s=60.0), -5.0) == 1.0
    assert limit_s(Policy(autopsy_s=0.0), None) == DEFAULT_S
