"""What a launch will do: new runs, watched ones, new attempts, new generations, and in which waves."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.base import Slot
from runner.errors import SpecError
from runner.plan import Capacity, Intent, KnownRun, Plan, checkpoints_kept, make_plan
from runner.records import ENDED, Resources, RunState
from runner.schedule import Shape
from runner.spec.identity import identity, run_id
from runner.spec.models import ResolvedArm
from tests.fakes.arms import command_arm, trainer_arm

TWO = Capacity(cpu_slots=2)


def planned(*arms: ResolvedArm, known: tuple[KnownRun, ...] = (), capacity: Capacity = TWO, **options: object) -> Plan:
    hashes = {arm.name: "code" for arm in arms}
    return make_plan(arms, hashes, known, capacity=capacity, **options)  # type: ignore[arg-type]


def known_after(plan: Plan, state: RunState) -> tuple[KnownRun, ...]:
    """The runs of a plan as the home knows them later."""
    return tuple(
        KnownRun(run.study, run.arm, run.seed, run.id, run.identity, run.generation, state) for run in plan.runs
    )


A = command_arm(seeds=(1, 0), command=("a",))
B = command_arm(arm="B", seeds=(0,), command=("b",))


def test_new_runs_come_by_seed_then_arm_as_given() -> None:
    plan = planned(B, A)
    assert [run.name for run in plan.runs] == ["trial/B-s0", "trial/A-s0", "trial/A-s1"]
    assert {run.intent for run in plan.runs} == {Intent.START}
    assert {run.generation for run in plan.runs} == {1}
    first = plan.runs[0]
    assert first.identity == identity(B, 0, "code")
    assert first.id == run_id(first.identity, 1)
    assert first.folder == f"trial/B-s0-{first.id}"
    assert (first.arm_order, plan.runs[1].arm_order, first.steps) == (0, 1, 10)


@pytest.mark.parametrize("state", list(RunState))
def test_a_known_run_is_never_started_twice(state: RunState) -> None:
    first = planned(A, B)
    again = planned(A, B, known=known_after(first, state))
    assert [run.id for run in again.runs] == [run.id for run in first.runs]
    assert {run.generation for run in again.runs} == {1}
    if state not in ENDED:
        expected = Intent.WATCH
    elif state in (RunState.FINISHED, RunState.ABORTED):
        expected = Intent.NOTHING
    else:
        expected = Intent.RESTART
    assert {run.intent for run in again.runs} == {expected}
    assert all(state in run.sentence for run in again.runs)
    assert bool(again.waves) is (expected is Intent.RESTART)


def test_a_changed_arm_supersedes_the_old_run() -> None:
    known = known_after(planned(B), RunState.FINISHED)
    (run,) = planned(dataclasses.replace(B, steps=11), known=known).runs
    assert (run.intent, run.generation, run.supersedes) == (Intent.START, 2, known[0].id)
    assert run.sentence == f"starts as generation 2 and supersedes {known[0].id}"
    live = known_after(planned(B), RunState.RUNNING)
    (run,) = planned(dataclasses.replace(B, steps=11), known=live).runs
    assert "which is stopped with a checkpoint" in run.sentence


def test_changing_an_arm_back_is_a_third_generation() -> None:
    first = known_after(planned(B), RunState.FINISHED)
    second = known_after(planned(dataclasses.replace(B, steps=11), known=first), RunState.FINISHED)
    (run,) = planned(B, known=(*first, *second)).runs
    assert (run.intent, run.generation, run.supersedes) == (Intent.START, 3, second[0].id)
    assert run.id not in {first[0].id, second[0].id}


def test_fresh_is_a_new_generation_of_the_same_run() -> None:
    known = known_after(planned(B), RunState.FINISHED)
    (run,) = planned(B, known=known, fresh=True).runs
    assert (run.intent, run.generation, run.identity) == (Intent.START, 2, known[0].identity)


def test_equal_training_in_two_studies_has_one_id_and_two_folders() -> None:
    twin = dataclasses.replace(B, study="other")
    first = planned(B, twin)
    assert [run.generation for run in first.runs] == [1, 1]
    assert first.runs[0].id == first.runs[1].id
    assert first.runs[0].folder != first.runs[1].folder
    again = planned(B, twin, known=known_after(first, RunState.RUNNING))
    assert [(run.id, run.intent) for run in again.runs] == [(run.id, Intent.WATCH) for run in first.runs]


def test_a_wave_holds_runs_of_one_seed_and_fits_the_slots() -> None:
    arms = [command_arm(arm=name, seeds=(0, 1), command=(name,)) for name in "ABC"]
    plan = planned(*arms)
    assert [len(wave) for wave in plan.waves] == [2, 1, 2, 1]
    assert [run.wave for run in plan.runs] == [0, 0, 1, 2, 2, 3]
    assert plan.to_run == plan.runs


def test_gpu_and_cpu_runs_have_waves_of_their_own() -> None:
    gpu = dataclasses.replace(A, resources=Resources(gpus=1), seeds=(0,))
    plan = planned(gpu, B, capacity=Capacity(cpu_slots=1, gpu_slots=1))
    assert [len(wave) for wave in plan.waves] == [1, 1]


def test_slots_that_the_host_does_not_have_are_refused() -> None:
    gpu = dataclasses.replace(A, resources=Resources(gpus=1))
    with pytest.raises(SpecError, match=r"^base.yaml:8: resources.gpus: asks for 1 GPU.*gpus: 0 for a CPU slot"):
        planned(B, gpu)
    with pytest.raises(SpecError, match=r"resources.cpus: asks for 1 CPU core"):
        planned(B, capacity=Capacity(cpu_slots=0, gpu_slots=3))


def test_disk_is_checkpoints_times_what_is_kept_times_runs() -> None:
    arm = trainer_arm(seeds=(0, 1))
    assert checkpoints_kept(arm) == 4
    plan = planned(arm, command_arm(arm="C"))
    assert plan.disk_mib == 2.5 * 4 * 2
    assert plan.disk_unknown == ("trial/C",)
    assert planned(arm, known=known_after(planned(arm), RunState.FINISHED)).disk_mib == 0


def test_time_follows_the_slots_and_is_none_when_a_speed_is_unknown() -> None:
    arms = [
        command_arm(arm=name, steps=steps, command=(name,)) for name, steps in (("A", 3600), ("B", 1800), ("C", 1800))
    ]
    speeds = {f"trial/{name}": 1.0 for name in "ABC"}
    assert planned(*arms, seconds_per_step=speeds).hours == pytest.approx(1.0)
    assert planned(*arms, capacity=Capacity(1), seconds_per_step=speeds).hours == pytest.approx(2.0)
    assert planned(*arms, seconds_per_step={"trial/A": 1.0}).hours is None
    assert planned(*arms).hours is None


seeds = st.lists(st.integers(0, 6), unique=True, min_size=1, max_size=4).map(tuple)


@given(st.lists(seeds, min_size=1, max_size=4), st.integers(1, 4), st.sampled_from(list(RunState)), st.booleans())
def test_any_plan_covers_every_pair_once_and_can_be_planned_again(
    all_seeds: list[tuple[int, ...]], slots: int, state: RunState, fresh: bool
) -> None:
    arms = [command_arm(arm=f"arm{n}", seeds=seeds, command=("same",)) for n, seeds in enumerate(all_seeds)]
    first = planned(*arms, capacity=Capacity(slots))
    pairs = [(run.seed, run.arm_order) for run in first.runs]
    assert pairs == sorted({(seed, order) for order, arm in enumerate(arms) for seed in arm.seeds})
    known = known_after(first, state)
    second = planned(*arms, known=known, capacity=Capacity(slots), fresh=fresh)
    folders = [run.folder for plan in (first, second) for run in plan.runs]
    assert len(set(folders)) == len(pairs) * (2 if fresh else 1)
    waved = [run for wave in second.waves for run in wave]
    assert waved == [run.folder for run in second.to_run]
    assert all(len(wave) <= slots for wave in second.waves)


def test_require_counts_what_really_fits_side_by_side() -> None:
    """Two slots of one core and one slot of two cores are the same two cores."""
    small = dataclasses.replace(A, resources=Resources(gpus=0, cpus=1, colocate="require"), seeds=(0,))
    large = dataclasses.replace(B, resources=Resources(gpus=0, cpus=2, colocate="require"), seeds=(0,))
    cut = {
        Shape(0, 1): (Slot("cpu0", (0,)), Slot("cpu1", (1,))),
        Shape(0, 2): (Slot("cpu0", (0, 1)),),
    }
    two_cores = Capacity(cpu_slots=2, cut=cut)
    with pytest.raises(SpecError, match=r"resources.colocate: require: 2 arms share seed 0; this host has room for 1"):
        planned(small, large, capacity=two_cores)
    twin = dataclasses.replace(small, arm="C", command=("c",))
    assert len(planned(small, twin, capacity=two_cores).to_run) == 2
