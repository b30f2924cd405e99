"""What every test stands on: one thread a process, no network but loopback, a fixed hypothesis profile."""

from __future__ import annotations

import os
import socket
from typing import Any

# Two busy OpenMP pools on two cores ran twelve times slower than one thread each.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.pop("RUNNER_HOME", None)
os.environ["MPLBACKEND"] = "Agg"
# A test that starts processes starts many of the same program: without this each of them compiles all of it again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest  # noqa: E402  (the thread caps must be set before anything loads OpenMP)
from hypothesis import HealthCheck, settings  # noqa: E402

# How long a draw takes says how busy the machine is, and nothing about the strategy.
settings.register_profile(
    "armature", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("armature")

_LOOPBACK = ("127.", "::1", "localhost")
_connect = socket.socket.connect


def _loopback_only(self: socket.socket, address: Any) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(_LOOPBACK):
        raise RuntimeError(f"a test tried to reach {address}: tests stay on this machine")
    _connect(self, address)


@pytest.fixture(autouse=True)
def _hermetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", _loopback_only)
