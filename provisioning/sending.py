"""Brings a folder of files to a host, for example a checkpoint that a run goes on from: each file in pieces, compared
by its SHA-256 there, and the folder gets its name only when all of it is there.

A connection may be lost anywhere: the same work, begun again, asks what has arrived and goes on from there.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter

from provisioning.agent_code import BUSY, TORN
from provisioning.base import HostLost, StagingFailed
from provisioning.questions import PIECE_BYTES, Question, Steps
from provisioning.staging import Received, State

_STATE = TypeAdapter(State)
_RECEIVED = TypeAdapter(Received)
_PROBLEM = TypeAdapter(str)
_NAMES = TypeAdapter(tuple[str, ...])


def sending_steps(here: Path, there: str) -> Steps[int]:
    """What to ask a host so that the files below `here` stand below `there`, an absolute path there; returns the bytes
    that had to travel. What stands there already is left as it is. Raises StagingFailed."""
    beside, _, last = there.rpartition("/")
    aside, sent = f"{beside}/.coming-{last}", 0
    if last in (yield Question(_NAMES, "names", (beside,))):
        return sent
    for path in sorted(one for one in here.rglob("*") if one.is_file()):
        digest, name = _digest(path), path.relative_to(here).as_posix()
        for _ in range(2):  # what has arrived may prove torn; then once more from its start
            state = yield Question(_STATE, "code_state", (aside, digest, digest))
            with path.open("rb") as file:
                sent += yield from _pieces(file, path.stat().st_size, aside, digest, state.received)
            problem = yield Question(_PROBLEM, "file_in_place", (aside, digest, name))
            if problem != TORN:
                break
        _refuse(problem, path)
    _refuse((yield Question(_PROBLEM, "folder_in_place", (aside, there))), here)
    return sent


def _pieces(file: IO[bytes], size: int, aside: str, digest: str, received: int) -> Steps[int]:
    """Send what has not arrived; a file of no bytes is sent as one piece of none."""
    sent, is_there = 0, False
    while received < size or not is_there:
        file.seek(received)
        piece = file.read(PIECE_BYTES)
        question = (aside, digest, received, base64.b64encode(piece).decode())
        told = yield Question(_RECEIVED, "code_piece", question)
        _refuse(told.problem, Path(file.name))
        if told.received < received + len(piece):
            raise HostLost(f"the host has {told.received} bytes where {received + len(piece)} were sent")
        received, sent, is_there = received + len(piece), sent + len(piece), True
    return sent


def _refuse(problem: str, path: Path) -> None:
    if problem == BUSY:
        raise HostLost("an earlier connection is still at it; ask again")
    if problem:
        raise StagingFailed(f"{path} cannot be brought to the host: {problem}; what has arrived is kept there")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
