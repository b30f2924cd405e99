"""control.json, by which a training is told what is wanted of it: desired state and no queue, replaced as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from provisioning.base import Shell

CONTROL = "control.json"


def read_control(shell: Shell, run_dir: Path) -> Mapping[str, Any]:
    """What the file says; nothing when there is none or it cannot be read."""
    try:
        found = json.loads(shell.read(str(run_dir / CONTROL)) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def write_control(
    shell: Shell, run_dir: Path, attempt: int, *, stop: str | None = None, probe_every_steps: int | None = None
) -> None:
    """Say what is wanted of an attempt, under the next number. A training that is to stop is asked for no more probes:
    its checkpoint is what is waited for."""
    seq = read_control(shell, run_dir).get("seq")
    document = {
        "attempt": attempt,
        "seq": seq + 1 if isinstance(seq, int) else 1,
        "probe_every_steps": probe_every_steps,
        "stop": stop,
    }
    shell.write(str(run_dir / CONTROL), (json.dumps(document, indent=1) + "\n").encode(), is_durable=False)
