from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.base import GpuUse, Leftover, ProcessIdentity, Slot, SlotProbe
from provisioning.gpu_watch import GpuReading
from provisioning.gpus import Gpu, GpuSurvey
from provisioning.local import LocalProvider
from runner.home import Home
from runner.places import Places
from runner.quarantine import (
    AGE_SLACK_S,
    RELEASE_WITHIN_S,
    REPROBE_S,
    RETURN_MIB,
    Before,
    NotReleased,
    Quarantine,
    Released,
    Waiting,
    before_from_json,
    before_of,
    is_probe_due,
    is_released,
    lift_reason,
    named,
    of_the_attempt,
    offered,
    withheld,
)
from runner.records import RunState
from runner.run_facts import Shape
from runner.slot_watch import open_quarantines
from runner.store.facts import open_runs
from tests.fakes.arms import command_arm
from tests.fakes.stored_study import StoredStudy

UUID = "GPU-1a2b"
CPU, GPU = Slot("cpu0", (0,)), Slot("gpu0", (0,), (UUID,), (0,), 24_000)
IDENTITY = ProcessIdentity("boot", 1, 77, 100)
ANNA = GpuUse(UUID, 21_004, 42, "anna", "python train.py")
UNSEEN = GpuUse(UUID, 9_000, None)
MINE = GpuUse(UUID, 9_000, 43, "me", "python -m trainer", "c0ffee/lab/a/attempt-1")


def gpu(used_mib: int, others_mib: int = 0, **other: object) -> SlotProbe:
    return replace(SlotProbe({UUID: used_mib}, {UUID: 0}, {UUID: others_mib}), **other)


class TestRelease:
    @pytest.mark.parametrize(
        ("more_mib", "waited_s", "found"),
        [
            (RETURN_MIB, 0, Released),
            (RETURN_MIB + 1, 0, Waiting),
            (RETURN_MIB + 1, RELEASE_WITHIN_S - 0.1, Waiting),
            (RETURN_MIB + 1, RELEASE_WITHIN_S, NotReleased),
            (RETURN_MIB, 10 * RELEASE_WITHIN_S, Released),
            (-5_000, 0, Released),
        ],
    )
    def test_memory_must_come_back_in_time(self, more_mib: int, waited_s: float, found: type) -> None:
        before = before_of(gpu(6_000))
        assert isinstance(is_released(before, gpu(6_000 + more_mib), waited_s), found)

    def test_the_reason_names_the_gpu_the_memory_and_who_holds_it(self) -> None:
        found = is_released(Before({UUID: 100}), gpu(9_100, ours=(MINE,)), 31)
        assert isinstance(found, NotReleased)
        assert f"{UUID} holds 9,000 MiB more than before" in found.reason
        assert "pid 43 (me: python -m trainer)" in found.reason

    def test_what_visible_others_hold_is_not_ours_to_give_back(self) -> None:
        assert is_released(Before({UUID: 100}), gpu(21_100, 21_004, foreign=(ANNA,)), 31) == Released()
        assert is_released(Before({UUID: 21_100}, {UUID: 21_004}), gpu(100), 31) == Released()

    def test_others_that_leave_do_not_hide_what_is_left_of_ours(self) -> None:
        found = is_released(Before({UUID: 21_100}, {UUID: 21_004}), gpu(9_000), 31)
        assert isinstance(found, NotReleased)

    def test_without_a_value_from_before_an_idle_gpu_is_free(self) -> None:
        assert is_released(None, gpu(1_024), 31) == Released()
        assert isinstance(is_released(None, gpu(1_025), 31), NotReleased)

    def test_a_gpu_that_does_not_answer_is_not_free(self) -> None:
        found = is_released(Before({UUID: 100}), SlotProbe(problem=f"{UUID} does not answer: lost"), 31)
        assert found == NotReleased(f"{UUID} does not answer: lost")

    def test_a_cpu_slot_is_free_when_its_tree_is_gone(self) -> None:
        assert is_released(None, SlotProbe(), 0) == Released()
        found = is_released(None, SlotProbe(leftovers=(Leftover(IDENTITY, 60.0),)), 31)
        assert found == NotReleased("processes of the attempt still run (pid 77)")

    @given(
        before=st.integers(0, 80_000), others=st.integers(0, 80_000), now=st.integers(0, 80_000), s=st.floats(0, 100)
    )
    def test_waiting_ends_and_released_needs_no_time(self, before: int, others: int, now: int, s: float) -> None:
        start = Before({UUID: before + others}, {UUID: others})
        early, late = is_released(start, gpu(now), 0.0), is_released(start, gpu(now), RELEASE_WITHIN_S + s)
        assert not isinstance(late, Waiting)
        assert isinstance(early, Released) == isinstance(late, Released) == (now - before <= RETURN_MIB)

    def test_a_younger_process_only_has_the_number(self) -> None:
        old, young = Leftover(IDENTITY, 600.0), Leftover(replace(IDENTITY, start_ticks=9), 590.0)
        assert of_the_attempt((old, young), 600.0) == (old,)
        assert of_the_attempt((young,), 590.0 + AGE_SLACK_S) == (young,)

    def test_what_is_stored_is_read(self) -> None:
        assert before_from_json({"used_mib": {UUID: 3}, "others_mib": {UUID: 1}, "settled": 1.0}) == Before(
            {UUID: 3}, {UUID: 1}
        )
        assert before_from_json(None) is None
        assert before_from_json({"settled": 1.0}) is None


class TestQuarantine:
    def test_the_next_look_comes_after_a_while(self) -> None:
        assert is_probe_due(None, 0.0)
        assert not is_probe_due(100.0, 100.0 + REPROBE_S - 0.1)
        assert is_probe_due(100.0, 100.0 + REPROBE_S)

    def test_memory_that_is_back_lifts_it(self) -> None:
        kept = Quarantine(1, 1, GPU, "", 0.0, Before({UUID: 100}))
        assert lift_reason(kept, gpu(9_000)) == ""
        assert lift_reason(kept, gpu(100, problem="lost")) == ""
        assert lift_reason(kept, gpu(300)) == "its GPU memory is back"

    def test_processes_that_are_gone_lift_it_and_a_new_one_of_the_number_does_not_keep_it(self) -> None:
        kept = Quarantine(1, 1, CPU, "", 0.0, leftovers=(IDENTITY,))
        assert lift_reason(kept, SlotProbe(leftovers=(Leftover(IDENTITY, 9.0),))) == ""
        reused = Leftover(replace(IDENTITY, start_ticks=999), 1.0)
        assert lift_reason(kept, SlotProbe(leftovers=(reused,))) == "the processes that were left are gone"
        assert lift_reason(Quarantine(1, 1, CPU, "", 0.0), SlotProbe()).startswith("a probe finds nothing wrong")


class TestWhatIsOnOffer:
    def judge(self, probe: SlotProbe, *, share: bool = False, vram: float = 0) -> str:
        found = withheld(GPU, probe, share_gpus=share, min_vram_gib=vram)
        return "" if found is None else f"{found.kind} {found}"

    def test_a_stranger_keeps_runs_away_and_is_named(self) -> None:
        probe = gpu(21_100, 21_004, foreign=(ANNA,))
        assert self.judge(probe) == (
            "foreign gpu0: pid 42 (anna: python train.py) holds 21,004 MiB; --share-gpus starts beside them"
        )
        assert self.judge(probe, share=True) == ""
        assert offered(GPU, probe).vram_mib == 24_000 - 21_004

    def test_what_is_unseen_is_taken_from_the_offer_too(self) -> None:
        assert offered(GPU, gpu(9_000, foreign=(UNSEEN,))).vram_mib == 15_000

    def test_what_draws_is_taken_from_the_offer(self) -> None:
        probe = gpu(2_000, 2_000)
        assert offered(GPU, probe) == replace(GPU, vram_mib=22_000)
        assert self.judge(probe, vram=21) == ""
        assert self.judge(probe, vram=22) == (
            "memory gpu0: other programs hold 2,000 of 24,000 MiB; resources.min_vram_gib asks for 22 GiB"
        )

    def test_an_attempt_that_nobody_follows_keeps_runs_away(self) -> None:
        assert self.judge(gpu(9_000, ours=(MINE,))).startswith("stray gpu0: an attempt of ours that is given up")

    def test_a_cpu_slot_is_as_it_is(self) -> None:
        assert offered(CPU, SlotProbe()) == CPU
        assert withheld(CPU, SlotProbe(), share_gpus=False, min_vram_gib=0) is None

    def test_the_largest_are_named_first(self) -> None:
        uses = [GpuUse(UUID, mib, mib) for mib in (600, 900, 700, 800)]
        assert named(uses) == (
            "pid 900 (: ) holds 900 MiB, pid 800 (: ) holds 800 MiB, pid 700 (: ) holds 700 MiB, and 1 more"
        )


@dataclass
class Machine:
    """Two GPUs, the cores that we may use of it, and a clock; a test changes them."""

    stored: StoredStudy
    order: tuple[str, ...] = ("GPU-other", UUID)
    cores: tuple[int, ...] = (0, 1)
    answer: GpuReading | str = "it has fallen off the bus"
    now: float = 1_000.0

    def survey(self) -> GpuSurvey:
        return GpuSurvey(tuple(Gpu(uuid, index, "card", 24_000) for index, uuid in enumerate(self.order)))

    def read(self, uuids: Sequence[str]) -> Mapping[str, GpuReading | str]:
        return {uuid: self.answer if uuid == UUID else GpuReading(uuid, 10) for uuid in uuids}

    def places(self) -> Places:
        """What a new controller knows of it."""
        local = LocalProvider("", {}, driver=self, cores=lambda: self.cores, monotonic=lambda: self.now)
        return Places(self.stored.session, {"local": local}, lambda: self.now, lambda: self.now)

    def names(self, places: Places) -> list[str]:
        return [slot.name for slots in places.slots([Shape(1, 1)]).values() for slot in slots]

    def kept(self) -> int:
        """How many quarantines are in force."""
        with self.stored.session.reading() as connection:
            return len(open_quarantines(connection))


class TestAControllerThatComesBackElsewhere:
    @pytest.fixture
    def machine(self, tmp_path: Path) -> Iterator[Machine]:
        stored = StoredStudy(Home(tmp_path))
        stored.run(replace(command_arm(), arm="waits"), state=RunState.QUEUED)  # with nothing open, nobody looks
        yield Machine(stored)
        stored.close()

    @pytest.mark.parametrize("cores", [(0, 1), (2, 3), (7,)])
    @pytest.mark.parametrize("order", [("GPU-other", UUID), (UUID, "GPU-other")])
    def test_the_gpu_stays_in_quarantine_under_any_name_and_any_cores_until_it_is_well(
        self, machine: Machine, cores: tuple[int, ...], order: tuple[str, ...]
    ) -> None:
        assert machine.names(machine.places()) == ["gpu0"]
        assert machine.kept() == 1
        machine.order, machine.cores = order, cores
        machine.answer = GpuReading(UUID, 9_000)  # it answers again, and still holds what nobody accounts for
        machine.now += REPROBE_S
        places = machine.places()
        with machine.stored.session.reading() as connection:
            runs = open_runs(connection)
        sick = f"gpu{order.index(UUID)}"
        for _ in range(2):
            places.prove_released(runs)
            assert sick not in machine.names(places)
            assert (sick, "quarantine") in [(one.slot, one.kind) for one in places.withheld()]
            machine.now += REPROBE_S
        assert machine.kept() == 1, "it is one GPU, whatever its slot is called"
        machine.answer = GpuReading(UUID, 10)
        machine.now += REPROBE_S
        places.prove_released(runs)
        assert sorted(machine.names(places)) == ["gpu0", "gpu1"]
        assert machine.kept() == 0

    def test_a_healthy_gpu_that_gets_its_number_may_be_used(self, machine: Machine) -> None:
        assert machine.names(machine.places()) == ["gpu0"]
        machine.order = (UUID, "GPU-other")
        assert machine.names(machine.places()) == ["gpu1"]
        machine.order = ("GPU-new", "GPU-other")  # the sick one was taken out
        machine.now += REPROBE_S
        assert machine.names(machine.places()) == ["gpu0", "gpu1"]
