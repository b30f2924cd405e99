from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.liveness import (
    HUNG,
    NEVER_STARTED,
    SILENT,
    THROUGHPUT_COLLAPSE,
    UNACKNOWLEDGED_CONTROL,
    Concern,
    Limits,
    Signs,
    Watch,
    gap_to_expect,
    health,
    observe,
)
from runner.records import AttemptKind, Health

LIMITS = Limits()
HOUR_S = 3600.0


class Script:
    """A training that is looked at: what it shows is changed by hand, time passes in rounds."""

    def __init__(self, kind: AttemptKind = AttemptKind.TRAIN, is_trainer: bool = True, **more: Any) -> None:
        self.watch = Watch(kind, is_trainer, **more)
        self.signs = Signs(monotonic_s=1000.0)
        self.concerns: tuple[Concern, ...] = ()
        self.ever: set[str] = set()
        self.beats = True
        self.look()

    @property
    def names(self) -> set[str]:
        return {concern.name for concern in self.concerns}

    def show(self, **changes: Any) -> None:
        self.signs = replace(self.signs, **changes)

    def look(self) -> None:
        self.watch, self.concerns = observe(self.watch, self.signs)
        self.ever |= self.names

    def jump(self, seconds: float) -> None:
        """One round that comes so much later than the last one."""
        now = self.signs.monotonic_s + seconds
        self.show(monotonic_s=now, heartbeat=now if self.beats else self.signs.heartbeat)
        self.look()

    def wait(self, seconds: float, round_s: float = 5.0) -> None:
        """Rounds in which nothing new comes but heartbeats."""
        while seconds > 0:
            self.jump(min(round_s, seconds))
            seconds -= round_s

    def write(self, **changes: Any) -> None:
        """A new record; it is seen in a round of its own, at the same time."""
        self.show(records=self.signs.records + 1, announced="", **changes)
        self.look()

    def train(self, lines: int, every_s: float = 10.0, steps: int = 10, round_s: float = 5.0) -> None:
        for _ in range(lines):
            self.wait(every_s, round_s)
            self.write(step=self.signs.step + steps, has_stepped=True)

    def save(self) -> None:
        self.write()
        self.show(announced="checkpoint")
        self.look()

    def validate(self, seconds: float) -> None:
        self.save()
        self.wait(seconds)
        self.write(validations=self.signs.validations + 1)

    def the(self, name: str) -> Concern:
        return next(concern for concern in self.concerns if concern.name == name)


class TestSilent:
    def test_no_heartbeat_and_no_process(self) -> None:
        script = Script()
        script.train(5)
        script.show(is_visible=False)
        script.beats = False
        script.wait(LIMITS.silent_s - 5)
        assert script.names == set()
        script.wait(5)
        assert script.names == {SILENT}
        assert script.the(SILENT).health is Health.UNKNOWN

    def test_one_of_both_is_enough_to_be_heard(self) -> None:
        for changes in ({"is_visible": False}, {"heartbeat": 1}):
            script = Script()
            script.beats = "heartbeat" not in changes
            script.show(**changes)
            script.wait(2 * LIMITS.silent_s)
            assert SILENT not in script.ever

    @pytest.mark.parametrize("sign", [{"heartbeat": "other"}, {"is_visible": True}, {"records": 77}])
    def test_any_sign_of_life_ends_it(self, sign: dict[str, Any]) -> None:
        script = Script()
        script.beats = False
        script.show(is_visible=False)
        script.wait(LIMITS.silent_s + 10)
        assert script.names == {SILENT}
        script.show(**sign)
        script.look()
        assert script.names == set()

    def test_nothing_else_is_said_of_it_and_the_time_counts_against_nobody(self) -> None:
        script = Script()
        script.train(10)
        script.beats = False
        script.show(is_visible=False)
        script.wait(8 * HOUR_S)
        assert script.names == {SILENT}
        script.show(is_visible=True)
        script.look()
        assert script.names == set()
        assert script.ever == {SILENT}


class TestHung:
    def test_the_process_lives_and_nothing_comes(self) -> None:
        script = Script()
        script.train(10)
        script.wait(LIMITS.hang_s - 5)
        assert script.names == set()
        script.wait(5)
        hung = script.the(HUNG)
        assert hung.health is Health.HUNG
        assert hung.evidence == {"step": 100, "quiet_s": 300.0, "limit_s": 300.0, "longest_gap_s": 10.0}

    def test_one_dump_is_asked_for_in_each_hang(self) -> None:
        script = Script()
        script.train(10)
        assert script.watch.dump_seq == 0
        script.wait(LIMITS.hang_s + HOUR_S)
        assert script.watch.dump_seq == 1
        script.train(5)
        assert script.names == set()
        assert script.watch.dump_seq == 1
        script.wait(5 * HOUR_S)
        assert script.names == {HUNG}
        assert script.watch.dump_seq == 2

    def test_silence_in_between_asks_for_no_second_dump(self) -> None:
        script = Script()
        script.train(10)
        script.wait(LIMITS.hang_s)
        script.beats = False
        script.show(is_visible=False)
        script.wait(LIMITS.silent_s)
        assert script.names == {SILENT}
        script.show(is_visible=True)
        script.look()
        assert script.names == {HUNG}
        assert script.watch.dump_seq == 1

    def test_before_the_first_validation_it_may_take_long(self) -> None:
        for is_trainer in (True, False):
            script = Script(is_trainer=is_trainer, steps_total=10_000)
            script.train(10)
            script.validate(LIMITS.patient_s - 5)
            script.train(10)
            assert script.ever == set()
            script.validate(1.5 * LIMITS.patient_s)  # it was learned
            assert script.ever == set()

    def test_known_pauses_shorten_the_patience(self) -> None:
        script = Script(is_trainer=False, steps_total=10_000)
        script.train(10)
        script.validate(120)
        script.train(10)
        script.wait(3 * 120 - 5)
        assert script.names == set()
        script.wait(5)
        assert script.names == {HUNG}

    def test_a_script_without_validations_is_known_after_one_half(self) -> None:
        script = Script(is_trainer=False, steps_total=200)
        script.train(9)
        script.wait(LIMITS.patient_s - 5)
        assert script.names == set()
        script = Script(is_trainer=False, steps_total=200)
        script.train(11)
        script.wait(LIMITS.hang_s)
        assert script.names == {HUNG}

    def test_after_the_last_step_there_is_patience(self) -> None:
        script = Script(steps_total=100)
        script.train(10)
        script.wait(LIMITS.patient_s - 5)
        assert script.names == set()
        script.wait(5)
        assert script.names == {HUNG}

    def test_an_evaluation_has_its_own_limit(self) -> None:
        script = Script(AttemptKind.EVALUATE)
        script.wait(LIMITS.evaluation_s - 5)
        assert script.ever == set()
        script.wait(5)
        assert script.names == {HUNG}

    @settings(max_examples=25)
    @given(
        period_s=st.floats(0.5, HOUR_S),
        round_s=st.floats(2.0, 10.0),
        is_trainer=st.booleans(),
        lines=st.integers(1, 6),
    )
    def test_a_slow_but_steady_run_never_hangs(
        self, period_s: float, round_s: float, is_trainer: bool, lines: int
    ) -> None:
        script = Script(is_trainer=is_trainer, steps_total=1000)
        script.train(lines, period_s, steps=1, round_s=round_s)
        script.wait(0.99 * period_s, round_s)
        assert script.ever <= {NEVER_STARTED}
        assert script.names == set()

    @given(gaps=st.lists(st.floats(0.1, 250.0), min_size=1, max_size=40), quiet_s=st.floats(3000.0, 9000.0))
    def test_a_hang_is_seen_in_time_and_ends_with_progress(self, gaps: list[float], quiet_s: float) -> None:
        script = Script()
        for gap_s in gaps:
            script.train(1, gap_s)
        assert HUNG not in script.ever
        limit_s = max(LIMITS.hang_s, LIMITS.hang_gaps * max(gaps)) + 10
        script.wait(limit_s)
        assert HUNG in script.names
        script.wait(quiet_s)
        assert HUNG in script.names
        assert script.watch.dump_seq == 1
        script.train(1)
        assert script.names == set()


class TestAfterARestartOfTheController:
    def test_a_hang_that_was_known_stays_until_progress_without_a_second_dump(self) -> None:
        script = Script(standing=(HUNG,), dump_seq=3)
        assert script.names == {HUNG}
        script.wait(HOUR_S)
        assert (script.names, script.watch.dump_seq) == ({HUNG}, 3)
        script.write(step=10, has_stepped=True)
        assert (script.names, script.watch.dump_seq) == (set(), 3)

    @pytest.mark.parametrize(("longest_gap_s", "patience_s"), [(0.0, LIMITS.patient_s), (900.0, 2700.0)])
    def test_an_unknown_run_is_given_time(self, longest_gap_s: float, patience_s: float) -> None:
        adopted = Watch(AttemptKind.TRAIN, is_trainer=True, longest_gap_s=longest_gap_s)
        script = Script()
        script.watch = adopted
        script.show(has_stepped=True, step=500, records=3)
        script.look()
        script.wait(60)
        script.write(step=510)  # the first gap is cut by the restart: it says nothing
        script.wait(patience_s - 5)
        assert script.names == set()
        script.wait(5)
        assert script.names == {HUNG}

    def test_one_jump_of_the_wall_clock_is_no_gap(self) -> None:
        steady = [100.0 + 20.0 * line for line in range(30)]
        assert gap_to_expect(steady) == 20.0
        assert gap_to_expect([*steady, *(time_s + 9e8 for time_s in steady[-1:])]) == 20.0
        assert gap_to_expect([]) == gap_to_expect([5.0]) == gap_to_expect([5.0, 9.0]) == 0.0


class TestNeverStarted:
    def test_no_step_for_long_is_a_warning_and_no_hang(self) -> None:
        script = Script()
        script.write()
        script.show(announced="started")
        script.wait(LIMITS.patient_s - 5)
        assert script.names == set()
        script.wait(HOUR_S)
        assert script.names == {NEVER_STARTED}
        assert script.the(NEVER_STARTED).health is Health.WARNED
        script.train(1)
        assert script.names == set()

    def test_a_validation_before_the_first_step_is_no_start(self) -> None:
        script = Script()
        script.validate(60)
        script.wait(LIMITS.patient_s)
        assert script.names == {NEVER_STARTED}

    def test_evaluations_make_no_steps(self) -> None:
        script = Script(AttemptKind.EVALUATE)
        script.wait(LIMITS.patient_s + 60)
        assert script.names == set()


class TestThroughput:
    def test_a_sustained_collapse_warns_and_clears(self) -> None:
        script = Script()
        script.train(60)
        script.train(3, every_s=40)
        assert script.names == set()
        script.train(3, every_s=40)
        collapse = script.the(THROUGHPUT_COLLAPSE)
        assert collapse.health is Health.WARNED
        assert collapse.evidence["usual_steps_per_s"] == pytest.approx(1.0)
        assert collapse.evidence["steps_per_s"] == pytest.approx(0.25)
        assert "25% of its usual speed" in collapse.summary
        script.train(8, every_s=20)  # half of the usual speed would not have raised it, nor does it clear it
        assert script.names == {THROUGHPUT_COLLAPSE}
        script.train(6)
        assert script.names == set()

    def test_a_collapse_does_not_become_the_usual_speed(self) -> None:
        script = Script()
        script.train(60)
        script.train(400, every_s=40)
        assert script.names == {THROUGHPUT_COLLAPSE}

    def test_validations_are_no_collapse(self) -> None:
        script = Script()
        for _ in range(20):
            script.train(10)
            script.validate(280)
        assert script.ever == set()

    def test_work_that_is_announced_as_other_work_sets_a_new_pace(self) -> None:
        script = Script()
        script.train(60)
        script.write(work=1)
        script.train(60, every_s=60)
        assert script.ever == set()
        script.train(6, every_s=240)
        assert script.names == {THROUGHPUT_COLLAPSE}

    @given(st.lists(st.floats(0.6, 1.6), min_size=30, max_size=60))
    def test_an_uneven_run_does_not_collapse(self, speeds: list[float]) -> None:
        script = Script()
        for speed in speeds:
            script.train(1, every_s=20 / speed)
        assert script.ever == set()

    def test_steps_made_while_the_controller_was_stopped_are_no_speed(self) -> None:
        script = Script()
        for _ in range(12):
            script.train(12)
            script.jump(HOUR_S)
            script.write(step=script.signs.step + 3600)
        script.train(30)
        assert script.watch.pace.usual == pytest.approx(1.0)
        assert script.ever == set()

    def test_what_is_remembered_is_bounded(self) -> None:
        script = Script()
        script.train(1500, every_s=30, round_s=10)
        assert 100 < len(script.watch.pace.rates) <= 240


class TestControl:
    def trained(self, **more: Any) -> Script:
        script = Script(**more)
        script.train(12)  # one step a second
        script.show(control_seq=4, acknowledged_seq=3)
        return script

    def test_no_answer_within_three_steps_and_30_s(self) -> None:
        script = self.trained()
        script.train(3)
        assert script.names == set()
        script.train(1)
        assert script.the(UNACKNOWLEDGED_CONTROL).evidence == {"seq": 4, "unacknowledged_s": 35.0, "limit_s": 33.0}
        script.show(acknowledged_seq=4)
        script.look()
        assert script.names == set()

    def test_slow_steps_have_more_time(self) -> None:
        script = Script()
        script.train(12, every_s=100, steps=1)
        script.show(control_seq=4)
        script.train(3, every_s=100, steps=1)
        assert script.names == set()
        script.train(1, every_s=100, steps=1)
        assert script.names == {UNACKNOWLEDGED_CONTROL}

    def test_a_validation_is_waited_for(self) -> None:
        script = self.trained()
        script.validate(200)
        script.show(acknowledged_seq=4)
        script.train(2)
        assert script.ever == set()

    def test_a_later_number_answers_too_and_a_new_wish_has_its_own_time(self) -> None:
        script = self.trained()
        script.train(2)
        script.show(control_seq=5)
        script.train(3)
        assert script.names == set()
        script.show(acknowledged_seq=6)
        script.train(10)
        assert script.ever == set()

    @pytest.mark.parametrize("more", [{"is_trainer": False}, {"kind": AttemptKind.EVALUATE}])
    def test_only_a_training_of_ours_answers(self, more: dict[str, Any]) -> None:
        script = self.trained(**more)
        script.train(10)
        assert script.ever == set()

    def test_without_a_wish_nobody_waits(self) -> None:
        script = Script()
        script.train(30)
        assert script.ever == set()


@st.composite
def rounds(draw: st.DrawFn) -> Signs:
    """What a run at work could show in one round, whenever it comes."""
    return Signs(
        monotonic_s=draw(st.floats(-1e9, 1e9)),
        heartbeat=draw(st.integers(0, 3)),
        is_visible=draw(st.booleans()),
        records=draw(st.integers(0, 5)),
        step=draw(st.integers(0, 50)),
        has_stepped=draw(st.booleans()),
        announced=draw(st.sampled_from(["", "checkpoint", "resumed", "stopped"])),
        validations=draw(st.integers(0, 2)),
        work=draw(st.integers(0, 2)),
        control_seq=draw(st.none() | st.integers(0, 3)),
        acknowledged_seq=draw(st.none() | st.integers(0, 3)),
    )


class TestTime:
    @given(
        sleeps_s=st.lists(st.floats(0, 1e7), min_size=1, max_size=2),
        beats=st.booleans(),
        visible=st.booleans(),
        wish=st.booleans(),
    )
    def test_a_controller_that_slept_accuses_nobody(
        self, sleeps_s: list[float], beats: bool, visible: bool, wish: bool
    ) -> None:
        script = Script(steps_total=10_000)
        script.train(20)
        script.beats = beats
        script.show(is_visible=visible, control_seq=2 if wish else None)
        for sleep_s in sleeps_s:  # nothing at all is new when it wakes up
            script.jump(sleep_s)
            script.wait(1.0, round_s=0.5)
        assert script.ever == set()
        script.beats = True
        script.show(acknowledged_seq=2)
        script.train(30)
        assert script.ever == set()

    @given(st.floats(-1e9, 0))
    def test_a_clock_that_runs_backwards_takes_nothing_back(self, jump_s: float) -> None:
        script = Script()
        script.train(10)
        script.wait(200)
        quiet_s = script.watch.quiet_s
        script.jump(jump_s)
        assert script.watch.quiet_s == quiet_s

    @given(st.lists(rounds(), max_size=20), st.sampled_from(AttemptKind), st.booleans())
    def test_whatever_is_seen_the_answer_is_whole_and_the_same_again(
        self, seen: list[Signs], kind: AttemptKind, is_trainer: bool
    ) -> None:
        def follow() -> Iterator[tuple[Watch, tuple[Concern, ...]]]:
            watch = Watch(kind, is_trainer, steps_total=20, limits=Limits(silent_s=15, hang_s=15, patient_s=20))
            for signs in seen:
                watch, concerns = observe(watch, signs)
                yield watch, concerns

        answers = list(follow())
        assert answers == list(follow())
        dumps = [0, *(watch.dump_seq for watch, _ in answers)]
        assert all(after - before in (0, 1) for before, after in pairwise(dumps))
        for watch, concerns in answers:
            names = [concern.name for concern in concerns]
            assert names == list(watch.standing)
            assert len(set(names)) == len(names)
            assert SILENT not in names or names == [SILENT]
            assert not (HUNG in names and watch.dump_seq == 0)
            json.dumps([dict(concern.evidence) for concern in concerns], allow_nan=False)

    @settings(max_examples=20)
    @given(st.lists(st.floats(0.5, 200.0), min_size=6, max_size=20))
    def test_the_number_of_rounds_does_not_matter(self, gaps: Iterable[float]) -> None:
        often, seldom = Script(), Script()
        for gap_s in gaps:
            often.train(1, gap_s, round_s=1.0)
            seldom.train(1, gap_s, round_s=10.0)
        assert often.watch.longest_gap_s == pytest.approx(seldom.watch.longest_gap_s)
        for script in (often, seldom):
            script.wait(max(LIMITS.hang_s, 3 * often.watch.longest_gap_s) + 1, round_s=1.0)
            assert HUNG in script.names


def test_the_gravest_health_is_shown() -> None:
    hung, slow = Concern(HUNG, ""), Concern(THROUGHPUT_COLLAPSE, "")
    assert health(Health.OK, ()) is Health.OK
    assert health(Health.OK, (slow,)) is Health.WARNED
    assert health(Health.WARNED, (slow, hung)) is Health.HUNG
    assert health(Health.DIVERGED, (hung,)) is Health.DIVERGED
    assert {health(each, ()) for each in Health} == set(Health)
