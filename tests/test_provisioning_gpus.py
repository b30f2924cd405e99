from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from provisioning.base import Slot
from provisioning.gpus import Gpu, GpuSurvey, NvmlDriver, slot_environment, usable_gpus

GPUS = (
    Gpu("GPU-1a2b", 0, "card", 80_000),
    Gpu("GPU-1a9c", 1, "card", 80_000),
    Gpu("GPU-77aa", 2, "card", 24_000),
    Gpu("GPU-90ff", 3, "card", 80_000, is_partitioned=True),
)


class Driver:
    def __init__(self, *gpus: Gpu, notes: tuple[str, ...] = ()) -> None:
        self._survey = GpuSurvey(gpus, notes)

    def survey(self) -> GpuSurvey:
        return self._survey


class NvmlError(Exception):
    pass


class NotSupported(NvmlError):
    pass


class Nvml(SimpleNamespace):
    """A stand-in for the pynvml module: two cards, the second of which fell off the bus."""

    NVMLError = NvmlError
    NVMLError_NotSupported = NotSupported
    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self, mig: int | None = None) -> None:
        super().__init__(is_open=False, mig=mig)

    def nvmlInit(self) -> None:
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        assert self.is_open
        if index == 1:
            raise NvmlError("GPU is lost")
        return index

    def nvmlDeviceGetMigMode(self, device: int) -> tuple[int, int]:
        if self.mig is None:
            raise NotSupported
        return (self.mig, self.mig)

    def nvmlDeviceGetMemoryInfo(self, device: int) -> Any:
        return SimpleNamespace(total=81_559 * 2**20 + 5)

    def nvmlDeviceGetUUID(self, device: int) -> str:
        return "GPU-1a2b"

    def nvmlDeviceGetName(self, device: int) -> str:
        return "card"


class TestTheDriver:
    def test_cards_and_what_is_wrong_with_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        nvml = Nvml()
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        survey = NvmlDriver().survey()
        assert survey.gpus == (Gpu("GPU-1a2b", 0, "card", 81_559),)
        assert survey.notes == ("GPU 1 does not answer (GPU is lost); left out",)
        assert not nvml.is_open

    @pytest.mark.parametrize(("mig", "is_partitioned"), [(0, False), (1, True)])
    def test_partitioned_cards_say_so(self, monkeypatch: pytest.MonkeyPatch, mig: int, is_partitioned: bool) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", Nvml(mig))
        assert NvmlDriver().survey().gpus[0].is_partitioned is is_partitioned

    def test_no_library_is_no_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert NvmlDriver().survey() == GpuSurvey((), ("no GPUs: the package nvidia-ml-py is not installed",))

    def test_no_driver_is_no_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail() -> None:
            raise NvmlError("Driver Not Loaded")

        nvml = Nvml()
        nvml.nvmlInit = fail  # type: ignore[method-assign]
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        assert NvmlDriver().survey() == GpuSurvey((), ("no GPUs: Driver Not Loaded",))

    def test_the_real_library_never_raises(self) -> None:
        survey = NvmlDriver().survey()
        assert survey.gpus or survey.notes


class TestTheInheritedMask:
    @pytest.mark.parametrize(
        ("mask", "indices"),
        [
            (None, [0, 1, 2]),
            ("", []),
            (" ", []),
            ("-1", []),
            ("2,0", [0, 2]),
            (" 0 , 2 ", [0, 2]),
            ("0,0", [0]),
            ("GPU-77aa", [2]),
            ("GPU-1a9,GPU-7", [1, 2]),
            ("1,-1,2", [1]),
            ("3", []),
        ],
    )
    def test_which_are_left(self, mask: str | None, indices: list[int]) -> None:
        assert [gpu.index for gpu in usable_gpus(Driver(*GPUS), mask).gpus] == indices

    @pytest.mark.parametrize("word", ["9", "GPU-1a", "GPU-none", "MIG-90ff", "cuda:0", "NoDevFiles"])
    def test_reading_stops_at_a_word_that_names_nothing(self, word: str) -> None:
        survey = usable_gpus(Driver(*GPUS), f"0,{word},2")
        assert [gpu.index for gpu in survey.gpus] == [0]
        assert len(survey.notes) == 1
        assert repr(word) in survey.notes[0]

    def test_partitioned_cards_are_left_out_with_a_note(self) -> None:
        assert usable_gpus(Driver(*GPUS), None).notes == ("GPU 3 (card) is split into MIG instances; left out",)
        assert usable_gpus(Driver(*GPUS), "0").notes == ()

    def test_what_the_driver_said_is_passed_on(self) -> None:
        assert usable_gpus(Driver(notes=("no GPUs: none",)), "") == GpuSurvey((), ("no GPUs: none",))


class TestTheEnvironmentOfASlot:
    SLOT = Slot("gpu1+2", (4, 5, 6), gpu_uuids=("GPU-1a9c", "GPU-77aa"), gpu_indices=(1, 2))
    CAPS = {  # noqa: RUF012
        "OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3", "NUMEXPR_NUM_THREADS": "3",
    }  # fmt: skip

    @pytest.mark.parametrize(("gpu_ids", "visible"), [("index", "1,2"), ("uuid", "GPU-1a9c,GPU-77aa")])
    @pytest.mark.parametrize("inherited", [None, "1,2", "2,1,0", "GPU-1a9,GPU-77aa"])
    def test_gpus_in_the_form_asked_for(self, gpu_ids: str, visible: str, inherited: str | None) -> None:
        assert slot_environment(self.SLOT, gpu_ids, inherited) == {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": visible,
            **self.CAPS,
        }

    @pytest.mark.parametrize("inherited", [None, "", "0"])
    def test_a_cpu_slot_sees_no_gpu(self, inherited: str | None) -> None:
        environment = slot_environment(Slot("cpu0", (7,)), "index", inherited)
        assert environment["CUDA_VISIBLE_DEVICES"] == ""
        assert environment["OMP_NUM_THREADS"] == "1"

    @pytest.mark.parametrize("inherited", ["", "0,2", "GPU-77aa"])
    def test_a_slot_outside_the_mask_is_refused(self, inherited: str) -> None:
        with pytest.raises(ValueError, match="GPU-1a9c, which CUDA_VISIBLE_DEVICES="):
            slot_environment(self.SLOT, "index", inherited)

    def test_another_form_is_refused(self) -> None:
        with pytest.raises(ValueError, match="allowed: index, uuid"):
            slot_environment(self.SLOT, "name")
