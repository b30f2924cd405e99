"""What a training process asks of the machine it runs on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COUNTING = """
import resource, torch
from trainer.device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.empty(8 * 2**20).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
assert keep_freed_memory()
faults()
print(first, faults())
"""


def test_memory_that_was_freed_is_there_for_the_next_step() -> None:
    """Pages of 32 MiB that are asked for eight times: each time anew, or never again."""
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", COUNTING]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, timeout=120)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 5 * 8192
    assert kept < 100
