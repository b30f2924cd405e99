"""When what is wrong with a process may stop a run: how long it lasted, what the policy says, what a person said."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from runner.liveness import HEALTH, HUNG, NEVER_STARTED, SILENT, THROUGHPUT_COLLAPSE, Concern, Limits
from runner.records import Policy, Severity
from runner.suspicion import RULE_NAMES, RULES, action_on, is_shadow
from tests.test_runner_attending import STUCK, Rig, rig
from tests.test_runner_liveness import Script

__all__ = ["rig"]
LIMITS = Limits()


def on(concern: Concern, allowed: str | None, step: int = 10, overridden: tuple[str, ...] = ()) -> str:
    rule = RULES.get(concern.name, concern.name)
    policy = Policy({} if allowed is None else {rule: allowed}, tail=0.1)
    return action_on(concern, policy, step=step, steps_total=100, overridden=overridden)


GRAVE = Concern(HUNG, "it hangs", {}, Severity.ABORT)


def test_only_what_the_policy_lets_and_only_once_it_has_lasted() -> None:
    assert on(Concern(HUNG, "it hangs"), "abort") == "warn"
    assert [on(GRAVE, allowed) for allowed in (None, "shadow", "warn", "abort", "rescue")] == [
        "warn", "shadow", "warn", "abort", "rescue",
    ]  # fmt: skip
    assert on(GRAVE, "abort", overridden=("hung",)) == "warn"
    assert is_shadow(HUNG, Policy({"hung": "shadow"}))
    assert not is_shadow(SILENT, Policy({"hung": "shadow"}))


def test_in_the_tail_a_slow_run_is_let_through_and_a_dead_one_is_not() -> None:
    slow = Concern(THROUGHPUT_COLLAPSE, "slow", {}, Severity.ABORT)
    assert (on(slow, "abort", 89), on(slow, "abort", 90)) == ("abort", "verdict_only")
    assert on(GRAVE, "abort", 95) == "abort"
    assert on(Concern(NEVER_STARTED, "no step", {}, Severity.ABORT), "abort", 0) == "abort"


@given(st.sampled_from(sorted(HEALTH)), st.sampled_from([*Severity]), st.sampled_from([*Severity]), st.integers(0, 100))
def test_nothing_is_stopped_that_was_not_allowed(name: str, seen: Severity, allowed: Severity, step: int) -> None:
    does = on(Concern(name, "x", {}, seen), allowed, step)
    if does in ("abort", "rescue"):
        assert (seen, does) == (Severity.ABORT, allowed)
        assert RULES[name] in RULE_NAMES
    assert name in RULES or does == "warn"


def test_a_hang_is_grave_after_twice_its_limit_and_anything_new_ends_it() -> None:
    script = Script()
    script.train(60)
    script.wait(LIMITS.hang_s)
    assert script.the(HUNG).severity is Severity.WARN
    script.wait(LIMITS.hang_s - 5)
    assert script.the(HUNG).severity is Severity.WARN
    script.wait(5)
    assert script.the(HUNG).severity is Severity.ABORT
    assert script.watch.grave == (HUNG,)
    script.train(1)
    assert (script.names, script.watch.grave) == (set(), ())


def test_a_first_step_may_take_twice_as_long_before_it_counts() -> None:
    script = Script()
    script.wait(2 * LIMITS.patient_s - 5)
    assert script.the(NEVER_STARTED).severity is Severity.WARN
    script.wait(5)
    assert script.the(NEVER_STARTED).severity is Severity.ABORT


def test_only_next_to_nothing_for_half_an_hour_is_grave() -> None:
    halved, dead = Script(), Script()
    for script, slower in ((halved, 4), (dead, 10)):
        script.train(60, every_s=10.0)
        script.train(int(LIMITS.dead_s / (10 * slower)) - 2, every_s=10.0 * slower)
        assert script.the(THROUGHPUT_COLLAPSE).severity is Severity.WARN
        script.train(4, every_s=10.0 * slower)
    assert halved.the(THROUGHPUT_COLLAPSE).severity is Severity.WARN
    assert dead.the(THROUGHPUT_COLLAPSE).severity is Severity.ABORT
    dead.train(1, every_s=40.0)  # slow still, but alive
    assert dead.the(THROUGHPUT_COLLAPSE).severity is Severity.WARN


def launch(rig: Rig, hung: str) -> None:
    policy = {"detectors": {"hung": hung}}
    arm = rig.lab.arm("A", STUCK, policy=policy)
    rig.launch_arm(arm)
    rig.rounds(lambda: rig.run()["step"] == 15, advance_s=2.5)  # so that the gaps between its records are seen


def test_a_hung_run_is_stopped_and_says_why(rig: Rig) -> None:
    launch(rig, "abort")
    rig.rounds(lambda: rig.run()["health"] == "hung", advance_s=10.0)
    assert rig.run()["state"] == "running"
    rig.rounds(lambda: rig.run()["state"] == "aborted(hung)", advance_s=10.0)
    assert rig.run()["reason"].startswith("its process runs, but nothing new came for ")
    assert rig.events().count("liveness:hung:abort") == 1


def test_a_person_who_takes_it_up_again_overrules_it(rig: Rig) -> None:
    launch(rig, "abort")
    rig.rounds(lambda: rig.run()["state"] == "aborted(hung)", advance_s=10.0)
    rig.ask("resume", {"run": rig.run()["run_dir"], "from": "last"})
    rig.rounds(lambda: rig.run()["state"] == "running" and rig.run()["attempts"] == 2)
    rig.rounds(lambda: "liveness:hung:warn" in rig.events(), advance_s=10.0)
    assert (rig.run()["state"], rig.run()["health"]) == ("running", "hung")
    (rig.attempt().parent / "go").touch()
    rig.rounds(lambda: rig.run()["state"] == "finished")


def test_in_the_shadow_it_is_written_down_and_nobody_is_told(rig: Rig) -> None:
    launch(rig, "shadow")
    rig.rounds(lambda: "liveness:hung:shadow" in rig.events(), advance_s=10.0)
    rig.rounds(lambda: rig.events().count("liveness:hung:shadow") == 2, advance_s=10.0)  # seen, and grave
    assert rig.run()["state"] == "running"
    assert rig.run()["health"] in ("ok", "unknown")
    assert "liveness:hung" not in rig.events()
    assert os.path.exists(rig.attempt() / "dump.json")
    (rig.attempt().parent / "go").touch()
    rig.rounds(lambda: rig.run()["state"] == "finished")
