"""The GPUs of a machine as `nvidia-smi` tells them, where only the standard library is at hand."""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Mapping, Sequence

from provisioning.gpu_watch import GpuProcess, GpuReading
from provisioning.gpus import Gpu, GpuSurvey

PROGRAM = "nvidia-smi"
ANSWER_S = 20.0
"""Where nothing keeps the driver awake, the first answer takes seconds."""

NOT_SAID = ("", "[N/A]", "N/A", "[Not Supported]", "[Unknown Error]")


class SmiDriver:
    """The GPUs that `nvidia-smi` lists, in PCI bus order. Without the program or a driver there are none."""

    def __init__(self, program: str = PROGRAM, answer_s: float = ANSWER_S) -> None:
        self._program = program
        self._answer_s = answer_s

    def survey(self) -> GpuSurvey:
        """All GPUs; none, with a note that says why, when there is no driver."""
        try:
            rows = self._ask("--query-gpu=index,uuid,name,memory.total,mig.mode.current")
        except _NoAnswer as error:
            return GpuSurvey((), (f"no GPUs: {error}",))
        found, notes = [], []
        for row in rows:
            gpu = _gpu(row)
            if gpu is None:
                notes.append(f"GPU {row[0] if row else '?'} does not answer ({', '.join(row[1:])}); left out")
            else:
                found.append(gpu)
        return GpuSurvey(tuple(sorted(found, key=lambda gpu: gpu.index)), tuple(notes))

    def read(self, uuids: Sequence[str]) -> Mapping[str, GpuReading | str]:
        """Memory and processes of each GPU now, or why it does not answer."""
        try:
            used = {row[0]: row[1] for row in self._ask("--query-gpu=uuid,memory.used") if len(row) == 2}
            processes = self._ask("--query-compute-apps=gpu_uuid,pid,used_gpu_memory")
        except _NoAnswer as error:
            return dict.fromkeys(uuids, str(error))
        return {uuid: _reading(uuid, used.get(uuid, ""), processes) for uuid in uuids}

    def _ask(self, query: str) -> list[list[str]]:
        """The rows of one query. Raises _NoAnswer."""
        try:
            done = subprocess.run(
                [self._program, query, "--format=csv,noheader,nounits"],
                capture_output=True, stdin=subprocess.DEVNULL, timeout=self._answer_s, check=False,
            )  # fmt: skip
        except FileNotFoundError:
            raise _NoAnswer(f"there is no {self._program} here") from None
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _NoAnswer(f"{self._program}: {error}") from error
        said = done.stdout.decode(errors="replace")
        if done.returncode:
            words = " ".join((said + done.stderr.decode(errors="replace")).split())
            raise _NoAnswer(f"{self._program} ended with {done.returncode}: {words[:200]}")
        return [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(said)) if row]


class _NoAnswer(Exception):
    """The program is not there, hangs or fails."""


def _gpu(row: Sequence[str]) -> Gpu | None:
    if len(row) != 5 or not (row[0].isdecimal() and row[3].isdecimal()):
        return None
    return Gpu(row[1], int(row[0]), row[2], int(row[3]), row[4] == "Enabled")


def _reading(uuid: str, used_mib: str, processes: Sequence[Sequence[str]]) -> GpuReading | str:
    if not used_mib.isdecimal():
        return f"{PROGRAM} knows no memory of it" if used_mib in NOT_SAID else used_mib
    found = [
        GpuProcess(int(pid), None if mib in NOT_SAID or not mib.isdecimal() else int(mib))
        for where, pid, mib in (row for row in processes if len(row) == 3)
        if where == uuid and pid.isdecimal()
    ]
    return GpuReading(uuid, int(used_mib), tuple(found))
