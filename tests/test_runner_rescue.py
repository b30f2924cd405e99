"""A run that was stopped goes on as another one: its arm, its identity, its place, and that there is never a second."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from runner.home import Home
from runner.launching import Options, prepare
from runner.plan import Intent
from runner.records import Policy, Rescue
from runner.rescue import began_at, choose_step, may_rescue, rescued
from runner.spec.identity import identity
from runner.spec.models import from_json
from runner.store import tables
from runner.store.database import reading
from runner.store.facts import read_run
from runner.store.rescues import add_rescue
from runner.store.session import Session
from tests.fakes.acting import HEALTHY, Acting, verdict
from tests.fakes.arms import command_arm, trainer_arm

CHANGES = {"trainer.optimizer.name": "muon", "trainer.optimizer.lr": 3e-4}
POLICY: dict[str, Any] = {
    "detectors": {"regress": "rescue"},
    "autopsy_s": 0,
    "rescue": {"changes": CHANGES},
}


@pytest.fixture
def acting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Acting]:
    found = Acting(tmp_path, monkeypatch)
    yield found
    found.clean_up()


def sick(acting: Acting, **policy: Any) -> None:
    """A run past its best checkpoint, of step 30, that the judge has just given up."""
    (acting.lab.folder / "wait-train").touch()
    acting.launch(acting.arm(steps=300, policy={**POLICY, **policy}))
    acting.rounds(lambda: acting.run()["step"] > 36)
    acting.says = verdict("rescue")
    acting.until("aborted(regress)")
    acting.says = HEALTHY


def row(acting: Acting, name: str) -> Any:
    with reading(acting.home) as connection:
        return connection.execute(select(tables.runs).where(tables.runs.c.run == acting.run(name)["run_dir"])).one()


def test_it_goes_on_from_the_best_checkpoint_with_its_changes_and_its_parent(acting: Acting) -> None:
    sick(acting)
    parent = acting.run()
    acting.rounds(lambda: acting.run("T-rescue1-s0")["step"] > 32)
    child = acting.run("T-rescue1-s0")
    assert (child["parent"], child["seed"], child["generation"]) == (parent["run"], 0, 1)
    assert (parent["parent"], child["steps_total"]) == (None, parent["steps_total"])
    stored = row(acting, "T-rescue1-s0")
    assert stored.arm_document["title"] == "T, rescued at step 30"
    assert stored.arm_document["baseline"] == "T"
    assert stored.arm_document["trainer"]["optimizer"]["name"] == "muon"
    assert stored.initial_checkpoint == {"run": parent["run_dir"], "step": 30}
    assert (stored.wave, stored.snapshot) == (None, row(acting, "T-s0").snapshot)
    call = (acting.folder("T-rescue1-s0") / "calls").read_text()
    assert call.endswith(f"--attempt 1 --from-run {acting.lab.home / parent['run_dir']} --from-step 30\n")
    said = f"goes on as T-rescue1 ({child['run']}) from step 30 of {parent['run']}, its best checkpoint, with "
    said += "trainer.optimizer.name = 'muon', trainer.optimizer.lr = 0.0003"
    assert acting.events("rescue") == [("rescue", said)]
    assert [run["arm"] for run in acting.lab.status().values()] == ["T", "T-rescue1"]
    first = min(json.loads(line)["step"] for line in _metrics(acting) if '"train"' in line)
    assert first == 31


def test_it_goes_on_where_its_run_was(acting: Acting) -> None:
    """On hosts of one's own, or on a machine that is rented under the same want."""
    acting.launch(acting.arm(steps=20, policy=POLICY))
    acting.until("finished")
    wanted = {"key": "launch-1/lab", "slots": 1}
    parent_dir = acting.run()["run_dir"]
    assert acting.controller is not None
    acting.controller.close()  # a second writer fences the first one off
    acting.controller = None
    session = Session(acting.home.database, pid=os.getpid(), now=0.0)
    for provider, asked in (("ssh", None), ("vast", wanted)):
        with session.transaction() as connection:
            here = read_run(connection, parent_dir)
            parent = replace(here, run=f"{here.run}-{provider}", provider=provider, wanted=asked)
            arm = replace(from_json(here.arm_document), arm=f"T-{provider}")
            child = add_rescue(connection, parent, rescued(arm, 0, "0badcafe", "hash", 10, "its best checkpoint"), 1.0)
            stored = read_run(connection, child)
        assert (stored.provider, stored.wanted) == (provider, asked)
    session.close()


def _metrics(acting: Acting) -> list[str]:
    return (acting.folder("T-rescue1-s0") / "attempt-1" / "metrics.jsonl").read_text().splitlines()


def test_without_a_best_checkpoint_it_goes_on_from_the_last_and_says_so(acting: Acting) -> None:
    acting.launch(acting.arm(policy=POLICY))  # so long that no validation is late enough to be the best
    acting.rounds(lambda: acting.run()["step"] > 6)
    acting.says = verdict("rescue")
    last = acting.until("aborted(regress)")["step"]
    acting.says = HEALTHY
    assert f"from step {last} of " in acting.events("rescue")[0][1]
    assert "its last checkpoint, because no best one is kept" in acting.events("rescue")[0][1]


def test_once_it_has_checkpoints_of_its_own_it_resumes_from_those(acting: Acting) -> None:
    sick(acting)
    name = "T-rescue1-s0"
    acting.rounds(lambda: acting.run(name)["step"] > 36)
    acting.stop(name)
    acting.until("cancelled", name)
    assert acting.ask("resume", name, **{"from": "last"}).accepted
    acting.rounds(lambda: len(acting.calls(name)) == 2)
    assert acting.calls(name)[-1] == "train --run-dir --attempt 2 --resume"


def test_a_rescued_run_is_rescued_until_there_have_been_enough(acting: Acting) -> None:
    sick(acting, rescue={"changes": CHANGES, "max": 2, "from": "last"})
    acting.rounds(lambda: acting.run("T-rescue1-s0")["step"] > acting.run()["step"] + 2)
    acting.says = verdict("rescue")
    acting.until("aborted(regress)", "T-rescue1-s0")
    acting.says = HEALTHY
    acting.rounds(lambda: acting.run("T-rescue2-s0")["state"] == "running")
    acting.says = verdict("rescue")
    last = acting.until("aborted(regress)", "T-rescue2-s0")
    acting.says = HEALTHY
    assert last["parent"] == acting.run("T-rescue1-s0")["run"]
    assert [run["arm"] for run in acting.lab.status().values()] == ["T", "T-rescue1", "T-rescue2"]
    assert len(acting.events("rescue")) == 2


def test_the_same_files_again_leave_it_alone_and_fresh_ones_supersede_it(acting: Acting) -> None:
    sick(acting)
    acting.rounds(lambda: acting.run("T-rescue1-s0")["state"] == "running")
    arm = acting.lab.folder / "T.yaml"
    plan = prepare(acting.home, [arm], Options()).plan
    assert [(run.arm, run.intent) for run in plan.runs] == [("T", Intent.NOTHING)]
    acting.launch(arm)
    acting.rounds(lambda: acting.run("T-rescue1-s0")["step"] > 35)
    acting.launch(arm, fresh=True)
    acting.rounds(lambda: acting.run()["generation"] == 2 and acting.run()["state"] == "running")
    with reading(acting.home) as connection:
        child = connection.execute(select(tables.runs).where(tables.runs.c.arm == "T-rescue1")).one()
    assert child.superseded_by == acting.run()["run"]
    acting.rounds(lambda: acting.run()["step"] > 6)
    acting.says = verdict("rescue")
    acting.rounds(lambda: acting.run()["state"] == "aborted(regress)")
    acting.says = HEALTHY
    assert acting.run("T-rescue1-s0")["generation"] == 2
    assert acting.run("T-rescue1-s0")["run"] != child.id


def test_a_parent_that_a_person_takes_up_again_gets_no_second_one(acting: Acting) -> None:
    sick(acting)
    acting.stop("T-rescue1-s0")
    acting.until("cancelled", "T-rescue1-s0")
    assert acting.ask("resume", **{"from": "best"}).accepted
    acting.until("running")
    acting.says = verdict("rescue", rule="explosion")  # another rule, which may only abort
    acting.until("aborted(explosion)")
    acting.says = HEALTHY
    assert len(acting.events("rescue")) == 1


@pytest.mark.parametrize("wish", ["stop", "budget"])
def test_nobody_goes_on_against_a_person_or_without_a_budget(acting: Acting, wish: str) -> None:
    acting.launch(acting.arm(policy={**POLICY, "autopsy_s": 30}))
    acting.rounds(lambda: acting.run()["step"] > 6)
    acting.says = verdict("rescue")
    acting.rounds(lambda: acting.run()["state"] == "stopping")
    if wish == "stop":
        (acting.folder() / "wait-evaluate").touch()
        acting.stop()
    else:
        assert acting.controller is not None
        acting.controller._situation._budget = lambda _run: "2.0 of 2 hours used"
    run = acting.until("aborted(regress)")
    acting.says = HEALTHY
    word = "stopped by a person" if wish == "stop" else "2.0 of 2 hours used"
    assert run["reason"].endswith(f"(no rescue: {word})")
    assert acting.events("rescue") == []
    assert list(acting.lab.status()) == ["T-s0"]


def test_a_kill_around_the_settling_leaves_exactly_one(acting: Acting, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        """Stands for a kill -9: nothing may catch it."""

    def die(*_arguments: object, **_keys: object) -> None:
        raise Killed

    acting.launch(acting.arm(policy=POLICY))
    acting.rounds(lambda: acting.run()["step"] > 6)
    acting.says = verdict("rescue")
    with monkeypatch.context() as patch:
        patch.setattr("runner.store.rescues.to_json", die)  # inside the transaction, before the row
        with pytest.raises(Killed):
            acting.until("aborted(regress)")
    assert acting.run()["state"] == "stopping"
    acting.start()
    acting.until("aborted(regress)")
    acting.says = HEALTHY
    acting.start()
    acting.rounds(lambda: acting.run("T-rescue1-s0")["state"] == "running")
    assert len(acting.events("rescue")) == 1
    assert len(acting.lab.status()) == 2


def test_a_view_of_a_launch_shows_what_was_rescued_from_it(acting: Acting) -> None:
    from runner.view import chosen_status

    sick(acting)
    acting.launch(acting.arm("U", policy=POLICY))
    acting.rounds(lambda: acting.run("U-s0")["state"])
    document = chosen_status(Home(acting.lab.home), None, frozenset({acting.run()["run_dir"]}))
    assert [run["arm"] for study in document["studies"] for run in study["runs"]] == ["T", "T-rescue1"]


ARM = replace(
    trainer_arm(), policy=Policy({"regress": "rescue"}, rescue=Rescue("best", {"trainer.optimizer.lr": 0.1}, 2))
)


def test_its_identity_is_of_its_recipe_and_of_the_weights_that_it_begins_with() -> None:
    first = rescued(ARM, 0, "0a0a0a0a", "code", 50, "its best checkpoint")
    assert first.arm.arm == "A-rescue1"
    assert (first.arm.seeds, first.arm.baseline) == ((0,), "A")
    assert first.identity == rescued(ARM, 0, "0a0a0a0a", "code", 50, "another name for it").identity
    others = {
        rescued(ARM, 0, "0a0a0a0a", "code", 60, "").identity,
        rescued(ARM, 0, "0b0b0b0b", "code", 50, "").identity,
        rescued(ARM, 1, "0a0a0a0a", "code", 50, "").identity,
        identity(first.arm, 0, "code"),
    }
    assert len(others | {first.identity}) == 5
    second = rescued(first.arm, 0, first.id(1), "code", 80, "its best checkpoint")
    assert (second.arm.arm, second.arm.baseline) == ("A-rescue2", "A")
    assert second.arm.title.endswith(", rescued at step 50, rescued at step 80")


def test_a_longer_budget_goes_on_in_it() -> None:
    assert ARM.trainer is not None
    longer = replace(ARM, trainer={**ARM.trainer, "steps": 999}, rescue_trainer={**ARM.trainer, "batch": 3})
    found = rescued(longer, 0, "0a0a0a0a", "code", 50, "").arm
    assert found.trainer == {**ARM.trainer, "steps": 999, "batch": 3}


def test_who_may_be_rescued() -> None:
    assert may_rescue(ARM, "regress")
    assert not may_rescue(ARM, "explosion")
    assert not may_rescue(replace(ARM, arm="A-rescue2"), "regress")
    assert not may_rescue(replace(command_arm(), policy=ARM.policy), "regress")


@given(
    st.sampled_from(["best", "last"]), st.none() | st.integers(0, 9), st.sets(st.integers(0, 9)),
    st.none() | st.integers(0, 9),
)  # fmt: skip
def test_a_rescue_begins_only_with_a_checkpoint_that_is_there(
    start: str, best: int | None, kept: set[int], began: int | None
) -> None:
    chosen = choose_step(start, best, kept, began)
    if not kept:
        assert chosen is None
        return
    assert chosen is not None
    step, said = chosen
    assert step in kept
    if start == "last":
        assert chosen == (max(kept), "its last checkpoint")
        return
    sound = {one for one in kept if began is None or one < began}
    assert step in sound or not sound
    assert step == (best if best in (sound or kept) else max(sound or kept))
    assert said.startswith("its best" if step == best and best in (sound or kept) else "its last")
    assert ("went wrong" in said) == (began is not None and (step != best or not sound))


def test_where_a_run_went_wrong_is_what_its_verdict_shows() -> None:
    def verdict(rule: str, **evidence: object) -> dict[str, object]:
        warning = {"detector": rule, "summary": "a little", "step": 5, "evidence": {"first_step": 1}}
        stop = {"detector": rule, "summary": "much", "step": 9, "evidence": evidence}
        return {"rule": rule, "reason": "much", "findings": [warning, stop]}

    assert began_at(verdict("explosion", first_step=7)) == 7
    assert began_at(verdict("non_finite")) == 9
    assert began_at(verdict("regress", best_step=3)) is None
    assert began_at(verdict("explosion")) is None
    assert began_at({}) is None


def test_a_rescue_prefers_what_was_kept_before_it_went_wrong() -> None:
    assert choose_step("best", 50, {25, 50, 75}, 40) == (
        25, "its last checkpoint from before step 40, where it went wrong",
    )  # fmt: skip
    assert choose_step("best", 25, {25, 50}, 40) == (25, "its best checkpoint")
    assert choose_step("best", 50, {50, 75}, 7) == (
        50, "its best checkpoint; it went wrong at step 7, before any that is kept",
    )  # fmt: skip
