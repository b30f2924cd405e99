"""Talks to a spawner: the program that reads launch specs on its input and forks one supervisor for each.

It is a program of its own, never a fork of ours: a fork would keep our locks and database connections alive.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from provisioning.base import HostLost

ANSWER_S = 60.0
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")


class Spawner:
    """One spawner process, started when first asked and started again when it was found dead. For one thread.

    `answer_s` bounds the wait for each answer, in seconds.
    """

    def __init__(self, argv: Sequence[str], answer_s: float = ANSWER_S) -> None:
        self._argv = list(argv)
        self._answer_s = answer_s
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints: IO[bytes] | None = None

    def ask(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one launch spec.

        Raises HostLost when none comes in time; then the spawner is ended, and whether it forked is unknown. The
        launch spec itself, which may hold secrets, is in no message.
        """
        line = (json.dumps(dict(spec)) + "\n").encode()
        try:
            answer = json.loads(self._exchange(self._running(), line))
            if not isinstance(answer, dict):
                raise ValueError("it answered something that is no JSON object")
        except (OSError, EOFError, ValueError) as error:
            raise HostLost(f"no answer from `{' '.join(self._argv)}`: {error}{self._end()}") from error
        return answer

    def close(self) -> None:
        """Let it end, as it does when its input does; what it forked lives on."""
        self._end(patience_s=self._answer_s)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        # Its errors go to a file: nobody reads a pipe that the spawner might fill.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            self._argv,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            cwd="/",
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            start_new_session=True,  # Ctrl-C in our terminal is not meant for it
        )
        os.set_blocking(_pipes(self._process)[0].fileno(), False)
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], line: bytes) -> bytes:
        """Write one line, read one line, both within the deadline."""
        stdin, stdout = _pipes(process)
        until = time.monotonic() + self._answer_s
        answer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stdin, selectors.EVENT_WRITE)
            selector.register(stdout, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                ready = selector.select(max(0.0, until - time.monotonic()))
                if not ready:
                    raise TimeoutError(f"nothing within {self._answer_s:g} s")
                for key, _ in ready:
                    if key.fileobj is stdin:
                        line = line[os.write(key.fd, line) :]
                        if not line:
                            selector.unregister(stdin)
                        continue
                    piece = os.read(key.fd, 65536)
                    if not piece:
                        raise EOFError("it ended")
                    answer += piece
        return answer

    def _end(self, patience_s: float = 0.0) -> str:
        """End the process; returns the last of what it said on its error stream."""
        process, self._process = self._process, None
        complaints, self._complaints = self._complaints, None
        if process is not None:
            stdin, stdout = _pipes(process)
            stdin.close()
            try:
                process.wait(patience_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            stdout.close()
        if complaints is None:
            return ""
        with complaints:
            complaints.seek(0)
            words = complaints.read().decode(errors="replace").strip()[-400:]
        return f"; it said: {words}" if words else ""


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout
