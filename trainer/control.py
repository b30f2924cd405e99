"""How the outside world asks a running trainer to stop or to probe: control.json in the run directory, and signals."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any


@dataclass(frozen=True, slots=True)
class Wish:
    """One reading of control.json: its number, what it asks for, and the keys left undone.

    `stop` asks for a checkpoint and the end, `probe_every_steps` for a probe at every step that is a multiple of it
    (None: at regular validations only). The file is desired state: a key that is left undone counts as not written.
    """

    seq: int
    stop: bool
    probe_every_steps: int | None = None
    ignored: tuple[str, ...] = ()


class Control:
    """Watches control.json; a file for another attempt, or one that cannot be read, wishes nothing."""

    def __init__(self, run_dir: Path, attempt: int) -> None:
        self._path = run_dir / "control.json"
        self._attempt = attempt
        self._seen: tuple[int, int] | None = None

    def poll(self) -> Wish | None:
        """The wish in the file if the file was replaced since the last look, else None. Costs one stat."""
        try:
            status = self._path.stat()
            identity = (status.st_ino, status.st_mtime_ns)
            if identity == self._seen:
                return None
            content = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            content = None
        self._seen = identity
        return self._wish(content)

    def _wish(self, content: Any) -> Wish | None:
        if not isinstance(content, dict) or content.get("attempt") != self._attempt:
            return None
        seq = content.get("seq")
        if not isinstance(seq, int):
            return None
        asked = content.get("probe_every_steps")
        # A bool is an int to Python, but true is no number of steps.
        usable = type(asked) is int and asked >= 1
        ignored = () if usable or asked is None else ("probe_every_steps",)
        return Wish(seq, content.get("stop") == "checkpoint", asked if usable else None, ignored)


class StopRequest:
    """Remembers that somebody asked this process to stop. Signals only set a flag; the training loop acts on it."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __bool__(self) -> bool:
        return self.reason is not None

    def ask(self, reason: str) -> None:
        """Ask for a stop; the first reason is kept."""
        self.reason = self.reason or reason

    def listen(self) -> None:
        """Take SIGTERM and SIGINT as requests. A second SIGINT ends the process at once."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.ask(signal.Signals(number).name)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
