from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.base import NoCapacity, Request
from provisioning.cpus import cpu_limit, limited, usable_cores
from provisioning.gpus import Gpu
from provisioning.memory import usable_memory_mib
from provisioning.slots import cpu_slots, gpu_slots


def control_groups(folder: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "membership").write_text(membership)
    return folder / "cgroup", folder / "membership"


class TestLimits:
    @pytest.mark.parametrize(
        ("membership", "files", "limit"),
        [
            ("0::/\n", {"cpu.max": "max 100000\n"}, None),
            ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
            ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),
            ("0::/a/b\n", {"a/b/cpu.max": "100000 50000\n", "a/cpu.max": "400000 100000\n"}, 2.0),
            # The path of the host, which a container does not see: the top of the mount is its own group.
            ("0::/docker/3f2a\n", {"cpu.max": "300000 100000\n"}, 3.0),
            ("4:cpu,cpuacct:/job\n", {"cpu,cpuacct/job/cpu.cfs_quota_us": "250000\n",
                                      "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n"}, 2.5),
            ("4:cpuacct,cpu:/docker/3f\n", {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4.0),
            ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
            ("4:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, None),
            ("4:memory:/\n1:cpu:/\n0::/x\n", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000",
                                             "unified/x/cpu.max": "200000 100000"}, 2.0),
            ("0::/\n", {"cpu.max": "garbage\n"}, None),
            ("", {}, None),
        ],
    )  # fmt: skip
    def test_the_tightest_group_counts(
        self, tmp_path: Path, membership: str, files: dict[str, str], limit: float | None
    ) -> None:
        assert cpu_limit(*control_groups(tmp_path, membership, files)) == limit

    @pytest.mark.parametrize(
        ("membership", "files", "mib"),
        [
            ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": f"{48 * 2**20}\n"}, 48),
            ("5:memory:/job\n", {"memory/job/memory.limit_in_bytes": f"{32 * 2**20}\n"}, 32),
            ("5:cpu:/job\n", {"memory/job/memory.limit_in_bytes": f"{32 * 2**20}\n"}, None),
            # What version 1 writes where there is no limit is more than any machine has.
            ("5:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ],
    )
    def test_memory_is_what_the_tightest_group_allows(
        self, tmp_path: Path, membership: str, files: dict[str, str], mib: float | None
    ) -> None:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
        assert usable_memory_mib(*control_groups(tmp_path, membership, files)) == (machine if mib is None else mib)

    def test_a_system_without_control_groups(self, tmp_path: Path) -> None:
        assert cpu_limit(tmp_path / "none", tmp_path / "nobody") is None

    @pytest.mark.parametrize(
        ("limit", "cores"), [(None, (1, 4, 5)), (0.5, (1,)), (1.9, (1,)), (2.0, (1, 4)), (64.0, (1, 4, 5))]
    )
    def test_a_started_core_is_no_core(self, limit: float | None, cores: tuple[int, ...]) -> None:
        assert limited({5, 1, 4}, limit) == cores

    def test_here(self) -> None:
        assert set(usable_cores()) <= os.sched_getaffinity(0)
        assert usable_cores()


class TestCpuSlots:
    def test_as_many_as_fit(self) -> None:
        slots = cpu_slots(Request(None, 0, 2), (0, 1, 4, 5, 7))
        assert [(slot.name, slot.cores, slot.shares_cores) for slot in slots] == [
            ("cpu0", (0, 1), False),
            ("cpu1", (4, 5), False),
        ]

    def test_fewer_when_asked(self) -> None:
        assert [slot.cores for slot in cpu_slots(Request(1, 0, 2), (0, 1, 4, 5))] == [(0, 1)]

    def test_a_run_larger_than_the_machine(self) -> None:
        with pytest.raises(NoCapacity, match="3 CPU cores are needed for one run; 2 are usable here"):
            cpu_slots(Request(4, 0, 3), (0, 1))

    @given(
        cores=st.sets(st.integers(0, 300), min_size=1, max_size=24).map(sorted),
        cpus=st.integers(1, 8),
        slots=st.none() | st.integers(1, 20),
    )
    def test_every_core_carries_a_like_load(self, cores: list[int], cpus: int, slots: int | None) -> None:
        request = Request(slots, 0, cpus)
        if cpus > len(cores):
            with pytest.raises(NoCapacity):
                cpu_slots(request, cores)
            return
        made = cpu_slots(request, cores)
        load = [sum(core in slot.cores for slot in made) for core in cores]
        assert len(made) == (len(cores) // cpus if slots is None else slots)
        assert all(len(slot.cores) == cpus for slot in made)
        assert max(load) - min(load) <= 1
        assert all(slot.shares_cores == (max(load) > 1) for slot in made)


class TestGpuSlots:
    GPUS = tuple(Gpu(f"GPU-{index}", index, "card", mib) for index, mib in enumerate((80_000, 24_000, 80_000, 80_000)))

    def test_each_gets_its_part_of_the_cores(self) -> None:
        slots = gpu_slots(Request(None, 1, 1), range(16), self.GPUS)
        assert [slot.name for slot in slots] == ["gpu0", "gpu1", "gpu2", "gpu3"]
        assert [len(slot.cores) for slot in slots] == [4, 4, 4, 4]
        assert len({core for slot in slots for core in slot.cores}) == 16
        assert [slot.vram_mib for slot in slots] == [80_000, 24_000, 80_000, 80_000]
        assert not any(slot.shares_cores for slot in slots)

    def test_one_slot_gets_no_more_than_its_part(self) -> None:
        (slot,) = gpu_slots(Request(1, 1, 1), range(16), self.GPUS)
        assert len(slot.cores) == 4

    def test_small_gpus_are_passed_over(self) -> None:
        slots = gpu_slots(Request(None, 1, 1, min_vram_gib=40), range(16), self.GPUS)
        assert [slot.gpu_uuids for slot in slots] == [("GPU-0",), ("GPU-2",), ("GPU-3",)]

    def test_several_gpus_a_run(self) -> None:
        (slot,) = gpu_slots(Request(None, 3, 1), range(16), self.GPUS)
        assert (slot.name, slot.gpu_indices, slot.vram_mib, len(slot.cores)) == ("gpu0+1+2", (0, 1, 2), 24_000, 12)

    def test_gpus_are_never_shared(self) -> None:
        assert len(gpu_slots(Request(9, 2, 1), range(16), self.GPUS)) == 2

    def test_fewer_cores_than_gpus(self) -> None:
        slots = gpu_slots(Request(None, 1, 1), (0, 1), self.GPUS)
        assert [slot.cores for slot in slots] == [(0,), (1,), (0,), (1,)]
        assert all(slot.shares_cores for slot in slots)

    @pytest.mark.parametrize(
        ("request_", "said"),
        [
            (Request(None, 5, 1), "5 GPUs with 0 GiB or more"),
            (Request(None, 1, 1, min_vram_gib=100), "0 of 4 usable GPUs"),
            (Request(None, 1, 17), "17 CPU cores"),
        ],
    )
    def test_what_does_not_fit_says_what_is_there(self, request_: Request, said: str) -> None:
        with pytest.raises(NoCapacity, match=said):
            gpu_slots(request_, range(16), self.GPUS)
