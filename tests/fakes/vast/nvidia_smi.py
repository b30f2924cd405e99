"""`nvidia-smi` of a rented machine: it answers from a file what a survey and a look at the use ask, nothing else.

Run by its path, with the standard library alone: `python -I -S nvidia_smi.py GPUS.json ARGUMENT…`. The file holds
`{"broken": false, "gpus": [{"uuid", "name", "memory.total", …}]}`. It fails as the real one does: 9 without a driver, 2
for a field or an argument that it does not know. No process ever uses a GPU here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

GPU_FIELDS = ("index", "uuid", "name", "memory.total", "memory.used", "mig.mode.current")
PROCESS_FIELDS = ("gpu_uuid", "pid", "used_gpu_memory")
FORMAT = "--format=csv,noheader,nounits"
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running."
)


def answer(broken: bool, gpus: Sequence[Mapping[str, str]], arguments: Sequence[str]) -> tuple[int, str]:
    """(exit code, what is printed) for one call."""
    if broken:
        return 9, NO_DRIVER
    if len(arguments) != 2 or arguments[1] != FORMAT:
        return 2, f"this nvidia-smi knows only a query and {FORMAT}, not: {' '.join(arguments)}"
    kind, _, names = arguments[0].partition("=")
    allowed = {"--query-gpu": GPU_FIELDS, "--query-compute-apps": PROCESS_FIELDS}.get(kind)
    if allowed is None:
        return 2, f"Unknown argument {kind}"
    fields = names.split(",")
    for field in fields:
        if field not in allowed:
            return 2, f'Field "{field}" is not a valid field to query.'
    if kind == "--query-compute-apps":
        return 0, ""
    if not gpus:
        return 6, "No devices were found"
    return 0, "\n".join(", ".join(gpu[field] for field in fields) for gpu in gpus)


def main() -> int:
    """One call."""
    told = json.loads(Path(sys.argv[1]).read_bytes())
    code, text = answer(told["broken"], told["gpus"], sys.argv[2:])
    if text:
        print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
