"""What a run prints: its two log files, from the start or from now on, safe for a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from runner.errors import UsageError
from runner.home import Home
from runner.launch_spec import attempt_dir
from runner.records import ENDED
from runner.screen import printable
from runner.store.database import reading
from runner.store.facts import read_run
from runner.store.queries import latest_attempt

CHUNK_BYTES = 65536
POLL_S = 0.3


def log_lines(
    home: Home,
    run: str,
    follow: bool,
    only: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Text of stdout and stderr of the latest attempt, or of attempt `only`. With `follow`, until that one is over: the
    run has ended, or a later attempt than `only` has begun.

    Raises UsageError when the run has no attempt of that number.
    """
    offsets: dict[Path, int] = {}
    attempt: int | None = None
    while True:
        with reading(home) as connection:
            latest = now_attempt = latest_attempt(connection, run)
            ended = read_run(connection, run).state in ENDED
        if only is not None:
            _check_attempt(run, only, latest)
            now_attempt, ended = only, ended or only != latest
        if now_attempt is None and not follow:
            yield "(nothing yet: the run has not started)\n"
            return
        if now_attempt is not None and now_attempt != attempt:
            attempt = now_attempt
            yield f"--- attempt {attempt} ---\n"
        if attempt is not None:
            yield from _new_text(attempt_dir(home.root / run, attempt), offsets)
        if ended or not follow:
            return
        sleep(POLL_S)


def _check_attempt(run: str, wanted: int, latest: int | None) -> None:
    if latest is None:
        raise UsageError(f"--attempt {wanted}: {run} has not started, so it has no attempt yet")
    if not 1 <= wanted <= latest:
        allowed = "1" if latest == 1 else f"1 to {latest}"
        raise UsageError(f"--attempt {wanted}: {run} has no such attempt; allowed: {allowed}")


def _new_text(folder: Path, offsets: dict[Path, int]) -> Iterator[str]:
    for path in (folder / "stdout.log", folder / "stderr.log"):
        if not path.exists():
            continue
        with path.open("rb") as file:
            file.seek(offsets.get(path, 0))
            while chunk := file.read(CHUNK_BYTES):
                offsets[path] = file.tell()
                text = chunk.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
                yield printable(text, keep_newlines=True)
