"""What the end of a process means, from its exit record and the last lines it wrote. Pure."""

from __future__ import annotations

from runner.failure.classes import CLASSES, Exit, Failure, classify, describe_exit

__all__ = ["CLASSES", "Exit", "Failure", "classify", "describe_exit"]
