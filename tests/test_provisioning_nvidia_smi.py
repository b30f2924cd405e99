"""GPUs as `nvidia-smi` tells them: its answers as they are printed, and every way in which it gives none."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from provisioning.gpu_watch import GpuProcess, GpuReading
from provisioning.gpus import Gpu
from provisioning.nvidia_smi import SmiDriver

SURVEY = """\
1, GPU-bbbb, NVIDIA GeForce RTX 4090, 24564, [N/A]
0, GPU-aaaa, NVIDIA H200, 143771, Disabled
2, GPU-cccc, NVIDIA A100-SXM4-80GB, 81920, Enabled
"""
USED = "GPU-aaaa, 1234\nGPU-bbbb, 1\nGPU-cccc, [Unknown Error]\n"
PROCESSES = "GPU-aaaa, 4711, 900\nGPU-aaaa, 4712, [N/A]\nGPU-zzzz, 1, 5\n"


def driver(
    folder: Path, survey: str = SURVEY, used: str = USED, processes: str = PROCESSES, **options: float
) -> SmiDriver:
    """A driver whose program prints these."""
    script = folder / "nvidia-smi"
    script.write_text(
        "#!/bin/sh\ncase $1 in\n"
        f"--query-gpu=index*) printf %s {shlex.quote(survey)};;\n"
        f"--query-gpu=uuid*) printf %s {shlex.quote(used)};;\n"
        f"--query-compute-apps*) printf %s {shlex.quote(processes)};;\n"
        "*) exit 9;;\nesac\n[ $2 = --format=csv,noheader,nounits ]\n"
    )
    script.chmod(0o755)
    return SmiDriver(str(script))


def test_gpus_are_listed_in_bus_order_with_their_partition(tmp_path: Path) -> None:
    survey = driver(tmp_path).survey()
    assert survey.notes == ()
    assert survey.gpus == (
        Gpu("GPU-aaaa", 0, "NVIDIA H200", 143771),
        Gpu("GPU-bbbb", 1, "NVIDIA GeForce RTX 4090", 24564),
        Gpu("GPU-cccc", 2, "NVIDIA A100-SXM4-80GB", 81920, is_partitioned=True),
    )


def test_memory_and_processes_are_read_by_gpu(tmp_path: Path) -> None:
    found = driver(tmp_path).read(["GPU-aaaa", "GPU-bbbb", "GPU-cccc", "GPU-none"])
    assert found["GPU-aaaa"] == GpuReading("GPU-aaaa", 1234, (GpuProcess(4711, 900), GpuProcess(4712, None)))
    assert found["GPU-bbbb"] == GpuReading("GPU-bbbb", 1)
    assert isinstance(found["GPU-cccc"], str)
    assert isinstance(found["GPU-none"], str)


def test_a_gpu_that_does_not_answer_is_left_out_with_a_note(tmp_path: Path) -> None:
    survey = driver(tmp_path, survey="0, GPU-aaaa, NVIDIA H200, 143771, Disabled\n1, [Unknown Error]\n").survey()
    assert [gpu.uuid for gpu in survey.gpus] == ["GPU-aaaa"]
    assert survey.notes == ("GPU 1 does not answer ([Unknown Error]); left out",)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9",
            "communicate",
        ),
        ("sleep 30", "timed out after 0.3 seconds"),
        ("kill -9 $$", "ended with -9"),
    ],
)
def test_a_program_that_fails_or_hangs_means_no_gpus_and_says_why(tmp_path: Path, script: str, told: str) -> None:
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    found = SmiDriver(str(path), answer_s=0.3)
    survey = found.survey()
    assert survey.gpus == ()
    assert told in survey.notes[0]
    assert told in str(found.read(["GPU-a"])["GPU-a"])


def test_without_the_program_there_are_no_gpus(tmp_path: Path) -> None:
    found = SmiDriver(str(tmp_path / "nvidia-smi"))
    assert found.survey().gpus == ()
    assert "there is no" in found.survey().notes[0]
    assert "there is no" in str(found.read(["GPU-a"])["GPU-a"])


@pytest.mark.parametrize("rubbish", ["", "\n\n", "a,b,c", "0, GPU-a, x, y, z", "\x00\xff,,,,", '"unclosed, 1'])
def test_rubbish_is_no_gpu_and_no_error(tmp_path: Path, rubbish: str) -> None:
    found = driver(tmp_path, survey=rubbish.replace("\x00", ""), used=rubbish.replace("\x00", ""), processes="x")
    assert found.survey().gpus == ()
    assert isinstance(found.read(["GPU-a"])["GPU-a"], str)
